"""Where a model comes from: bundled, a hub id, a directory, or random weights."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.activations import ACT2FN
from transformers.utils import logging as transformers_logging

from recon.errors import UnsupportedError, UsageError

BUNDLED = "bundled"
BUNDLED_PATH = Path(str(files("recon"))) / "data" / "gpt2-topics"

# The published sizes of GPT-2, and one that runs in milliseconds.
RANDOM_SIZES: dict[str, dict[str, int]] = {
    "tiny": {"n_layer": 3, "n_embd": 48, "n_head": 4, "n_positions": 128},
    "gpt2": {"n_layer": 12, "n_embd": 768, "n_head": 12},
    "gpt2-medium": {"n_layer": 24, "n_embd": 1024, "n_head": 16},
    "gpt2-large": {"n_layer": 36, "n_embd": 1280, "n_head": 20},
    "gpt2-xl": {"n_layer": 48, "n_embd": 1600, "n_head": 25},
}
_TINY_VOCABULARY = 3000
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# Every activation that a config may name, GPT-2's own first.
ACTIVATIONS = ("gelu_new", *sorted(set(ACT2FN) - {"gelu_new"}))
# What a config calls the dtype of its weights, and from_pretrained with it.
_DTYPE = "dtype" if hasattr(PretrainedConfig(), "dtype") else "torch_dtype"
Tokenizer: TypeAlias = Any


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model, its name, and its tokenizer where it has one."""

    name: str
    model: PreTrainedModel
    tokenizer: Tokenizer | None

    @property
    def random(self) -> bool:
        """Whether the weights are random, so that text means nothing to the model."""
        return self.name.startswith("random:")

    def __repr__(self) -> str:
        words = "with" if self.tokenizer is not None else "without"
        return f"Loaded({self.name!r}, {type(self.model).__name__}, {words} tokenizer)"


def load_model(
    name: str = BUNDLED,
    *,
    dtype: torch.dtype | None = None,
    attention: str | None = None,
    device: str = "cpu",
    seed: int = 0,
) -> Loaded:
    """Load ``bundled``, ``random:SIZE``, a local directory or a hub id, in eval mode.

    ``dtype`` defaults to float32 for random weights and to the checkpoint's otherwise.
    Raises UsageError for a name that leads nowhere, UnsupportedError for a model that
    is no GPT-2.
    """
    if attention not in (None, "eager", "sdpa"):
        raise UnsupportedError(
            f"attention implementation {attention!r}: recon checks eager and sdpa"
        )
    place = _device(device)
    if name.startswith("random:"):
        model = _random(name.removeprefix("random:"), attention, seed)
        nn.Module.to(model, dtype or torch.float32)
        tokenizer = _tokenizer(str(BUNDLED_PATH))
    else:
        source = str(BUNDLED_PATH) if name == BUNDLED else name
        model = _pretrained(source, name, dtype, attention)
        tokenizer = _tokenizer(source)
    try:
        nn.Module.to(model, place)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {device!r}: {_first_line(error)}") from error
    model.train(False)
    return Loaded(name, model, tokenizer)


def _device(name: str) -> torch.device:
    try:
        place = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device {name!r}: {_first_line(error)}") from error
    if place.type == "meta":
        raise UsageError("device 'meta' computes shapes only: nothing to verify")
    return place


def _pretrained(
    source: str, name: str, dtype: torch.dtype | None, attention: str | None
) -> PreTrainedModel:
    _require_reachable(source, name)
    with _quiet():
        config = _config(source, name)
        kind = _class(config, name)
        if attention is not None:
            config._attn_implementation = attention
        try:
            # Its annotations know nothing of the second value.
            options: dict[str, Any] = {"config": config, "output_loading_info": True}
            options[_DTYPE] = dtype or getattr(config, _DTYPE, None) or torch.float32
            loaded: Any = kind.from_pretrained(
                source, ignore_mismatched_sizes=True, **options
            )
        except Exception as error:
            # A damaged config or file ends in an error of any kind.
            raise UsageError(
                f"{name}: its weights cannot be read: {_words(error)}"
            ) from error
    model: PreTrainedModel = loaded[0]
    for one in sorted(loaded[1]["mismatched_keys"], key=str)[:1]:
        # Before version 5 the names alone.
        weight, *shapes = (one,) if isinstance(one, str) else one
        told = ", not ".join(str(tuple(shape)) for shape in shapes)
        raise UsageError(
            f"{name}: {weight} has another shape than its config.json asks for"
            + (f": {told}" if told else "")
        )
    if missing := sorted(loaded[1]["missing_keys"]):
        # transformers would fill them with random numbers.
        raise UsageError(
            f"{name}: {len(missing)} weights are missing, {missing[0]} for one"
        )
    return model


