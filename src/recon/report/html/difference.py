"""Two runs side by side as a page: where they part, and how the difference grows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from recon.report.foreign import visible
from recon.report.html.chart import chart
from recon.report.html.page import Head, page
from recon.report.words import arithmetic, installed

if TYPE_CHECKING:
    from recon.differences import Difference
    from recon.results import Report


def difference_html(found: Difference, *, again: str = "") -> str:
    """Return two runs as one HTML file; ``again`` is the command that made it."""
    head = Head(
        title=f"recon diff: {visible(found.names[0])}, {visible(found.names[1])}",
        verdict=found.verdict.upper(),
        good=found.verdict in ("equal", "rounding"),
        words=visible(found.conclusion()),
        facts=list(_facts(found)),
        again=again,
    )
    growth = [(str(apart.site), apart.relative) for apart in found.growth]
    up = "relative difference"
    return page(
        "difference",
        head,
        chart=chart(
            "Relative difference of the residual stream, by depth",
            growth,
            across="site",
            up=up,
        ),
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


def _reports(found: Difference) -> Iterator[tuple[str, Report | None]]:
    reports = (found.first_report, found.second_report)
    yield from zip(found.names, reports, strict=True)


def _facts(found: Difference) -> Iterator[tuple[str, str]]:
    for letter, (name, report) in zip("AB", _reports(found), strict=True):
        if report is None:
            yield letter, f"{visible(name)}: not certified, it comes without its model"
            continue
        count = len(report.failures)
        held = f"{count} identities fail" if count else "all identities certify"
        env = report.environment
        yield letter, f"{visible(name)}: {arithmetic(env)}; {held}"
        yield "", installed(env)
