"""A check of a baseline for people, and for the log of a GitHub job."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from recon.report.foreign import visible
from recon.report.terminal import listed

if TYPE_CHECKING:
    from recon.baseline.document import Baseline, Setting
    from recon.baseline.findings import BaselineReport, Finding, Moved

MANY = 12
_COLOUR = {
    "equal": "bold green",
    "rounding": "bold green",
    "follows": "green",
    "weights": "bold yellow",
    "changed": "bold red",
    "unproven": "bold yellow",
}


def render(report: BaselineReport, *, console: Console) -> RenderableType:
    """Lay a check out: the two runs, what moved, findings, the verdict."""
    parts: list[RenderableType] = [_head(report)]
    if report.moved:
        parts += [Text(""), *_moved(report.moved)]
    if report.findings:
        parts += [Text(""), Text("findings, first changed site first", style="bold")]
        parts += [part for one in report.findings[:MANY] for part in _finding(one)]
        if len(report.findings) > MANY:
            parts.append(Text(f"  and {len(report.findings) - MANY} more"))
    parts += [Text(""), _verdict(report)]
    return Group(*parts)


def render_recorded(file: str, baseline: Baseline) -> RenderableType:
    """Say what was recorded, and how each of its parts came out."""
    proven = sum(site.bound is not None for site in baseline.sites.values())
    rows = [
        ("baseline", visible(file)),
        ("model", visible(baseline.model.name)),
        ("inputs", _inputs(baseline)),
        ("run", _setting(baseline.environment)),
        ("sites", f"{len(baseline.sites)}, {proven} with a proven bound"),
        ("weights", str(len(baseline.weights))),
    ]
    return listed(rows)


def _head(report: BaselineReport) -> Table:
    notes = report.notes[:MANY]
    said = [("note" if not i else "", one) for i, one in enumerate(notes)]
    return listed([*circumstances(report), *said])


def circumstances(report: BaselineReport) -> list[tuple[str, str]]:
    """Return what was recorded and what was checked, as names with values."""
    return [
        ("baseline", visible(report.file)),
        ("model", visible(report.now.model.name)),
        ("inputs", _inputs(report.then)),
        ("recorded", _setting(report.then.environment)),
        ("checked", _setting(report.now.environment)),
    ]


def _inputs(baseline: Baseline) -> str:
    rows = next(iter(baseline.inputs.values()))
    return f"{visible(baseline.source)}: {len(rows)} x {len(rows[0])} tokens"


def _setting(env: Setting) -> str:
    return (
        f"{env.dtype}, {env.attention} attention; torch {env.torch}, transformers "
        f"{env.transformers}, {env.device}, {env.machine}, {env.threads} threads"
    )


def _moved(moved: tuple[Moved, ...]) -> Iterator[RenderableType]:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("site", no_wrap=True)
    table.add_column("moved")
    table.add_column("distance", justify="right")
    table.add_column("of allowed", justify="right")
    for one in moved[:MANY]:
        ratio = "" if one.ratio is None else f"{one.ratio:.2g}"
        kind = Text(one.kind, style=_COLOUR[one.kind])
        table.add_row(one.site, kind, _figure(one.distance), ratio)
    yield table
    if len(moved) > MANY:
        yield Text(f"and {len(moved) - MANY} more sites")


def _figure(distance: float) -> str:
    return f"{distance:.1e}" if math.isfinite(distance) else ""


def _finding(one: Finding) -> Iterator[RenderableType]:
    words = f"{one.rule.code} {one.rule.name}: {visible(one.message)}"
    yield Padding(Text(words, overflow="fold"), (0, 0, 0, 2))
    yield Padding(Text(one.rule.mend, overflow="fold"), (0, 0, 0, 4))


def _verdict(report: BaselineReport) -> Text:
    return Text.assemble(
        (report.verdict.upper(), _COLOUR[report.verdict]),
        f": {visible(report.conclusion())}",
    )


# -- GitHub --------------------------------------------------------------------


def commands(report: BaselineReport, lines: Mapping[str, int]) -> Iterator[str]:
    """Yield workflow commands that GitHub shows beside the baseline's lines."""
    if report.verdict == "rounding":
        yield _command("notice", report.file, 1, "recon", report.conclusion())
    for one in report.findings:
        line = next((lines[p] for p in one.places if p in lines), 1)
        title = f"{one.rule.code} {one.rule.name}"
        message = f"{one.message}. {one.rule.mend}"
        yield _command(one.rule.severity, report.file, line, title, message)


def _command(level: str, file: str, line: int, title: str, message: str) -> str:
    place = f"file={_property(file)},line={line},title={_property(title)}"
    return f"::{level} {place}::{_escaped(visible(message))}"


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _escaped(visible(text)).replace(":", "%3A").replace(",", "%2C")
