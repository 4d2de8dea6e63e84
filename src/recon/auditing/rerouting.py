"""What a part of a block makes of another state than the one it reads.

A block that is written anew may feed its MLP from before attention, as GPT-J does, or
leave a LayerNorm out. The operations from there up to the site are run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from recon import gpt2
from recon.auditing.quantities import Quantity, axes_of
from recon.facts import Identity
from recon.ops import Add, LayerNorm
from recon.sites import Site
from recon.trace import Trace

# The states of a block that code may hand to the wrong part of it.
_HANDED = ("resid_pre", "ln_1", "attn_out", "resid_mid", "ln_2", "resid_post")
_Laws = Mapping[Site, Identity]


def rerouted(trace: Trace, place: Site) -> Iterator[Quantity]:
    """Yield a site as computed from each other state that its part might have read."""
    if place.layer is None:
        return
    laws = {one.site: one for one in gpt2.identities(trace)}
    others = [one for part in _HANDED if (one := place.at(part)) in trace]
    for read in _read(laws, place):
        for other in others:
            fits = read in trace and trace[other].shape == trace[read].shape
            if fits and other not in (read, place):
                made = _again(laws, trace, place, {read: trace[other]})
                if made is not None:
                    words = f"made of {other} for {read}"
                    yield Quantity(place, made, axes_of(place), words)


def _read(laws: _Laws, place: Site) -> Iterator[Site]:
    """Yield what a part of a block starts from: its LayerNorm's output and input."""
    seen, left = set(), [place]
    while left:
        one = laws.get(left.pop())
        if one is None or isinstance(one.op, Add) or one.site in seen:
            continue
        seen.add(one.site)
        if isinstance(one.op, LayerNorm):
            yield from (one.site, *one.inputs)
        else:
            left += one.inputs


def _again(
    laws: _Laws, trace: Trace, place: Site, known: dict[Site, Tensor]
) -> Tensor | None:
    """Compute a site from the changed values that are ``known``; None if it cannot."""
    if place not in known:
        one = laws.get(place)
        if one is None or isinstance(one.op, Add):
            known[place] = trace[place]
        elif one.dropout or one.extra:
            return None
        else:
            inputs = [_again(laws, trace, each, known) for each in one.inputs]
            values = [value for value in inputs if value is not None]
            if len(values) < len(inputs):
                return None
            op: Callable[..., Tensor] = one.op
            known[place] = op(*values)
    return known[place]
