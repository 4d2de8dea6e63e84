"""Parameters and buffers: which objects, what they hold, and what hangs on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

# Numbers that a checksum multiplies at once: few enough to stay near the processor.
_AT_ONCE = 2**17
_ODD = 0x9E3779B97F4A7C1


@dataclass(frozen=True, eq=False)
class Held:
    """One parameter or buffer: which object, and what it holds."""

    tensor: Tensor
    checksum: int
    wants_grad: bool
    shape: torch.Size
    dtype: torch.dtype
    gradient: Tensor | None
    hooks: frozenset[int]

    def put_back(self, values: Tensor | None = None) -> None:
        """Put gradient, flag and hooks back, and ``values`` if they were lost.

        Also where shape or dtype changed.
        """
        self.tensor.requires_grad_(self.wants_grad)
        if self.tensor.grad is not self.gradient:
            self.tensor.grad = self.gradient
        for hooks in _hooks(self.tensor):
            for key in [key for key in hooks if key not in self.hooks]:
                del hooks[key]
        if values is None:
            return
        if self.tensor.shape == values.shape and self.tensor.dtype == values.dtype:
            self.tensor.data.copy_(values)
        else:
            self.tensor.data = values.clone()


def weights_of(model: nn.Module) -> dict[str, Held]:
    """Return what a model holds by name; reads every tensor once."""
    named = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    # Tied weights have two names.
    once = {id(tensor): tensor for _, tensor in named}
    held = {key: _held(tensor) for key, tensor in once.items()}
    return {name: held[id(tensor)] for name, tensor in named}


def _held(tensor: Tensor) -> Held:
    return Held(
        tensor,
        _checksum(tensor),
        tensor.requires_grad,
        tensor.shape,
        tensor.dtype,
        tensor.grad if tensor.is_leaf else None,
        frozenset(key for hooks in _hooks(tensor) for key in hooks),
    )


def _hooks(tensor: Tensor) -> Iterator[dict[int, Any]]:
    for table in ("_backward_hooks", "_post_accumulate_grad_hooks"):
        yield getattr(tensor, table, None) or {}


def _checksum(tensor: Tensor) -> int:
    """Return a number that nearly any change of content changes; cheap, no proof."""
    if tensor.is_meta or tensor.numel() == 0:
        return 0
    flat = tensor.detach().contiguous().reshape(-1)
    wide = flat.numel() * flat.element_size() % 8 == 0
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = flat.view(torch.int64 if wide else kinds[flat.element_size()])
    factors = _factors(bits.device)
    total = 0
    for some in bits.split(_AT_ONCE):
        total = total * _ODD + int(some.to(torch.int64).dot(factors[: some.numel()]))
    return total % 2**64


@cache
def _factors(device: torch.device) -> Tensor:
    """Return odd factors, all different: what changed places gives another sum."""
    return torch.arange(_AT_ONCE, device=device) * (2 * _ODD) + 1
