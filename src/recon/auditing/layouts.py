"""In which order do a tensor's axes lie? Found by comparing bits, told in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from math import prod

import torch
from torch import Tensor

from recon.auditing.content import Content, same
from recon.listed import listed

# Axes that may be written as one: the width of all heads, and the rows of a batch.
_MERGES = {("H", "d"), ("B", "T"), ("B", "H"), ("T", "B")}
_LOOKS = 64


@dataclass(frozen=True)
class Layout:
    """How a found tensor holds the values of a known one.

    ``axes`` names its axes in order; ``honest`` says that each of them is one axis of
    the known tensor, or a usual merger, with the features last. ``shuffled`` names an
    axis whose entries stand in another ``order``.
    """

    axes: tuple[str, ...]
    honest: bool
    words: str = ""
    shuffled: str = ""
    order: tuple[int, ...] = ()

    def __str__(self) -> str:
        if self.shuffled:
            return f"with its {_PLURAL.get(self.shuffled, self.shuffled)} {self.words}"
        return self.words or f"in layout {' '.join(self.axes)}"


_PLURAL = {"B": "rows", "T": "tokens", "H": "heads"}


def layout(known: Tensor, axes: tuple[str, ...], found: Tensor) -> Layout | None:
    """Return how ``found`` holds exactly the elements of ``known``, or None.

    Both have one dtype. Axes of length 1 are passed over.
    """
    named = [(name, size) for name, size in zip(axes, known.shape, strict=True)]
    kept = [n for n, (_, size) in enumerate(named) if size > 1]
    slim, names = known.squeeze(), tuple(named[n][0] for n in kept)
    target = found.squeeze()
    if slim.numel() != target.numel():
        return None
    for order in permutations(range(slim.ndim)):
        turned = slim.permute(order)
        if _equal(turned, target):
            told = _described(tuple(names[n] for n in order), turned.shape, target)
            return _strung(told, found) or told
    return _viewed(slim, names, target) or _shuffled(slim, names, target)


def _strung(told: Layout, found: Tensor) -> Layout | None:
    """Say if rows were put one after another along the tokens of a batch of one."""
    if "B*T" not in told.axes or found.ndim != len(told.axes) + 1 or len(found) > 1:
        return None
    return Layout(told.axes, False, "with the rows strung along the tokens of one")


def _viewed(slim: Tensor, names: tuple[str, ...], target: Tensor) -> Layout | None:
    """Find axes put in some order, viewed in other sizes, and put in another order."""
    if slim.ndim < 2 or target.ndim < 2:
        return None
    starts: dict[tuple[float, ...], list[tuple[int, ...]]] = {}
    for order in permutations(range(slim.ndim)):
        starts.setdefault(_start(slim.permute(order)), []).append(order)
    for back in permutations(range(target.ndim)):
        read = target.permute(back)
        for order in starts.get(_start(read), ()):
            if same(slim.permute(order).reshape(-1), read.reshape(-1)):
                sizes = "x".join(map(str, read.shape))
                said = f"{' '.join(names[n] for n in order)} viewed as {sizes}"
                return Layout(names, False, f"in a scrambled order ({said})")
    return None


def _start(tensor: Tensor) -> tuple[float, ...]:
    """Return the first values of a tensor, in the order of its axes."""
    several = tensor.reshape(-1)[:_LOOKS]
    return tuple(several.tolist())


def _equal(turned: Tensor, target: Tensor) -> bool:
    flat = target.reshape(-1)
    head = turned.shape and turned[(0,) * (turned.ndim - 1)][:_LOOKS]
    if isinstance(head, Tensor) and not same(head, flat[: len(head)]):
        return False
    return same(turned.reshape(-1), flat)


def _described(
    names: tuple[str, ...], sizes: tuple[int, ...], target: Tensor
) -> Layout:
    groups = _grouped(names, sizes, tuple(target.shape))
    if groups is None:
        words = f"with axes {' '.join(names)} read as {list(target.shape)}"
        return Layout(names, False, f"in a scrambled order ({words})")
    merged = all(len(g) == 1 or g in _MERGES for g in groups)
    features = not groups or names[-1] == _feature(names)
    told = tuple("*".join(g) for g in groups)
    if not merged or not features:
        return Layout(told, False, f"transposed, in layout {' '.join(told)}")
    return Layout(told, True)


def _feature(names: tuple[str, ...]) -> str:
    """Return the axis that should be last: whatever is no row, token or head."""
    others = [name for name in names if name not in ("B", "T", "H")]
    return others[0] if others else names[-1]


def _grouped(
    names: tuple[str, ...], sizes: tuple[int, ...], target: tuple[int, ...]
) -> list[tuple[str, ...]] | None:
    """Say which whole axes each axis of the target joins; None if it splits one."""
    groups: list[tuple[str, ...]] = []
    left = list(zip(names, sizes, strict=True))
    for wanted in target:
        taken: list[tuple[str, int]] = []
        while left and prod(size for _, size in taken) < wanted:
            taken.append(left.pop(0))
        if prod(size for _, size in taken) != wanted:
            return None
        groups.append(tuple(name for name, _ in taken))
    return groups


def _shuffled(slim: Tensor, names: tuple[str, ...], target: Tensor) -> Layout | None:
    """Find axes whose entries were put in another order."""
    for order in permutations(range(slim.ndim)):
        turned = slim.permute(order)
        if turned.shape != target.shape:
            continue
        turned_names = tuple(names[n] for n in order)
        for axis, change in _reorderings(turned, target):
            again = turned.index_select(axis, torch.tensor(change))
            if same(again, target):
                words = _in_words(change)
                return Layout(
                    turned_names, False, words, turned_names[axis], tuple(change)
                )
    return None


def _reorderings(turned: Tensor, target: Tensor) -> Iterator[tuple[int, list[int]]]:
    one, other = Content(turned), Content(target)
    for axis in range(turned.ndim):
        here, there = one.along(axis).tolist(), other.along(axis).tolist()
        if here != there and sorted(here) == sorted(there):
            yield axis, [here.index(found) for found in there]


def _in_words(order: list[int]) -> str:
    if order == sorted(order, reverse=True):
        return "reversed"
    return f"in the order [{listed(order, 8)}]"
