"""Find tensors by content, whatever their layout: sums of element hashes.

The hash of a tensor is the sum, modulo 2^64, of a hash of each element, so it does not
depend on shape or order, and the hash of a slice is a partial sum. One pass over the
bytes of a site thus gives the hashes of all its rows, tokens, heads and ranges of them;
a foreign tensor is looked up among these in one pass over its own. Hits are compared
bit by bit afterwards: a hash proves nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Int64: TypeAlias = npt.NDArray[np.int64]
Kind: TypeAlias = Literal["at", "from", "until"]

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
# Elements that are hashed at once: enough for two threads, few enough for their caches.
_AT_ONCE = 2**17
# Odd constants of the finaliser of MurmurHash3 (Appleby), as signed numbers. Its first
# shift would do nothing to the widened bits of a 4-byte number.
_FIRST = -0xAE502812AA7333
_SECOND = -0x3B314601E57A13AD


@dataclass(frozen=True)
class Part:
    """A piece of an entry: some axes held at one index, or a range of one axis.

    ``("at", (0, 1), (2, 5))`` holds axis 0 at 2 and axis 1 at 5; ``from`` and ``until``
    cut one axis.
    """

    kind: Kind = "at"
    axes: tuple[int, ...] = ()
    index: tuple[int, ...] = ()

    def of(self, tensor: Tensor) -> Tensor:
        """Return the piece, with the axes that were held kept at length 1."""
        for axis, place in zip(self.axes, self.index, strict=True):
            if self.kind == "at":
                tensor = tensor.narrow(axis, place, 1)
            elif self.kind == "from":
                tensor = tensor.narrow(axis, place, tensor.shape[axis] - place)
            else:
                tensor = tensor.narrow(axis, 0, place)
        return tensor


WHOLE = Part()


def hashes(tensor: Tensor) -> Tensor:
    """Return a hash (int64) for each element; equal values of one dtype hash alike."""
    values = tensor.detach().cpu().contiguous()
    found = torch.empty(values.shape, dtype=torch.int64)
    flat, into = values.reshape(-1), found.reshape(-1)
    for start in range(0, len(flat), _AT_ONCE):
        _mix(flat[start : start + _AT_ONCE], into[start : start + _AT_ONCE])
    return found


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one dtype hold the same values; NaN equals NaN here."""
    if one.shape != other.shape:
        return False
    if torch.equal(one, other):
        return True
    unlike = one != other
    return bool((one.isnan() & other.isnan())[unlike].all())


def _mix(values: Tensor, into: Tensor) -> None:
    # Adding zero makes a negative zero positive.
    into.copy_((values + 0).view(_BITS[values.element_size()]))
    into.mul_(_FIRST).bitwise_xor_(into >> 32)
    into.mul_(_SECOND).bitwise_xor_(into >> 29)


class Content:
    """What a tensor holds, hashed once: as a whole, and slice by slice."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    @cached_property
    def _each(self) -> Tensor:
        return hashes(self.tensor)

    @cached_property
    def digest(self) -> int:
        """The hash of the whole tensor."""
        return int(self._each.sum())

    def along(self, axis: int) -> Int64:
        """Return the hash of each slice along an axis."""
        others = [n for n in range(self._each.ndim) if n != axis]
        summed: Int64 = (self._each.sum(others) if others else self._each).numpy()
        return summed


def digest(tensor: Tensor) -> int:
    """Return the hash of a whole tensor."""
    return Content(tensor).digest


class Sums:
    """Partial sums of a tensor's hashes, from which those of its pieces are summed.

    ``leading`` sums over the last axis alone, ``features`` over all others, and
    ``rows``, where there are more than two, over all but the first and the last.
    """

    def __init__(self, tensor: Tensor) -> None:
        each = hashes(tensor)
        last = each.ndim - 1
        self.leading = each.sum(last)
        rows = each.sum(list(range(1, last))) if last > 1 else each
        self.rows = rows if last > 1 else None
        self.features = rows.sum(0) if last else each
        self.digest = int(self.leading.sum())


class Index:
    """The hashes of the pieces of many tensors; ``find`` says which have some."""

    def __init__(self) -> None:
        self._hashes: list[Int64] = []
        self._owners: list[tuple[int, Kind, tuple[int, ...], tuple[int, ...], int]] = []
        self._sorted: tuple[Int64, Int64] | None = None

    def add(self, number: int, sums: Sums) -> None:
        """Enter a tensor under a number. All axes but the last are taken apart."""
        leading, features = sums.leading, sums.features
        last = leading.ndim
        for size in range(last + 1):
            for axes in combinations(range(last), size):
                gone = [n for n in range(last) if n not in axes]
                self._enter(
                    number, "at", axes, leading.sum(gone) if gone else leading, 0
                )
        if sums.rows is not None:
            # A feature of one row: the last axis was taken for that of the tokens.
            self._enter(number, "at", (0, last), sums.rows, 0)
        self._enter(number, "at", (last,), features, 0)
        for axis in range(last + 1):
            others = [n for n in range(last) if n != axis]
            line = features
            if axis < last:
                line = leading.sum(others) if others else leading
            totals = line.cumsum(0)
            self._enter(number, "until", (axis,), totals[:-1], 1)
            self._enter(number, "from", (axis,), totals[-1] - totals[:-1], 1)
        self._sorted = None

    def _enter(
        self, number: int, kind: Kind, axes: tuple[int, ...], found: Tensor, first: int
    ) -> None:
        self._hashes.append(found.reshape(-1).numpy())
        self._owners.append((number, kind, axes, tuple(found.shape), first))

    def find(self, wanted: Int64) -> list[Iterator[tuple[int, Part]]]:
        """Give for each hash number and piece of all that has it, whole tensors first.

        An empty list if there is a hash that nothing has.
        """
        if self._sorted is None:
            self._sort()
        assert self._sorted is not None
        values, order = self._sorted
        low = np.searchsorted(values, wanted, "left")
        high = np.searchsorted(values, wanted, "right")
        if not bool((low < high).all()):
            return []
        return [
            self._pieces(sorted(order[first:end].tolist()))
            for first, end in zip(low.tolist(), high.tolist(), strict=True)
        ]

    def _pieces(self, positions: Iterable[int]) -> Iterator[tuple[int, Part]]:
        for position in positions:
            group = int(np.searchsorted(self._starts, position, "right")) - 1
            number, kind, axes, shape, first = self._owners[group]
            inside = position - int(self._starts[group])
            places = np.unravel_index(inside, shape) if shape else ()
            yield number, Part(kind, axes, tuple(int(p) + first for p in places))

    def _sort(self) -> None:
        lengths = [len(one) for one in self._hashes]
        self._starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        joined = np.concatenate(self._hashes) if self._hashes else np.empty(0, np.int64)
        order = np.argsort(joined)
        self._sorted = joined[order], order


def joined(parts: Iterable[Part]) -> tuple[int, list[int]] | None:
    """Return axis and indices of pieces that each hold one index of the same axis."""
    several = list(parts)
    if any(part.kind != "at" or len(part.axes) != 1 for part in several):
        return None
    axes = {part.axes[0] for part in several}
    return (axes.pop(), [part.index[0] for part in several]) if len(axes) == 1 else None
