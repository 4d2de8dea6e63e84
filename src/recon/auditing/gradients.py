"""Which gradient is a tensor? Of which site, and of which of the backward passes?

Known are the gradients that reached the sites when the code itself went backward, what
they add up to over several backward passes, and each times the value of its site.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice

import torch
from torch import Tensor

from recon.auditing import forms
from recon.auditing.calls import Call
from recon.auditing.identify import Catalogue
from recon.auditing.near import Neighbourhood
from recon.auditing.quantities import GRADIENT, TIMES_VALUE, Quantity, axes_of
from recon.auditing.shelves import Shelf
from recon.sites import Site
from recon.trace import Trace

# More backward passes than these are not searched for sums from a later one on, nor for
# what is made of them.
_FEW = 4


class Gradients(Catalogue):
    """The gradients of one call, to look tensors up in; ``earlier`` are other calls."""

    def __init__(
        self,
        call: Call,
        earlier: Iterable[tuple[str, Call]] = (),
        mask: Tensor | None = None,
    ) -> None:
        super().__init__([("", one) for one in call.passes], mask)
        self._call, self._others = call, list(earlier)

    def __bool__(self) -> bool:
        return bool(self._call.backward)

    @cached_property
    def reached(self) -> frozenset[Site]:
        """The sites that a backward pass reached, and that the code did not edit.

        Of what is edited the gradient before the edit is known, not the one after it.
        """
        edited = {one.place for edits in self._call.edits for one in edits}
        return frozenset(one.site for one in self._arrived.quantities) - edited

    def of(self, place: Site, times: bool) -> Iterator[Quantity]:
        """Yield what is known of a site: gradients, or these ``times`` its value."""
        shelves = (self._multiplied,) if times else (self._arrived, self._together)
        for shelf in shelves:
            yield from (one for one in shelf.quantities if one.site == place)

    def reductions(
        self, place: Site, times: bool, shape: Sequence[int]
    ) -> Iterator[Quantity]:
        """Yield means, sums and the like of a site's gradients that have a shape."""
        form = TIMES_VALUE if times else GRADIENT
        for number, one in enumerate(self._traces(times)):
            if _held(one, place):
                for made in forms.reductions(one, self._mask, [place], shape):
                    passes = (number + 1,) if self._several else ()
                    yield replace(made, form=f"{form}, {made.form}", passes=passes)

    def forward(self, one: Quantity) -> Trace | None:
        """Return the forward pass whose gradient a quantity is."""
        for backward in self._call.backward:
            for number, gradients in backward.items():
                held = gradients.get(one.site)
                if held is not None and held.data_ptr() == one.tensor.data_ptr():
                    return self._call.passes[number]
        return None

    # -- what there is -----------------------------------------------------------

    @property
    def _several(self) -> bool:
        return len(self._call.backward) > 1

    def _traces(self, times: bool) -> Iterator[Trace]:
        for backward in self._call.backward:
            for number, gradients in backward.items():
                of = self._call.passes[number]
                yield _times(gradients, of) if times else gradients

    @cached_property
    def _arrived(self) -> Shelf:
        return Shelf(_each(self._call.backward, self._several))

    @cached_property
    def _together(self) -> Shelf:
        """What adds up where nobody sets gradients to zero, in the order of adding."""
        by_site: dict[Site, list[Quantity]] = defaultdict(list)
        for one in self._arrived.quantities if self._several else ():
            by_site[one.site].append(one)
        groups = list(by_site.values())
        return Shelf([*_sums(groups), *_row_by_row(groups)])

    @cached_property
    def _multiplied(self) -> Shelf:
        products = (
            {n: _times(one, self._call.passes[n]) for n, one in backward.items()}
            for backward in self._call.backward
        )
        return Shelf(_each(list(products), self._several, TIMES_VALUE))

    @cached_property
    def _earlier(self) -> Shelf:
        return Shelf(
            replace(one, run=run)
            for run, call in self._others
            for one in _each(call.backward, False)
        )

    def _shelves(self) -> Iterator[Shelf]:
        yield self._arrived
        yield self._together
        yield self._multiplied
        yield self._earlier

    @cached_property
    def _weights(self) -> Shelf:
        return Shelf(())

    def _neighbourhoods(
        self, wanted: tuple[Site, ...], found: Tensor
    ) -> Iterator[Neighbourhood]:
        yield self._near
        yield self._near_reduced(found.squeeze().shape)

    @cached_property
    def _near(self) -> Neighbourhood:
        shelves = (self._arrived, self._together, self._multiplied)
        known = [one for shelf in shelves for one in shelf.quantities]
        return Neighbourhood(known, sums=len(self._call.backward) <= _FEW)

    def _near_reduced(self, shape: Sequence[int]) -> Neighbourhood:
        """Return means, sums and the like with a shape, of the first passes."""
        made = (
            replace(one, form=f"{TIMES_VALUE if times else GRADIENT}, {one.form}")
            for times in (False, True)
            for trace in islice(self._traces(times), _FEW)
            for one in forms.reductions(trace, self._mask, _all_held(trace), shape)
        )
        return Neighbourhood(made, sums=False)


def _held(trace: Trace, place: Site) -> bool:
    """Whether a trace of gradients holds one: scores are no function of them."""
    return trace.origin(place) in ("captured", "view")


def _all_held(trace: Trace) -> list[Site]:
    return [place for place in trace.sites if _held(trace, place)]


def _times(gradients: Trace, values: Trace) -> Trace:
    """Return the products of gradients and values, site by site."""
    both = {
        place: one * values.tensors[place].detach()
        for place, one in gradients.tensors.items()
        if place in values.tensors and values.tensors[place].shape == one.shape
    }
    return replace(gradients, tensors=both)


def _each(
    backward: Sequence[Mapping[int, Trace]], several: bool, form: str = GRADIENT
) -> Iterator[Quantity]:
    for number, traces in enumerate(backward, 1):
        words = f", in backward pass {number}" if several else ""
        for trace in traces.values():
            for place in _all_held(trace):
                axes, passes = axes_of(place), (number,)
                yield Quantity(
                    place, trace[place], axes, f"{form}{words}", passes=passes
                )


def _row_by_row(groups: Iterable[Sequence[Quantity]]) -> Iterator[Quantity]:
    """Yield what passes on one row each, in turn, give for the batch."""
    for some in groups:
        rows = some[0].axes[0] == "B" and {one.tensor.shape[0] for one in some} == {1}
        if rows and len({one.tensor.shape for one in some}) == 1:
            whole = torch.cat([one.tensor for one in some])
            words = f"{GRADIENT}, of a backward pass for each row"
            yield replace(some[0], tensor=whole, form=words, passes=())


def _sums(groups: Iterable[Sequence[Quantity]]) -> Iterator[Quantity]:
    for some in groups:
        starts = range(len(some) - 1) if len(some) <= _FEW else range(1)
        for start in starts:
            total, passes = some[start].tensor, some[start].passes
            for one in some[start + 1 :]:
                if one.tensor.shape != total.shape:
                    break
                total, passes = total + one.tensor, (*passes, *one.passes)
                shown = f"{passes[0]} to {passes[-1]}"
                if len(set(passes)) > 1:
                    words = f"{GRADIENT}, of backward passes {shown} together"
                    yield replace(one, tensor=total, form=words, passes=passes)
