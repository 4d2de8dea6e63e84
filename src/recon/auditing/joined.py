"""Several sites side by side in one tensor, as probes want their features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from recon.auditing.bench import Bench
from recon.auditing.judgement import Judgement
from recon.listed import listed
from recon.sites import Site

# Of more parts than these, a tensor is taken for something else.
_MOST = 64
_MOST_SHOWN = 6


def as_joined(bench: Bench, one: Judgement) -> Judgement | None:
    """Judge a tensor whose features are those of several sites; None for another.

    A loose name, that of a block say, may well stand for parts of that block.
    """
    sites = joined(bench, one.tensor)
    if sites is None:
        return None
    found = side_by_side(sites)
    one = replace(one, sentence=f"`{one.name}` is {found}", found=found)
    if one.claim.strict:
        return replace(one, rule="wrong-shape")
    blocks = {reading.site.layer for reading in one.claim.readings}
    if blocks.isdisjoint(place.layer for place in sites):
        return replace(one, rule="wrong-layer")
    return replace(one, reading=None, notes=(("unclaimed", one.sentence),))


def side_by_side(sites: Sequence[Site]) -> str:
    """Name sites that stand side by side."""
    return f"{listed(sites, _MOST_SHOWN)}, side by side"


def joined(bench: Bench, tensor: Tensor) -> list[Site] | None:
    """Return the sites that stand side by side along a tensor's last axis, in order.

    Where two begin alike, the widest is taken.
    """
    known = [t for trace in bench.catalogue.current for t in trace.tensors.values()]
    widths = sorted({t.shape[-1] for t in known if t.ndim == 3}, reverse=True)
    if tensor.ndim < 2 or not tensor.is_floating_point():
        return None
    found: list[Site] = []
    start = 0
    while start < tensor.shape[-1]:
        place = _first(bench, tensor, start, widths)
        if place is None or len(found) == _MOST:
            return None
        site, width = place
        found.append(site)
        start += width
    return found if len(found) > 1 else None


def _first(
    bench: Bench, tensor: Tensor, start: int, widths: Sequence[int]
) -> tuple[Site, int] | None:
    """Return the site that begins at a column, and its width."""
    for width in widths:
        if start + width > tensor.shape[-1]:
            continue
        exact = bench.exact(tensor.narrow(-1, start, width), ())
        if exact is not None and not exact.quantity.run and not exact.quantity.form:
            whole = exact.quantity.tensor.shape[-1] == width
            if whole and exact.layout.honest and not exact.cut:
                return exact.quantity.site, width
    return None
