"""What to keep of each pass, and how; see ``recon.capture``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import index
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from recon.errors import UsageError

Keep: TypeAlias = Literal["last", "all"]
Positions: TypeAlias = Sequence[int] | slice | Tensor | int


@dataclass(frozen=True)
class Options:
    """What to keep of each pass, and how; see ``recon.capture``."""

    sites: str | Iterable[str] | None = None
    positions: Positions | None = None
    dtype: torch.dtype | None = None
    device: torch.device | str | None = None
    clone: bool = False
    grad: bool = False
    keep: Keep = "last"
    budget: int | None = None

    def __post_init__(self) -> None:
        if self.keep not in ("last", "all"):
            raise UsageError(f"keep={self.keep!r}: expected 'last' or 'all'")
        if self.budget is not None and self.budget <= 0:
            raise UsageError(
                f"budget={self.budget}: expected a number of bytes above 0"
            )
        if self.dtype is not None and not self.dtype.is_floating_point:
            raise UsageError(f"dtype={self.dtype}: expected a floating-point dtype")
        object.__setattr__(self, "positions", _as_positions(self.positions))

    @property
    def copies(self) -> bool:
        """Whether all that is kept is a copy."""
        return self.dtype is not None or self.device is not None or self.clone

    @property
    def by_reference(self) -> bool:
        """Whether tensors are kept as they are, without a copy."""
        return not self.copies and self.positions is None and self.budget is None

    @property
    def altered(self) -> str:
        """How captured tensors differ from the run's, in words; empty if not."""
        changes = [f"dtype={self.dtype}" if self.dtype else ""]
        changes += ["positions=" if self.positions is not None else ""]
        return ", ".join(change for change in changes if change)


def _as_positions(asked: Positions | None) -> tuple[int, ...] | slice | None:
    """Return token numbers as a tuple; raise UsageError for what are none."""
    if asked is None or isinstance(asked, slice):
        return asked
    numbers = asked.flatten().tolist() if isinstance(asked, Tensor) else asked
    try:
        several = list(numbers) if isinstance(numbers, Iterable) else [numbers]
        if several and not any(isinstance(number, bool) for number in several):
            return tuple(index(number) for number in several)
    except TypeError:
        pass
    raise UsageError(f"positions={asked!r}: expected token numbers or a slice of them")


def resolved(
    positions: Positions | None, length: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return which of ``length`` tokens are asked for, and the numbers of none of them.

    A later step of ``generate`` has one token: that it lacks the others is no error.
    """
    if isinstance(positions, slice):
        return tuple(range(length)[positions]), ()
    assert isinstance(positions, tuple)
    there = tuple(p % length for p in positions if -length <= p < length)
    return there, tuple(p for p in positions if not -length <= p < length)
