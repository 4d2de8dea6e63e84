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
class Content:
    """A tensor, and what it held when it was looked at."""

    tensor: Tensor
    checksum: int
    shape: torch.Size
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> Content:
        """Read a tensor once."""
        return cls(tensor, _checksum(tensor), tensor.shape, tensor.dtype)

    def equals(self, other: Content) -> bool:
        """Whether both held the same values, be they of one tensor or of two."""
        mine = (self.checksum, self.shape, self.dtype)
        return mine == (other.checksum, other.shape, other.dtype)

    def is_as(self, other: Content) -> bool:
        """Whether both are of one tensor that held the same values."""
        return self.tensor is other.tensor and self.equals(other)

    def put_back(self, values: Tensor) -> None:
        """Write the values that the tensor held, also where shape or dtype changed."""
        same = self.tensor.shape == values.shape and self.tensor.dtype == values.dtype
        if same and self.tensor.layout == values.layout == torch.strided:
            self.tensor.data.copy_(values)
        else:
            self.tensor.data = values.clone()


@dataclass(frozen=True, eq=False)
class Held(Content):
    """One parameter or buffer: which tensor, what it held, and what hung on it."""

    wants_grad: bool
    gradient: Content | None
    hooks: frozenset[int]

    def parts(self) -> Iterator[Content]:
        """Yield what may have to be written back: itself, and its gradient."""
        yield self
        if self.gradient is not None:
            yield self.gradient

    def hang_back(self) -> None:
        """Put gradient, flag and hooks back, but no values."""
        self.tensor.requires_grad_(self.wants_grad)
        gradient = None if self.gradient is None else self.gradient.tensor
        if _gradient(self.tensor) is not gradient:
            self.tensor.grad = gradient
        for hooks in _hooks(self.tensor):
            for key in [key for key in hooks if key not in self.hooks]:
                del hooks[key]


def weights_of(model: nn.Module) -> dict[str, Held]:
    """Return what a model holds by name; reads every tensor and gradient once."""
    named = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    # Tied weights have two names.
    once = {id(tensor): tensor for _, tensor in named}
    held = {key: _held(tensor) for key, tensor in once.items()}
    return {name: held[id(tensor)] for name, tensor in named}


def _held(tensor: Tensor) -> Held:
    gradient = _gradient(tensor)
    return Held(
        **vars(Content.of(tensor)),
        wants_grad=tensor.requires_grad,
        gradient=None if gradient is None else Content.of(gradient),
        hooks=frozenset(key for hooks in _hooks(tensor) for key in hooks),
    )


def _gradient(tensor: Tensor) -> Tensor | None:
    return tensor.grad if tensor.is_leaf else None


def _hooks(tensor: Tensor) -> Iterator[dict[int, Any]]:
    for table in ("_backward_hooks", "_post_accumulate_grad_hooks"):
        yield getattr(tensor, table, None) or {}


def _checksum(tensor: Tensor) -> int:
    """Return a number that nearly any change of content changes; cheap, no proof."""
    if tensor.is_meta or tensor.numel() == 0:
        return 0
    whole = tensor.detach() if tensor.layout == torch.strided else tensor.to_dense()
    flat = whole.detach().contiguous().reshape(-1)
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
