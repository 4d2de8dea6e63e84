"""How a command starts: quiet libraries, a loaded model."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from recon.cli import streams

if TYPE_CHECKING:
    from recon.cli.options import Attn, Dtype
    from recon.models import Loaded


def silence_libraries() -> None:
    """Keep the libraries' log lines off stderr, unless the user asks for them."""
    for library in ("TRANSFORMERS", "HF_HUB"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")


def load(
    name: str, *, dtype: Dtype | None, attn: Attn | None, device: str, seed: int
) -> Loaded:
    """Load a model as its options say; raises UsageError as ``load_model`` does."""
    with streams.waiting(f"loading {name}"):
        from recon.models import DTYPES, load_model

        wanted = None if dtype is None else DTYPES[dtype]
        return load_model(name, dtype=wanted, attention=attn, device=device, seed=seed)
