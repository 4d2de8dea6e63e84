"""Quantities to look tensors up among, by content, each hashed in its turn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from recon.auditing.content import Index, Part, digest
from recon.auditing.quantities import Quantity

Cast: TypeAlias = torch.dtype | None


class Shelf:
    """Some quantities: found by the hash of the whole, or of any piece of them.

    Equal ones, such as what leaves a block and enters the next, are indexed once. With
    a ``cast`` the quantities are rounded to that dtype first.
    """

    def __init__(self, quantities: Iterable[Quantity]) -> None:
        self.quantities = list(quantities)
        self._wholes: dict[Cast, dict[int, list[int]]] = {}
        self._indexes: dict[Cast, Index] = {}

    def whole(self, values: Tensor, cast: Cast) -> list[int]:
        """Return the numbers of the quantities that have the content of a tensor."""
        return self._by_digest(cast).get(digest(values), [])

    def pieces(self, values: Tensor, cast: Cast) -> Iterator[tuple[int, Part]]:
        """Yield number and piece of all that has the content of a tensor."""
        return self.hashed(digest(values), cast)

    def hashed(self, wanted: int, cast: Cast) -> Iterator[tuple[int, Part]]:
        """Yield number and piece of all that has a hash, whole quantities first."""
        if cast not in self._indexes:
            self._indexes[cast] = self._indexed(cast)
        for first, part in self._indexes[cast].find(wanted):
            for number in self._equal[first]:
                yield number, part

    def _by_digest(self, cast: Cast) -> dict[int, list[int]]:
        if cast not in self._wholes:
            found: dict[int, list[int]] = {}
            for number, one in enumerate(self.quantities):
                found.setdefault(digest(_as(one.tensor, cast)), []).append(number)
            self._wholes[cast] = found
        return self._wholes[cast]

    @cached_property
    def _equal(self) -> dict[int, list[int]]:
        """Give, for one quantity of each content and shape, all that equal it."""
        groups: dict[int, list[int]] = {}
        for numbers in self._by_digest(None).values():
            by_shape: dict[torch.Size, list[int]] = {}
            for number in numbers:
                shape = self.quantities[number].tensor.shape
                by_shape.setdefault(shape, []).append(number)
            groups |= {several[0]: several for several in by_shape.values()}
        return groups

    def _indexed(self, cast: Cast) -> Index:
        index = Index()
        for number in self._equal:
            index.add(number, _as(self.quantities[number].tensor, cast))
        return index


def _as(tensor: Tensor, cast: Cast) -> Tensor:
    return tensor if cast is None else tensor.to(cast)
