"""What is a tensor, really? Searched among everything that the model computed.

First by content, whatever the layout (``content``), then bit by bit (``layouts``), then
up to rounding, among multiples, sums and other formulas (``near``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice
from typing import TypeAlias

import torch
from torch import Tensor

from recon.auditing import forms, formulas, quantities
from recon.auditing.content import WHOLE, Content, Part, joined
from recon.auditing.layouts import Layout, layout
from recon.auditing.near import Near, Neighbourhood, allowance
from recon.auditing.quantities import Quantity
from recon.auditing.shelves import Shelf
from recon.auditing.sides import Side, marked
from recon.sites import Site
from recon.trace import Trace

Wanted: TypeAlias = Callable[[Quantity], bool]

_NARROW = (torch.bfloat16, torch.float16, torch.float32)
# A value such as a row of zeros is everywhere: more hits than these prove nothing.
_MOST_HITS = 48
_LONGEST_AXIS = 512
_MOST_TIES = 3
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
        more = ", ..." if len(others) > _MOST_TIES else ""
        shown = ", ".join(others[:_MOST_TIES])
        return f", as is {shown}{more}" if others else ""

    def _range(self) -> Iterator[str]:
        if self.picked:
            yield f", one piece of each {_WORDS.get(self.axis, self.axis)}"
        elif self.taken:
            name = _WORDS.get(self.axis, self.axis)
            yield f", {name}s {_several(self.taken)}"
        elif self.part.kind != "at":
            name = _WORDS.get(self.cut, f"index of {self.cut}")
            first = self.part.index[0]
            words = (
                f"from {first} on" if self.part.kind == "from" else f"before {first}"
            )
            yield f", {name}s {words}"


def _several(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:6]))
    return f"{shown}, ..." if len(numbers) > 6 else shown


class Catalogue:
    """Everything that some passes computed, to look tensors up in.

    ``passes`` gives each trace with the words for its run, empty for the pass that is
    asked for; the first of those is the one that formulas are applied to. ``sides`` are
    those of the edits in them.
    """

    def __init__(
        self,
        passes: Iterable[tuple[str, Trace]],
        mask: Tensor | None = None,
        sides: Sequence[Side] = (),
    ) -> None:
        self._passes = list(passes)
        self._mask = mask
        self._sides = sides

    @property
    def current(self) -> list[Trace]:
        """The passes of the run that is asked for."""
        return [trace for run, trace in self._passes if not run]

    @cached_property
    def _dtype(self) -> torch.dtype:
        return self._sites[0].tensor.dtype if self._sites else torch.float32

    # -- exactly ---------------------------------------------------------------

    def exact(self, found: Tensor, prefer: Wanted) -> Exact | None:
        """Return what a tensor is bit-identical to, a preferred quantity first.

        Of one that repeats itself along an axis, what is repeated.
        """
        if not self._passes or not found.is_floating_point():
            return None
        if (hit := self._found(found, prefer)) is not None:
            return hit
        for axis in range(found.ndim - 1):
            one = found.select(axis, 0)
            if found.shape[axis] > 1 and bool((found == one.unsqueeze(axis)).all()):
                return self.exact(one, prefer)
        return None

    def _found(self, found: Tensor, prefer: Wanted) -> Exact | None:
        odd: list[Exact] = []
        for values, cast in self._views(found.detach().cpu()):
            content = Content(values)
            for shelf in self._shelves():
                hit = _on(shelf, content, cast, prefer)
                if hit is not None and hit.layout.honest:
                    return hit
                odd += [hit] if hit is not None else []
        return odd[0] if odd else self._weight(found)

    def _weight(self, found: Tensor) -> Exact | None:
        """Return the weight of a module that a tensor is, whole."""
        values = found.detach().cpu()
        whole = (
            (number, WHOLE) for number in self._weights.whole(Content(values), None)
        )
        hits = _laid_out(self._weights, whole, values, None)
        return hits[0] if hits else None

    @cached_property
    def _weights(self) -> Shelf:
        return Shelf(quantities.weights(self.current[0]) if self.current else ())

    def _views(self, found: Tensor) -> Iterator[tuple[Tensor, torch.dtype | None]]:
        """Yield the tensor in the model's dtype, and the roundings it may have seen."""
        own = self._dtype
        if found.dtype == own or _holds(found, own):
            yield found.to(own), None
        for narrow in _NARROW:
            wider = torch.finfo(narrow).bits > torch.finfo(own).bits
            if wider or narrow == own:
                continue
            if found.dtype == narrow or _holds(found, narrow):
                yield found.to(narrow), narrow

    def _shelves(self) -> Iterator[Shelf]:
        """Yield where to look, the likeliest first; each is filled when first used."""
        yield self._computed
        yield self._missplit
        yield self._tables
        yield self._earlier

    @cached_property
    def _sites(self) -> list[Quantity]:
        recorded = (marked(trace, self._sides) for trace in self.current)
        others = (one.quantities() for one in self._sides if not one.own)
        return [*chain(*recorded), *chain(*others)]

    @cached_property
    def _computed(self) -> Shelf:
        return Shelf(self._sites)

    @cached_property
    def _missplit(self) -> Shelf:
        return Shelf(q for trace in self.current for q in forms.missplit(trace))

    @cached_property
    def _earlier(self) -> Shelf:
        return Shelf(
            q for run, trace in self._passes if run
            for q in quantities.computed(trace, run)
        )  # fmt: skip

    @cached_property
    def _tables(self) -> Shelf:
        return Shelf(quantities.tables(self.current[0]) if self.current else ())

    # -- up to rounding ----------------------------------------------------------

    def near(
        self, found: Tensor, wanted: Sequence[Site], prefer: Wanted
    ) -> Near | None:
        """Return what a tensor is up to rounding, else what it is nearest to.

        Other formulas are tried at the sites that are ``wanted``.
        """
        if not self.current or not found.is_floating_point():
            return None
        found = found.detach().cpu()
        allowed = max(allowance(found.dtype), allowance(self._dtype))
        answers = []
        target = self.arranged(found)
        for neighbourhood in self._neighbourhoods(tuple(wanted), target):
            answer = neighbourhood.explain(target, allowed, prefer)
            if answer is not None and answer.how != "nearest":
                return answer
            if answer is not None:
                answers.append(answer)
        return min(answers, key=lambda one: one.distance, default=None)

    def _neighbourhoods(
        self, wanted: tuple[Site, ...], found: Tensor
    ) -> Iterator[Neighbourhood]:
        """Yield where to search; the later ones are dearer to build."""
        yield self._near_sites
        yield self._formulas(wanted)
        yield self._pointwise(wanted)
        yield self._forms
        yield self._near_earlier

    def arranged(self, found: Tensor) -> Tensor:
        """Write the heads of ``B H T d`` or ``B T H d`` side by side, if it is that."""
        heads = self.current[0].facts.heads
        width = self.current[0].facts.width
        if found.ndim < 3 or found.shape[-1] * heads != width:
            return found
        if found.shape[-2] == heads:
            return found.flatten(-2)
        if found.shape[-3] == heads:
            return found.transpose(-2, -3).flatten(-2)
        return found

    @cached_property
    def _near_sites(self) -> Neighbourhood:
        trace = self.current[0]
        others = (q for q in self._sites if q.site not in trace)
        return Neighbourhood(
            [*quantities.computed(trace), *forms.missplit(trace), *others],
            quantities.parameters(trace),
        )

    @cached_property
    def _forms(self) -> Neighbourhood:
        trace = self.current[0]
        return Neighbourhood(
            [
                *quantities.computed(trace),
                *forms.reshaped(trace),
                *forms.reductions(trace, self._mask),
                *forms.layer_means(trace),
            ],
            quantities.parameters(trace),
        )

    @cached_property
    def _near_earlier(self) -> Neighbourhood:
        return Neighbourhood(self._earlier.quantities)

    def _pointwise(self, wanted: tuple[Site, ...]) -> Neighbourhood:
        made = [
            one
            for place in dict.fromkeys(wanted)
            for trace in [t for t in self.current if place in t][:1]
            for one in forms.pointwise(trace, place)
        ]
        return Neighbourhood(made, sums=False)

    def _formulas(self, wanted: tuple[Site, ...]) -> Neighbourhood:
        made = [
            one
            for place in dict.fromkeys(wanted)
            for trace in [t for t in self.current if place in t][:1]
            for one in formulas.other_formulas(trace, place, deep=True)
        ]
        return Neighbourhood(made, quantities.parameters(self.current[0]))


