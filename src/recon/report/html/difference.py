"""Two runs side by side as a page: where they part, and how the difference grows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from recon.report.difference import failing
from recon.report.foreign import visible
from recon.report.html.blocks import by_block
from recon.report.html.chart import chart
from recon.report.html.checks import section
from recon.report.html.grid import Cell, Detail, Map, Section
from recon.report.html.laws import law
from recon.report.html.page import Head, page
from recon.report.words import arithmetic, installed

if TYPE_CHECKING:
    from recon.compare import Check
    from recon.differences import Apart, Difference
    from recon.results import Report


_ADVICE = {
    "equal": "Nothing to do: every bit is the same in both runs.",
    "rounding": "Nothing to do: both runs are right here, and differ by rounding.",
    "apart": "Look above it for the first place that fails, or the first that differs: "
    "what follows from there is carried on to here.",
    "diverged": "In a run that fails here, what was captured does not follow from what "
    "was captured just before. Look at what touches this place in that run.",
}


def difference_html(found: Difference, *, again: str = "") -> str:
    """Return two runs as one HTML file; ``again`` is the command that made it."""
    head = Head(
        title=f"recon diff: {visible(found.names[0])}, {visible(found.names[1])}",
        verdict=found.verdict.upper(),
        good=found.verdict in ("equal", "rounding"),
        words=visible(found.conclusion()),
        facts=list(_facts(found)),
        again=again,
        findings=sum(len(r.failures) for _, r in _reports(found) if r is not None),
    )
    growth = [(_entry(apart), apart.relative) for apart in found.growth]
    up = "relative difference"
    return page(
        "difference",
        head,
        chart=chart(
            "Relative difference of the residual stream, by depth",
            growth,
            across="as the stream enters each block, and leaves the last",
            up=up,
        ),
        map=_map(found),
        first=None if found.first is None else str(found.first.site),
        sites=[
            (
                str(apart.site),
                "equal" if apart.equal else "apart",
                "0" if apart.equal else f"{apart.max_abs:.4g}",
                "0" if apart.equal else f"{apart.relative:.3g}",
            )
            for apart in found.sites
        ],
        failures=[
            (visible(name), [check.describe() for check in report.failures])
            for name, report in _reports(found)
            if report is not None and report.failures
        ],
    )


def _entry(apart: Apart) -> str:
    """Name a point of the stream shortly: the block that it enters, or out."""
    return f"h.{apart.site.layer}" if apart.site.part == "resid_pre" else "out"


def _map(found: Difference) -> Map:
    """Put each site in its place, with what each run's own checks say there."""
    checks: dict[str, list[tuple[str, Check]]] = {}
    for name, report in _reports(found):
        for check in () if report is None else report.checks:
            checks.setdefault(check.site, []).append((name, check))

    def cell(name: str, held: list[Apart]) -> Cell:
        here = [pair for apart in held for pair in checks.get(str(apart.site), [])]
        return _cell(name, held, here, found)

    return by_block([(str(apart.site), apart) for apart in found.sites], cell)


def _cell(
    name: str,
    held: list[Apart],
    checks: list[tuple[str, Check]],
    found: Difference,
) -> Cell:
    kind = _kind(held, checks, found)
    far = max(apart.relative for apart in held)
    laws = dict.fromkeys(law(check.identity) for _, check in checks)
    own = [section(check, f"{visible(run)}: {check.level}") for run, check in checks]
    return Cell(
        kind=kind,
        figure="" if kind == "equal" else f"{far:.0e}",
        label=f"{name}: {kind}, relative difference {far:.3g}",
        detail=Detail(
            title=name,
            law="; ".join(filter(None, laws)),
            sections=(*map(_between, held), *own),
            advice=_ADVICE[kind],
        ),
    )


def _kind(held: list[Apart], checks: list[tuple[str, Check]], found: Difference) -> str:
    if not all(check.passed for _, check in checks):
        return "diverged"
    if all(apart.equal for apart in held):
        return "equal"
    return "rounding" if found.verdict == "rounding" else "apart"


def _between(apart: Apart) -> Section:
    return Section(
        f"{apart.site}, between the runs",
        (
            ("largest difference", f"{apart.max_abs:.4g}"),
            ("relative", f"{apart.relative:.3g}"),
        ),
    )


def _reports(found: Difference) -> Iterator[tuple[str, Report | None]]:
    reports = (found.first_report, found.second_report)
    yield from zip(found.names, reports, strict=True)


def _facts(found: Difference) -> Iterator[tuple[str, str]]:
    for letter, (name, report) in zip("AB", _reports(found), strict=True):
        if report is None:
            yield letter, f"{visible(name)}: not certified, it comes without its model"
            continue
        held = failing(report) if report.failures else "all identities certify"
        env = report.environment
        yield letter, f"{visible(name)}: {arithmetic(env)}; {held}"
        yield "", installed(env)
