"""Where a model comes from: bundled, a hub id, a directory, or random weights."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from recon.errors import UnsupportedError, UsageError
from recon.models.checkpoints import (
    Tokenizer,
    config_of,
    require_buildable,
    tokenizer_of,
    weighted,
)
from recon.models.seeded import (
    ACTIVATIONS,
    RANDOM_SIZES,
    build,
    perturb,
    random_model,
)
from recon.models.skeletons import Skeleton, random_skeleton, skeleton_of

__all__ = [
    "ACTIVATIONS",
    "BUNDLED",
    "BUNDLED_PATH",
    "DTYPES",
    "RANDOM_SIZES",
    "Loaded",
    "Skeleton",
    "Tokenizer",
    "build",
    "load_model",
    "perturb",
    "skeleton",
]

BUNDLED = "bundled"
BUNDLED_PATH = Path(str(files("recon"))) / "data" / "gpt2-topics"
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_RANDOM = "random:"
# What a name may be misspelt from; the hub has the sizes under their own names, too.
_ON_THE_HUB = [size for size in RANDOM_SIZES if size != "tiny"]
_NAMES = [BUNDLED, *_ON_THE_HUB, *(f"{_RANDOM}{size}" for size in RANDOM_SIZES)]


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model, its name, and its tokenizer where it has one."""

    name: str
    model: PreTrainedModel
    tokenizer: Tokenizer | None

    @property
    def random(self) -> bool:
        """Whether the weights are random, so that text means nothing to the model."""
        return self.name.startswith(_RANDOM)

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
    if name.startswith(_RANDOM):
        model = random_model(name.removeprefix(_RANDOM), attention, seed)
        nn.Module.to(model, dtype or torch.float32)
        tokenizer = tokenizer_of(str(BUNDLED_PATH))
    else:
        model = _pretrained(name, dtype, attention)
        tokenizer = tokenizer_of(_source(name))
    try:
        nn.Module.to(model, place)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {device!r}: {_first_line(error)}") from error
    model.train(False)
    return Loaded(name, model, tokenizer)


def skeleton(name: str = BUNDLED) -> Skeleton:
    """Say what ``load_model`` would load, from its config alone; raises alike."""
    if name.startswith(_RANDOM):
        return random_skeleton(name.removeprefix(_RANDOM))
    config, kind = config_of(_source(name), name, _NAMES)
    return skeleton_of(config, kind, name)


def _pretrained(
    name: str, dtype: torch.dtype | None, attention: str | None
) -> PreTrainedModel:
    config, kind = config_of(_source(name), name, _NAMES)
    require_buildable(config, kind, name)
    if attention is not None:
        config._attn_implementation = attention
    return weighted(_source(name), name, config, kind, dtype)


def _source(name: str) -> str:
    return str(BUNDLED_PATH) if name == BUNDLED else name


def _device(name: str) -> torch.device:
    try:
        place = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device {name!r}: {_first_line(error)}") from error
    if place.type == "meta":
        raise UsageError("device 'meta' computes shapes only: nothing to verify")
    return place


def _first_line(error: BaseException) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)
