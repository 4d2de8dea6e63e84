"""What a tensor is bit by bit: a piece of a quantity, in some layout, on one shelf."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeAlias

import torch
from torch import Tensor

from recon.auditing.content import WHOLE, Content, Part, joined, same
from recon.auditing.layouts import Layout, layout
from recon.auditing.quantities import Quantity
from recon.auditing.shelves import Shelf
from recon.listed import listed

Wanted: TypeAlias = Callable[[Quantity], bool]

# A value such as a row of zeros is everywhere: more hits than these prove nothing.
_MOST_HITS = 48
_LONGEST_AXIS = 512
_MOST_TIES = 3
_MOST_TAKEN = 6
_WORDS = {"B": "row", "T": "token", "H": "head", "N": "position", "V": "token id"}


@dataclass(frozen=True, eq=False)
class Exact:
    """Bit-identical to (a piece of) a quantity.

    ``cast`` names the dtype that the values were rounded to on the way, ``taken`` the
    indices along ``axis`` where several single ones were taken, ``picked`` the pieces
    that were put together where each holds several axes, as a token of each row does.
    """

    quantity: Quantity
    part: Part
    layout: Layout
    ties: tuple[Quantity, ...] = ()
    cast: torch.dtype | None = None
    axis: str = ""
    taken: tuple[int, ...] = ()
    picked: tuple[Part, ...] = ()

    @property
    def held(self) -> dict[str, int]:
        """Axes that are held at one index, by name."""
        if self.part.kind != "at":
            return {}
        names = (self.quantity.axes[axis] for axis in self.part.axes)
        return dict(zip(names, self.part.index, strict=True))

    @property
    def cut(self) -> str:
        """The axis of which only a range or a selection is there; empty for none."""
        if self.taken:
            return self.axis
        whole = self.part.kind == "at"
        return "" if whole else self.quantity.axes[self.part.axes[0]]

    @property
    def words(self) -> str:
        """Say what it is: ``h.3.attn.k, row 0 (bit-identical), in layout T H d``."""
        cast = f", rounded to {str(self.cast).removeprefix('torch.')}"
        pieces = [
            self.quantity.label,
            *(f", {_WORDS.get(a, f'index of {a}')} {i}" for a, i in self.held.items()),
            *self._range(),
            cast if self.cast is not None else " (bit-identical)",
            f", {self.layout}",
        ]
        return "".join(pieces)

    @property
    def tied(self) -> str:
        """Say what else has the same bits, as dropout in eval mode; empty if none."""
        labels = (one.label for one in self.ties)
        others = [one for one in dict.fromkeys(labels) if one != self.quantity.label]
        return f", as is {listed(others, _MOST_TIES)}" if others else ""

    def _range(self) -> Iterator[str]:
        if self.picked:
            yield f", one piece of each {_WORDS.get(self.axis, self.axis)}"
        elif self.taken:
            name = _WORDS.get(self.axis, self.axis)
            yield f", {name}s {listed(self.taken, _MOST_TAKEN)}"
        elif self.part.kind != "at":
            name = _WORDS.get(self.cut, f"index of {self.cut}")
            first = self.part.index[0]
            words = (
                f"from {first} on" if self.part.kind == "from" else f"before {first}"
            )
            yield f", {name}s {words}"


# -- on one shelf -----------------------------------------------------------------


def on_shelf(
    shelf: Shelf, content: Content, cast: torch.dtype | None, prefer: Wanted
) -> Exact | None:
    """Look a tensor up among whole quantities, then their pieces, then selections."""
    values = content.tensor
    whole = ((number, WHOLE) for number in shelf.whole(content, cast))
    hit = _best(laid_out(shelf, whole, values, cast), prefer)
    if hit is not None and hit.layout.honest:
        return hit
    pieces = islice(shelf.pieces(content, cast), _MOST_HITS)
    hit = _best(laid_out(shelf, pieces, values, cast), prefer)
    return hit or _best(list(_selections(shelf, content, cast)), prefer)


def laid_out(
    shelf: Shelf,
    hits: Iterable[tuple[int, Part]],
    values: Tensor,
    cast: torch.dtype | None,
) -> list[Exact]:
    """Compare bit by bit what has the hash of a tensor, and say how it lies."""
    found = []
    for number, part in hits:
        one = shelf.quantities[number]
        known = part.of(one.tensor)
        known = known if cast is None else known.to(cast)
        if (order := layout(known, one.axes, values)) is not None:
            found.append(Exact(one, part, order, cast=cast))
    return found


def _selections(
    shelf: Shelf, content: Content, cast: torch.dtype | None
) -> Iterator[Exact]:
    """Find what puts together several indices of one axis, as this tensor does."""
    values = content.tensor
    for axis in range(values.ndim):
        if not 1 < values.shape[axis] <= _LONGEST_AXIS:
            continue
        places = shelf.slices(content, axis, cast, _MOST_HITS)
        shared = {n for n, _ in places[0]} if places else set()
        for number in sorted(shared):
            parts = [
                next((p for n, p in some if n == number), WHOLE) for some in places
            ]
            one = shelf.quantities[number]
            if hit := _put_together(one, parts, axis, values, cast):
                yield hit


def _put_together(
    one: Quantity,
    parts: Sequence[Part],
    axis: int,
    values: Tensor,
    cast: torch.dtype | None,
) -> Exact | None:
    held = joined(parts)
    if held is None:
        return _picked(one, parts, axis, values, cast)
    chosen = one.tensor.index_select(held[0], torch.tensor(held[1]))
    order = layout(chosen if cast is None else chosen.to(cast), one.axes, values)
    if order is None:
        return None
    name = one.axes[held[0]]
    return Exact(one, WHOLE, order, (), cast, name, tuple(held[1]))


def _picked(
    one: Quantity,
    parts: Sequence[Part],
    axis: int,
    values: Tensor,
    cast: torch.dtype | None,
) -> Exact | None:
    """Put together pieces that hold several axes each, as one token of every row."""
    if not parts[0].axes:
        return _repeated(one, parts, axis, values, cast)
    if any(part.kind != "at" or part.axes != parts[0].axes for part in parts):
        return None
    pieces = [part.of(one.tensor).squeeze() for part in parts]
    whole = torch.stack(pieces, min(axis, pieces[0].ndim))
    known = whole if cast is None else whole.to(cast)
    if not same(known, values.squeeze()):
        return None
    name = one.axes[parts[0].axes[0]]
    kept = tuple(a for n, a in enumerate(one.axes) if n not in parts[0].axes)
    order = Layout((name, *kept), True)
    return Exact(one, WHOLE, order, (), cast, name, picked=tuple(parts))


def _repeated(
    one: Quantity,
    parts: Sequence[Part],
    axis: int,
    values: Tensor,
    cast: torch.dtype | None,
) -> Exact | None:
    """Find one tensor written several times, as positions are for each row."""
    if any(part.axes for part in parts):
        return None
    known = one.tensor if cast is None else one.tensor.to(cast)
    order = layout(known, one.axes, values.select(axis, 0))
    each = values.select(axis, 0).unsqueeze(axis).expand_as(values)
    if order is None or not same(values, each):
        return None
    return Exact(one, WHOLE, order, (), cast)


def _piece(hit: Exact) -> tuple[object, ...]:
    return hit.part, hit.axis, hit.taken, hit.picked, hit.layout.words, hit.layout.order


def _best(hits: Sequence[Exact], prefer: Wanted) -> Exact | None:
    """Choose among equal contents: preferred, of this run, whole, in honest order."""
    if not hits:
        return None

    def rank(hit: Exact) -> tuple[bool, ...]:
        one = hit.quantity
        return (
            not hit.layout.honest,
            not prefer(one),
            bool(one.run),
            bool(hit.part.axes),
            bool(one.form),
        )

    ordered = sorted(hits, key=rank)
    first = ordered[0]
    ties = tuple(
        hit.quantity
        for hit in ordered[1:]
        if hit.quantity.run == first.quantity.run and _piece(hit) == _piece(first)
    )
    return replace(first, ties=ties)
