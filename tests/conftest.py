"""Shape checks for every test, and the models and inputs that most of them share."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jaxtyping
import pytest
import torch

SOURCE = Path(__file__).parent.parent / "src" / "recon"


def _modules_with_shapes() -> list[str]:
    files = [p for p in SOURCE.rglob("*.py") if "jaxtyping" in p.read_text("utf-8")]
    paths = [p.relative_to(SOURCE.parent).with_suffix("") for p in files]
    return [".".join(path.parts).removesuffix(".__init__") for path in paths]


# Before anything imports recon. Only modules that annotate shapes: decorating the
# closures of the others, too, made one verification ten times slower.
jaxtyping.install_import_hook(_modules_with_shapes(), "beartype.beartype")
# No test needs the network; without this, an unknown model is asked for five times.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Matrices this small gain nothing from threads, and lose much on a busy machine.
torch.set_num_threads(1)

from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel  # noqa: E402

import recon  # noqa: E402
from recon.models import perturb  # noqa: E402
from tests import versions  # noqa: E402

VOCABULARY = 97
TINY = {
    "vocab_size": VOCABULARY,
    "n_positions": 24,
    "n_embd": 32,
    "n_head": 4,
    "n_layer": 3,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


class Recorded(NamedTuple):
    """One captured pass, and what the model returned in it."""

    trace: recon.Trace
    output: Any


def _make_model(
    kind: type[PreTrainedModel] = GPT2LMHeadModel,
    *,
    attention: str = "eager",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **config: Any,
) -> PreTrainedModel:
    settings = GPT2Config(**{**TINY, **config})
    settings._attn_implementation = attention
    model = kind(settings)
    perturb(model, seed)
    return model.to(dtype).eval()


def _make_ids(batch: int = 3, tokens: int = 7, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randperm(VOCABULARY, generator=generator) for _ in range(batch)]
    return torch.stack(rows)[:, :tokens]


def _record(
    model: PreTrainedModel, *args: Any, grad: bool = False, **inputs: Any
) -> Recorded:
    asked = {"output_hidden_states": True}
    config = model.config
    if not versions.SHOWS_PATTERNS and config._attn_implementation == "eager":
        rests = config.add_cross_attention and "encoder_hidden_states" not in inputs
        asked["output_attentions"] = not rests
    with torch.set_grad_enabled(grad), recon.capture(model) as recorder:
        output = model(*args, **{**asked, **inputs})
    return Recorded(recorder.trace, output)


def _all_exact(report: recon.Report) -> recon.Report:
    inexact = [c.describe() for c in report.checks if c.verdict != "exact"]
    assert not inexact, "\n".join(inexact)
    assert {"ledger", "replay"} <= {check.level for check in report.checks}
    return report.check()


@pytest.fixture(scope="session")
def make_model() -> Callable[..., PreTrainedModel]:
    """``make_model(kind, attention=, dtype=, **config)``: H=4, L=3, perturbed, eval."""
    return _make_model


@pytest.fixture(scope="session")
def make_ids() -> Callable[..., torch.Tensor]:
    """``make_ids(batch=3, tokens=7)``: token ids that differ within each row."""
    return _make_ids


@pytest.fixture(scope="session")
def record() -> Callable[..., Recorded]:
    """``record(model, ids, **inputs)``: run once with capture."""
    return _record


@pytest.fixture(scope="session")
def all_exact() -> Callable[[recon.Report], recon.Report]:
    """``all_exact(report)``: assert that every check of both levels is exact."""
    return _all_exact


@pytest.fixture
def without_type_checks() -> Iterator[None]:
    """Call recon as users do, unchecked, to see what it says to a wrong type."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def module_without_type_checks() -> Iterator[None]:
    """The same for a module, whose tests are about time: checks take more of it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def quick_collections() -> Iterator[None]:
    """Let Python's collector look only at what is made from now on, for a module.

    A full collection takes 0.3 s, and a profile makes seven. A holder that is older
    than this is not named, so it is not for tests of names.
    """
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def young() -> Iterator[None]:
    """The same for one test, which names only holders that it makes itself."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def model() -> PreTrainedModel:
    """A tiny perturbed GPT2LMHeadModel with eager attention, in eval mode."""
    return _make_model()


@pytest.fixture
def ids() -> torch.Tensor:
    """Token ids, B=3 and T=7."""
    return _make_ids()


@pytest.fixture
def recorded(model: PreTrainedModel, ids: torch.Tensor) -> Recorded:
    """One captured pass of ``model`` on ``ids``."""
    return _record(model, ids)
