"""Two runs side by side, for people: the first difference, its growth, a sentence."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from recon.differences import Apart, Difference

if TYPE_CHECKING:
    from recon.results import Report

_COLOUR = {
    "equal": "bold green",
    "rounding": "bold green",
    "diverged": "bold red",
    "unverified": "bold yellow",
}
_BAR = 30


def render(found: Difference, *, console: Console) -> RenderableType:
    """Lay two runs out: names, what differs first, growth by depth, the conclusion."""
    parts: list[RenderableType] = [_runs(found), Text("")]
    if found.first is not None:
        parts += [_first(found.first), Text(""), _growth(found, console), Text("")]
    parts.append(
        Text.assemble(
            (found.verdict.upper(), _COLOUR[found.verdict]), f": {found.conclusion()}"
        )
    )
    return Group(*parts)


def _runs(found: Difference) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for letter, name, report in zip(
        "AB", found.names, (found.first_report, found.second_report), strict=True
    ):
        table.add_row(letter, f"{name}: {_certified(report)}")
    return table


def _certified(report: Report | None) -> str:
    if report is None:
        return "not certified, it comes without its model"
    env = report.environment
    how = f"{str(env.dtype).removeprefix('torch.')}, {env.attention}"
    if not report.failures:
        return f"{how}; all {len(report.checks)} identities certify"
    first = report.failures[0]
    return f"{how}; {failing(report)}, first {first.describe()}"


def failing(report: Report) -> str:
    """Say how many of a run's identities fail."""
    count = len(report.failures)
    return "1 identity fails" if count == 1 else f"{count} identities fail"


def _first(apart: Apart) -> Text:
    return Text(
        f"first difference at {apart.site}: at most {apart.max_abs:.3g}, "
        f"{apart.relative:.2g} of its size"
    )


def _growth(found: Difference, console: Console) -> Table:
    """Show the difference of the stream by depth, as figures and as bars.

    A bar grows with the logarithm, by all of its length for a power of ten at least.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, side in (("stream", "left"), ("largest", "right"), ("relative", "right")):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    table.add_column("growth (log scale)")
    mark = _mark(console)
    for apart, length in _bars(found.growth):
        figures = (
            ("0", "0")
            if apart.equal
            else (f"{apart.max_abs:.2g}", f"{apart.relative:.1e}")
        )
        table.add_row(str(apart.site), *figures, mark * length)
    return table


def _mark(console: Console) -> str:
    try:
        "█".encode(console.encoding)
    except UnicodeEncodeError:
        return "#"
    return "█"


def _bars(growth: tuple[Apart, ...]) -> Iterator[tuple[Apart, int]]:
    sizes = [a.relative for a in growth if a.relative > 0 and math.isfinite(a.relative)]
    low, high = (min(sizes), max(sizes)) if sizes else (1.0, 1.0)
    # What is nearly the same must not look far apart.
    span = max(math.log10(high / low), 1.0)
    for apart in growth:
        if not (apart.relative > 0 and math.isfinite(apart.relative)):
            yield apart, 0
            continue
        share = 1 - math.log10(high / apart.relative) / span
        yield apart, 1 + round(share * (_BAR - 1))
