"""What functions of the corpus leave in the process is undone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.modules import module as torch_module
from transformers.models.gpt2 import modeling_gpt2

# What a function of the corpus may replace for the whole process.
PATCHED = (
    (modeling_gpt2, "eager_attention_forward"),
    (modeling_gpt2.GPT2MLP, "forward"),
)


@contextmanager
def contained() -> Iterator[None]:
    """Undo what a function leaves in the process, whether or not the audit does."""
    patched = [(owner, name, getattr(owner, name)) for owner, name in PATCHED]
    held = {
        name: dict(hooks)
        for name, hooks in vars(torch_module).items()
        if name.startswith("_global_") and isinstance(hooks, dict)
    }
    grad, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    try:
        with torch.random.fork_rng([]):
            yield
    finally:
        torch.set_grad_enabled(grad)
        torch.set_default_dtype(dtype)
        torch.set_autocast_enabled("cpu", False)
        for owner, name, value in patched:
            setattr(owner, name, value)
        for name, hooks in held.items():
            getattr(torch_module, name).clear()
            getattr(torch_module, name).update(hooks)
