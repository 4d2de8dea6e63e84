"""A check of a baseline as a page: what moved, where first, and how far."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from recon.report.baseline import circumstances
from recon.report.foreign import visible
from recon.report.html.blocks import by_block
from recon.report.html.chart import Chart, chart
from recon.report.html.grid import Cell, Detail, Section
from recon.report.html.page import Head, page

if TYPE_CHECKING:
    from recon.baseline.document import Site
    from recon.baseline.findings import BaselineReport, Finding, Moved

_ADVICE = {
    "equal": "Nothing to do: every bit is that of the baseline.",
    "rounding": "Nothing to do: rounding that began here, within the bounds of both "
    "runs.",
    "follows": "Nothing to do here: it follows, by the law that both runs keep, from "
    "what moved before it.",
    "weights": "Its own weights differ: load those that were recorded, or accept them.",
    "changed": "Look at what the model computes here. If it is meant, accept it with "
    "recon baseline check --update.",
    "unproven": "That it is only rounding cannot be proven: the reason says what is "
    "missing. On the machine of the baseline bits compare.",
    "vanished": "Look for a module that was removed, renamed or no longer runs.",
    "appeared": "If it is meant, record it with recon baseline check --update.",
}


def baseline_html(report: BaselineReport, *, again: str = "") -> str:
    """Return a check as one HTML file; ``again`` is the command that made it."""
    head = Head(
        title=f"recon baseline check: {visible(report.file)}",
        verdict=report.verdict.upper(),
        good=report.verdict != "changed",
        words=visible(report.conclusion()),
        facts=circumstances(report),
        again=again,
        findings=len(report.findings),
    )
    moved = {one.site: one for one in report.moved}
    sites = {**report.then.sites, **report.now.sites}
    kinds = {name: _kind(name, report, moved) for name in sites}

    def cell(name: str, held: list[str]) -> Cell:
        return _cell(name, held, kinds, moved, report)

    return page(
        "baseline",
        head,
        findings=[_card(one) for one in report.findings],
        notes=[visible(one) for one in report.notes],
        map=by_block([(name, name) for name in sites], cell),
        chart=_growth(report, moved),
        moved=[_row(one) for one in report.moved],
    )


def _card(one: Finding) -> dict[str, object]:
    return {
        "severity": one.rule.severity,
        "code": one.rule.code,
        "name": one.rule.name,
        "message": visible(one.message),
        "mend": one.rule.mend,
        "meaning": one.rule.meaning,
        "places": [visible(place) for place in one.places],
    }


def _row(one: Moved) -> tuple[str, ...]:
    ratio = "" if one.ratio is None else f"{one.ratio:.3g}"
    return visible(one.site), one.kind, f"{one.distance:.3g}", ratio, visible(one.why)


# -- the map -------------------------------------------------------------------


def _kind(name: str, report: BaselineReport, moved: Mapping[str, Moved]) -> str:
    if name not in report.now.sites:
        return "vanished"
    if name not in report.then.sites:
        return "appeared"
    return moved[name].kind if name in moved else "equal"


def _cell(
    name: str,
    held: list[str],
    kinds: Mapping[str, str],
    moved: Mapping[str, Moved],
    report: BaselineReport,
) -> Cell:
    """Make the cell of sites that share a place: the gravest decides its colour."""
    kind = max((kinds[site] for site in held), key=list(_ADVICE).index)
    far = max((moved[site].distance for site in held if site in moved), default=0.0)
    far_words = f", distance {far:.2g}" if far else ""
    law = next((report.now.sites[s].law for s in held if s in report.now.sites), "")
    sections = tuple(
        Section(visible(site), tuple(_rows(site, moved, report))) for site in held
    )
    return Cell(
        kind=kind,
        figure=f"{far:.0e}" if far else "",
        label=f"{visible(name)}: {kind}{far_words}",
        detail=Detail(visible(name), visible(law), sections, _ADVICE[kind]),
    )


def _rows(
    site: str, moved: Mapping[str, Moved], report: BaselineReport
) -> Iterator[tuple[str, str]]:
    if site in moved:
        one = moved[site]
        yield "moved", one.kind
        yield "why", visible(one.why)
        yield "distance", f"{one.distance:.4g}"
        if one.ratio is not None:
            yield "of allowed", f"{one.ratio:.4g}"
    runs = ("recorded", report.then.sites), ("checked", report.now.sites)
    for when, sites in runs:
        yield when, _figures(sites[site]) if site in sites else "not there"


def _figures(site: Site) -> str:
    shape = " x ".join(map(str, site.shape))
    return (
        f"{shape} {visible(site.dtype)}, mean {site.mean:.4g}, rms {site.rms:.4g}, "
        f"{site.low:.4g} to {site.high:.4g}"
    )


def _growth(report: BaselineReport, moved: Mapping[str, Moved]) -> Chart | None:
    """Draw how far the residual stream moved, where it is among the sites."""
    values = [
        (
            name.removesuffix(".resid_post"),
            moved[name].distance if name in moved else 0.0,
        )
        for name in report.now.sites
        if name.endswith("resid_post") or name == "embed"
    ]
    title = "Relative distance of the residual stream from the baseline, by depth"
    return chart(title, values, across="block", up="distance")
