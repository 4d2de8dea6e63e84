"""The two sides of an edit: what a site held before it, and what the pass goes on with.

A capture beside an edit may honestly be either; which one depends on what was hooked
first, so it is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from recon.auditing.passes import same_bits
from recon.auditing.quantities import Quantity, axes_of, computed
from recon.recorder import Edit
from recon.sites import Site
from recon.trace import Trace, sources

BEFORE, AFTER = "before the code's edit", "after the code's edit"


@dataclass(frozen=True, eq=False)
class Side:
    """One side of an edit: a pass in which the site shows it, and in words which.

    ``own`` says that the pass was recorded on this side, ``edit`` which edit it was.
    """

    trace: Trace
    place: Site
    words: str
    own: bool
    edit: Edit

    def quantities(self) -> Iterator[Quantity]:
        """Yield the site on this side of the edit, and what is cut out of it."""
        for place in self.trace.sites:
            if _shows(self.trace, place, self.place):
                yield Quantity(
                    place, self.trace[place], axes_of(place), side=self.words
                )


def sides(trace: Trace, edits: Sequence[Edit]) -> Iterator[Side]:
    """Yield both sides of every edit in a pass."""
    for one in edits:
        held = trace.tensors.get(one.place)
        late = held is not None and same_bits(held, one.after)
        before = one.before
        if before is None and not late:
            before = held  # edited in place, after recon had copied it
        if before is not None:
            yield _side(trace, one, before, _earlier(one))
        yield _side(trace, one, one.after, "" if one.around else AFTER)


def _earlier(edit: Edit) -> str:
    """Say what came before an edit, or of a module that stood there, what is inside."""
    if not edit.around:
        return BEFORE
    made = f"as {edit.inner} makes it inside of the {edit.around}"
    return f"{made}, which the code put there" if edit.put else made


def _side(trace: Trace, edit: Edit, tensor: Tensor, words: str) -> Side:
    held = trace.tensors.get(edit.place)
    own = held is not None and same_bits(held, tensor)
    shown = trace if own else trace.replace(edit.place, tensor)
    return Side(shown, edit.place, words, own, edit)


def marked(trace: Trace, known: Iterable[Side]) -> Iterator[Quantity]:
    """Yield every site of a pass, marked where it was recorded beside an edit."""
    own = [one for one in known if one.own and one.trace is trace]
    for quantity in computed(trace):
        beside = (one for one in own if _shows(trace, quantity.site, one.place))
        words = next((one.words for one in beside), "")
        yield replace(quantity, side=words) if words else quantity


def _shows(trace: Trace, place: Site, edited: Site) -> bool:
    """Whether a site of a trace is the edited one, or was cut or made out of it."""
    return place == edited or (
        edited in sources(place) and trace.origin(place) in ("view", "derived")
    )
