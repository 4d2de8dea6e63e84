"""What is a tensor, really? Searched among everything that the model computed.

First bit by bit, whatever the layout (``exact``), then up to rounding, among multiples,
sums and other formulas (``near``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain

import torch
from torch import Tensor

from recon.auditing import forms, formulas, quantities
from recon.auditing.content import WHOLE, Content
from recon.auditing.exact import Exact, Wanted, laid_out, on_shelf
from recon.auditing.near import Near, Neighbourhood, allowance
from recon.auditing.quantities import Quantity
from recon.auditing.shelves import Shelf
from recon.auditing.sides import Side, marked
from recon.sites import Site
from recon.trace import Trace

_NARROW = (torch.bfloat16, torch.float16, torch.float32)


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
                hit = on_shelf(shelf, content, cast, prefer)
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
        hits = laid_out(self._weights, whole, values, None)
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


def _holds(found: Tensor, narrow: torch.dtype) -> bool:
    """Whether a dtype represents every value of a tensor exactly."""
    if torch.finfo(found.dtype).bits <= torch.finfo(narrow).bits:
        return False
    back = found.to(narrow).to(found.dtype)
    return bool(((back == found) | found.isnan()).all())