def _require_reachable(source: str, name: str) -> None:
    path = Path(source)
    try:
        there = path.exists()
    except OSError as error:
        raise UsageError(f"model {name[:80]!r}: {error.strerror}") from error
    if not name.strip():
        raise UsageError(
            f"model {name!r} is no name; expected a directory made by "
            f"save_pretrained, a hub id, {BUNDLED} or random:SIZE"
        )
    looks_local = there or source.startswith((".", "/", "~")) or source.count("/") > 1
    if not looks_local:
        return
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise UsageError(
            f"{name} {what}; expected a directory made by save_pretrained, a hub id, "
            f"{BUNDLED} or random:SIZE"
        )
    if not (path / "config.json").is_file():
        raise UsageError(
            f"{name} has no config.json; expected a save_pretrained directory"
        )


# The hub's names of the sizes; there is no tiny one.
_ON_THE_HUB = [size for size in RANDOM_SIZES if size != "tiny"]


def _config(source: str, name: str) -> Any:
    try:
        return AutoConfig.from_pretrained(source)
    except Exception as error:  # of any kind, when a value in it is none
        known = [BUNDLED, *_ON_THE_HUB, *(f"random:{size}" for size in RANDOM_SIZES)]
        near = [one for one in get_close_matches(name, known, 1) if one != name]
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UsageError(
            f"cannot load model {name!r}{hint}: {_words(error)}"
        ) from error


def _class(config: Any, name: str) -> type[PreTrainedModel]:
    named = (getattr(config, "architectures", None) or ["GPT2LMHeadModel"])[0]
    if config.model_type != "gpt2":
        raise UnsupportedError(
            f"recon checks GPT-2, found {named} ({config.model_type}) in {name}"
        )
    kinds: dict[str, type[PreTrainedModel]] = {
        "GPT2LMHeadModel": GPT2LMHeadModel,
        "GPT2Model": GPT2Model,
    }
    if named not in kinds:
        raise UnsupportedError(
            f"recon checks GPT2LMHeadModel and GPT2Model, found {named} in {name}"
        )
    return kinds[named]


def _tokenizer(source: str) -> Tokenizer | None:
    with _quiet():
        try:
            found = AutoTokenizer.from_pretrained(source)
        except (OSError, ValueError, KeyError, TypeError, ImportError):
            return None
    # Where there is no vocabulary, transformers makes up one of special tokens only.
    words = len(found) - len(found.all_special_tokens)
    return found if words > 0 else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' own messages and bars off the terminal while it loads."""
    level = transformers_logging.get_verbosity()
    bars = bool(transformers_logging.is_progress_bar_enabled())
    disable_bars: Callable[[], None] = transformers_logging.disable_progress_bar
    enable_bars: Callable[[], None] = transformers_logging.enable_progress_bar
    transformers_logging.set_verbosity(logging.ERROR)
    disable_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            enable_bars()


def _words(error: BaseException) -> str:
    """Return an error's text in one line, with its kind where that says more."""
    kind = f"{type(error).__name__} " if isinstance(error, KeyError) else ""
    return kind + (" ".join(str(error).split())[:300] or type(error).__name__)


def _first_line(error: BaseException) -> str:
    return next(
        (line.strip() for line in str(error).splitlines() if line.strip()),
        type(error).__name__,
    )


# -- without weights -----------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Skeleton:
    """A model without weights, which can run, but computes shapes only.

    ``sizes`` are the letters of ``recon.sites``; ``inputs`` make every site fire that
    the model has.
    """

    model: PreTrainedModel
    sizes: Mapping[str, int]
    inputs: Mapping[str, Tensor]


