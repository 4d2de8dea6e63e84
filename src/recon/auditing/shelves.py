"""Quantities to look tensors up among, by content, each hashed in its turn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import chain, islice
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from recon.auditing.content import Content, Index, Int64, Part, Sums
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
        self._sums: dict[Cast, list[Sums]] = {}
        self._indexes: dict[Cast, Index] = {}

    def whole(self, content: Content, cast: Cast) -> list[int]:
        """Return the numbers of the quantities that have the content of a tensor."""
        return self._by_digest(cast).get(content.digest, [])

    def pieces(self, content: Content, cast: Cast) -> Iterator[tuple[int, Part]]:
        """Yield number and piece of all that has the content of a tensor."""
        return chain(*self._hashed(np.array([content.digest]), cast))

    def slices(
        self, content: Content, axis: int, cast: Cast, most: int
    ) -> list[list[tuple[int, Part]]]:
        """Give for each slice of a tensor number and piece of all that has its content.

        Whole quantities come first, and no more than ``most``; an empty list if there
        is a slice that nothing has. Equal slices, of zeros say, are looked up once.
        """
        wanted, which = np.unique(content.along(axis), return_inverse=True)
        found = [list(islice(one, most)) for one in self._hashed(wanted, cast)]
        return [found[number] for number in which.tolist()] if found else []

    def _hashed(self, wanted: Int64, cast: Cast) -> list[Iterator[tuple[int, Part]]]:
        if cast not in self._indexes:
            self._indexes[cast] = self._indexed(cast)
        return [self._all(one) for one in self._indexes[cast].find(wanted)]

    def _all(self, found: Iterator[tuple[int, Part]]) -> Iterator[tuple[int, Part]]:
        """Yield for the quantities that were indexed those that equal them, too."""
        for first, part in found:
            for number in self._equal[first]:
                yield number, part

    def _by_digest(self, cast: Cast) -> dict[int, list[int]]:
        if cast not in self._wholes:
            sums = [Sums(_as(one.tensor, cast)) for one in self.quantities]
            found: dict[int, list[int]] = {}
            for number, one in enumerate(sums):
                found.setdefault(one.digest, []).append(number)
            self._sums[cast], self._wholes[cast] = sums, found
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
        self._by_digest(cast)
        sums = self._sums.pop(cast)
        for number in self._equal:
            index.add(number, sums[number])
        return index


def _as(tensor: Tensor, cast: Cast) -> Tensor:
    return tensor if cast is None else tensor.to(cast)
