"""A verification as a page: verdict, map of the model, growth of error, findings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from recon.compare import Check
from recon.report.columns import cells_of, columns, place, worst
from recon.report.foreign import visible
from recon.report.html.chart import Chart, chart
from recon.report.html.checks import figure, section
from recon.report.html.grid import Cell, Detail, Line, Map, drawn
from recon.report.html.laws import law
from recon.report.html.page import Head, page
from recon.report.words import circumstances, facts, verdict_words, word

if TYPE_CHECKING:
    from recon.results import Report

_ADVICE = {
    "exact": "Nothing to do: every element is equal.",
    "rounding": "Nothing to do: the difference lies within what rounding can explain.",
    "diverged": "What was captured here does not follow from what was captured just "
    "before it. Look at what touches this place: a hook that returns or edits a value, "
    "a replaced module, weights changed during the pass, a capture of another run.",
    "missing": "There is nothing to compare. Was the module replaced, compiled or "
    "skipped, or was this site left out of the capture?",
    "unverified": "This is not a pass: an assumption of the check does not hold here. "
    "The reason is given above.",
}


def verification_html(
    report: Report, *, model: str, source: str, again: str = ""
) -> str:
    """Return a verification as one HTML file; ``again`` is the command that made it."""
    verdict, words = verdict_words(report)
    head = Head(
        title=f"recon verify: {visible(model)}",
        verdict=verdict,
        good=report.verdict == "reconciled",
        words=words,
        facts=[
            (name, visible(said)) for name, said in circumstances(report, model, source)
        ],
        again=again,
        findings=len(report.failures),
    )
    return page(
        "verification",
        head,
        map=_map(report),
        bounded=any(check.bound_ratio for check in report.checks),
        chart=_growth(report),
        findings=[(check.describe(), law(check.identity)) for check in report.failures],
        facts=[(name, visible(said)) for name, said in facts(report)],
        checks=[_row(check) for check in report.checks],
    )


# -- the map -------------------------------------------------------------------


def _map(report: Report) -> Map:
    placed = place(report.checks, report.depth)
    names = columns(placed.blocks)
    lines = [
        Line(
            f"h.{number}",
            tuple(
                _cell(f"h.{number}", name, found)
                for name, found in zip(names, cells_of(checks, names), strict=True)
            ),
        )
        for number, checks in enumerate(placed.blocks)
    ]
    return drawn(names, lines, _outside(placed.stem), _outside(placed.head))


def _outside(checks: Sequence[Check]) -> Iterator[tuple[str, Cell]]:
    """Yield a cell for each site above or below the blocks."""
    for name in dict.fromkeys(check.site for check in checks):
        cell = _cell("", name, [check for check in checks if check.site == name])
        if cell is not None:
            yield name, cell


def _cell(block: str, name: str, checks: Sequence[Check]) -> Cell | None:
    gravest = worst(checks)
    if gravest is None:
        return None
    title = f"{block} {name}".strip()
    return Cell(
        kind=gravest.verdict,
        figure=word(gravest) if gravest.verdict == "rounding" else "",
        label=f"{title}: {gravest.describe()}",
        detail=Detail(
            title=title,
            law="; ".join(
                filter(None, dict.fromkeys(law(check.identity) for check in checks))
            ),
            sections=tuple(section(check) for check in checks),
            advice=_ADVICE[gravest.verdict],
        ),
    )


def _row(check: Check) -> tuple[str, ...]:
    return (
        check.site,
        check.identity,
        check.level,
        check.verdict,
        figure(check.max_abs),
        "" if check.max_ulp is None else str(check.max_ulp),
        figure(check.bound_ratio),
        figure(check.sharpness),
        check.reason,
    )


# -- the growth of the error -----------------------------------------------------


def _growth(report: Report) -> Chart | None:
    """Draw the largest error of each block: each check's own, none is carried on."""
    blocks = place(report.checks, report.depth).blocks
    values = [
        (f"h.{number}", max(map(_error, checks), default=0.0))
        for number, checks in enumerate(blocks)
    ]
    title = "Largest absolute error of any check, by block"
    return chart(title, values, across="block", up="largest error")


def _error(check: Check) -> float:
    """Return a check's largest error: infinite where it diverged beyond measure."""
    unmeasured = math.inf if check.verdict == "diverged" else 0.0
    return unmeasured if check.max_abs is None else check.max_abs