def skeleton(name: str = BUNDLED) -> Skeleton:
    """Build what ``load_model`` would load, from its config alone; raises alike."""
    if name.startswith("random:"):
        config: Any = _random_config(name.removeprefix("random:"))
        kind: type[PreTrainedModel] = GPT2LMHeadModel
    else:
        source = str(BUNDLED_PATH) if name == BUNDLED else name
        _require_reachable(source, name)
        with _quiet():
            config = _config(source, name)
        kind = _class(config, name)
    # With a padding token transformers looks at the ids, and meta tensors hold none.
    config.pad_token_id = None
    try:
        with _quiet(), torch.device("meta"):
            model = kind(config)
    except Exception as error:  # of any kind, when the config's values do not fit
        raise UsageError(f"{name}: no model can be made: {_words(error)}") from error
    with torch.device("meta"):
        ids = torch.zeros(1, 1, dtype=torch.long)
        inputs = {"input_ids": ids, "token_type_ids": ids}
        if config.add_cross_attention:
            inputs["encoder_hidden_states"] = torch.zeros(1, 1, config.n_embd)
    sizes = {
        "D": config.n_embd,
        "H": config.n_head,
        "d": config.n_embd // config.n_head,
        "M": config.n_inner or 4 * config.n_embd,
        "V": config.vocab_size,
    }
    model.train(False)
    return Skeleton(model, sizes, inputs)


# -- random weights ------------------------------------------------------------


def _random(size: str, attention: str | None, seed: int) -> PreTrainedModel:
    return _built(_random_config(size), GPT2LMHeadModel, attention, seed)


def build(
    options: Mapping[str, Any],
    *,
    headed: bool = True,
    attention: str | None = None,
    seed: int = 0,
) -> PreTrainedModel:
    """Build a GPT-2 of ``options`` of its config, with seeded weights, in float32."""
    kind = GPT2LMHeadModel if headed else GPT2Model
    return _built(GPT2Config(**options), kind, attention, seed)


def _built(
    config: GPT2Config, kind: type[PreTrainedModel], attention: str | None, seed: int
) -> PreTrainedModel:
    config._attn_implementation = attention or "sdpa"
    with torch.random.fork_rng([]):
        model = kind(config)
    perturb(model, seed)
    return model


def _random_config(size: str) -> GPT2Config:
    if size not in RANDOM_SIZES:
        known = ", ".join(RANDOM_SIZES)
        raise UsageError(
            f"random:{size} is unknown; expected random: and one of {known}"
        )
    options: dict[str, Any] = dict(RANDOM_SIZES[size])
    if size == "tiny":
        options |= {
            "vocab_size": _TINY_VOCABULARY,
            "bos_token_id": 0,
            "eos_token_id": 0,
        }
    return GPT2Config(**options)


def perturb(model: PreTrainedModel, seed: int = 0) -> None:
    """Fill a GPT-2 with seeded weights whose scales are those of a trained one.

    Raw initialisation hides faults: its biases are zero, its LayerNorms the identity,
    and the two gelus agree to 1e-5. Here biases are N(0, 0.2), LayerNorm weights
    N(1, 0.2) and matrices wide enough that scores spread over several units.
    """
    generator = torch.Generator().manual_seed(seed)
    spread = math.sqrt(768 / model.config.n_embd)
    depth = math.sqrt(2 * model.config.n_layer)

    def fill(tensor: Tensor, mean: float, std: float) -> None:
        noise = torch.empty(tensor.shape, dtype=torch.float32)
        noise.normal_(mean, std, generator=generator)
        tensor.copy_(noise)

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".ln_" in name or name.startswith("ln_"):
                mean = 1.0 if name.endswith("weight") else 0.0
                fill(weight, mean, 0.2)
            elif name.endswith("bias"):
                fill(weight, 0.0, 0.2)
            elif name.endswith(("wte.weight", "wpe.weight", "lm_head.weight")):
                fill(weight, 0.0, 0.1)
            elif name.endswith("c_proj.weight"):
                fill(weight, 0.0, 0.3 * spread / depth)
            else:
                fill(weight, 0.0, 0.07 * spread)