# -- on one shelf -----------------------------------------------------------------


def _on(
    shelf: Shelf, content: Content, cast: torch.dtype | None, prefer: Wanted
) -> Exact | None:
    """Look a tensor up among whole quantities, then their pieces, then selections."""
    values = content.tensor
    whole = ((number, WHOLE) for number in shelf.whole(content, cast))
    hit = _best(_laid_out(shelf, whole, values, cast), prefer)
    if hit is not None and hit.layout.honest:
        return hit
    pieces = islice(shelf.pieces(content, cast), _MOST_HITS)
    hit = _best(_laid_out(shelf, pieces, values, cast), prefer)
    return hit or _best(list(_selections(shelf, content, cast)), prefer)


def _laid_out(
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
    if known.shape != values.squeeze().shape or not torch.equal(
        known, values.squeeze()
    ):
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
    same = torch.equal(values, values.select(axis, 0).unsqueeze(axis).expand_as(values))
    return Exact(one, WHOLE, order, (), cast) if order is not None and same else None


def _holds(found: Tensor, narrow: torch.dtype) -> bool:
    """Whether a dtype represents every value of a tensor exactly."""
    if torch.finfo(found.dtype).bits <= torch.finfo(narrow).bits:
        return False
    back = found.to(narrow).to(found.dtype)
    return bool(((back == found) | found.isnan()).all())


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
