"""Judge a run by its baseline: bit-equal, rounding, or changed, and where first.

Bounds are local, and two correct runs differ by rounding that grew: so a site is judged
by its bound only where all its inputs are bit-equal. There both runs lie within their
bounds of one value, and a larger difference is a change. Where inputs moved, the site
``follows`` if it has the same law and the same weights, and both runs keep it; then the
whole run is a correct computation of what was recorded. See docs/baseline.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from recon.baseline import fingerprints
from recon.baseline.document import Baseline, Site
from recon.baseline.findings import Kind, Moved
from recon.compare import PASSES, Check


def moved_sites(
    then: Baseline, now: Baseline, failures: Sequence[Check] = ()
) -> Iterator[Moved]:
    """Yield each site of both that is not bit-equal, in the baseline's order.

    ``failures`` are the checks that the new run does not pass.
    """
    moved: set[str] = set()
    broken = {check.site: check for check in reversed(failures)}
    for name, before in then.sites.items():
        after = now.sites.get(name)
        if after is None or _same(before, after):
            continue
        moved.add(name)
        yield _judged(name, then, now, moved, broken.get(name))


def _same(before: Site, after: Site) -> bool:
    return (before.sha256, before.shape, before.dtype) == (
        after.sha256,
        after.shape,
        after.dtype,
    )


def _judged(
    name: str,
    then: Baseline,
    now: Baseline,
    moved: set[str],
    broken: Check | None,
) -> Moved:
    before, after = then.sites[name], now.sites[name]
    if form := _other_form(before, after):
        return Moved(name, "changed", math.inf, None, form)
    size = before.rms * math.sqrt(_count(before))
    distance = fingerprints.distance(before.projection, after.projection, size)
    ratio = None
    if before.inputs == after.inputs and not moved & set(before.inputs):
        ratio = _ratio(before, after)
    kind, why = _kind(before, after, ratio, _other_weights(before, then, now), broken)
    return Moved(name, kind, distance, ratio, why)


def _other_form(before: Site, after: Site) -> str:
    if before.dtype != after.dtype:
        return f"{after.dtype}, was {before.dtype}"
    if before.shape != after.shape:
        return f"shape {tuple(after.shape)}, was {tuple(before.shape)}"
    return ""


def _count(site: Site) -> int:
    return math.prod(site.shape)


def _ratio(before: Site, after: Site) -> float | None:
    """Return the difference of the projections over what correct runs may differ by.

    Each element of a run is within its bound of one value, since the inputs are the
    same bits: the difference is no longer than both vectors of bounds together.
    """
    if before.bound is None or after.bound is None:
        return None
    count = _count(before)
    most = max(abs(x) for s in (before, after) for x in (s.low, s.high))
    room = fingerprints.allowed(before.bound + after.bound, count)
    for site in (before, after):
        room += fingerprints.own_error(site.projection, most, count)
    gap = fingerprints.gap(before.projection, after.projection)
    return gap / room if math.isfinite(gap) and room > 0 else math.inf if gap else 0.0


def _kind(
    before: Site,
    after: Site,
    ratio: float | None,
    weights: str,
    broken: Check | None,
) -> tuple[Kind, str]:
    """Say what kind of move it is, and why that."""
    if broken is not None and broken.verdict != "unverified":
        return "changed", f"not what its inputs make, {told(broken)}"
    if before.law != after.law:
        # However near the two come on these inputs: they are not one function.
        return "changed", (
            f"by another law: {after.law or 'unknown'}, was {before.law or 'unknown'}"
        )
    if weights:
        return "weights", f"{weights} differs"
    if ratio is not None and ratio > 1.0:
        return "changed", (
            f"its inputs are bit-equal, and it is {ratio:.3g} times as far off as "
            "rounding allows"
        )
    unproven = [s.holds for s in (before, after) if s.holds not in PASSES]
    if unproven or not before.law:
        reason = "" if broken is None else f": {told(broken)}"
        return "unproven", f"its law is not certified in both runs{reason}"
    if ratio is not None:
        return "rounding", f"{ratio:.2g} of what rounding allows on bit-equal inputs"
    if before.inputs != after.inputs:
        return "unproven", "made from other sites than it was"
    if before.bound is None or after.bound is None:
        return "unproven", "nothing bounds its rounding"
    return "follows", "by the same law, kept in both runs"


def told(check: Check) -> str:
    """Say what a check found, without its site."""
    return check.describe().removeprefix(f"{check.site}: ")


def _other_weights(site: Site, then: Baseline, now: Baseline) -> str:
    """Name the first weight of a site that is not bit-equal."""
    for name in site.weights:
        before, after = then.weights.get(name), now.weights.get(name)
        if before is None or after is None or before.sha256 != after.sha256:
            return name
    return ""
