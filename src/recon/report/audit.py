"""An audit for people: the verdict, each finding and how to mend it, every tensor."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from recon.report.foreign import visible, visible_lines
from recon.report.rules import COLOUR, SEVERITIES, gravest_first
from recon.report.terminal import listed
from recon.report.words import arithmetic, installed

if TYPE_CHECKING:
    from recon.auditing.findings import AuditReport, Finding, Judged

MANY_PLACES = 4
MANY_TENSORS = 40
LONG_NAME = 200
_VERDICT = {"clean": "bold green", "findings": "bold red"}
_STATUS = {"right": "green", "wrong": "bold red", "unclaimed": "cyan"}


def render(report: AuditReport, *, console: Console) -> RenderableType:
    """Lay an audit out: verdict, findings with errors first, tensors, circumstances."""
    dots = _dots(console)
    parts: list[RenderableType] = [_verdict(report)]
    for finding in gravest_first(report.findings):
        parts += [Text(""), *_finding(finding, dots)]
    if report.tensors:
        parts += [Text(""), *_tensors(report.tensors, dots)]
    parts += [Text(""), listed(circumstances(report))]
    return Group(*parts)


def _dots(console: Console) -> str:
    try:
        "…".encode(console.encoding)
    except UnicodeEncodeError:
        return "..."
    return "…"


def _clipped(name: str, dots: str) -> str:
    shown = visible(name)
    return shown if len(shown) <= LONG_NAME else shown[:LONG_NAME] + dots


# -- the verdict ---------------------------------------------------------------


def _verdict(report: AuditReport) -> Text:
    verdict, words = verdict_words(report)
    return Text.assemble((verdict, _VERDICT[report.verdict]), f": {words}")


def verdict_words(report: AuditReport) -> tuple[str, str]:
    """Return the verdict, and in words what was found and how many tensors are right.

    The words hold no string of the audited code.
    """
    words = f"{tally(report)}; {_standing(report.tensors)}"
    return report.verdict.upper(), words


def tally(report: AuditReport) -> str:
    """Count the findings in words: ``2 errors, 1 note``."""
    counts = Counter(finding.severity for finding in report.findings)
    words = [_count(counts[kind], kind) for kind in SEVERITIES if counts[kind]]
    notes_decide = report.strict and {f.severity for f in report.counting} == {"note"}
    return (", ".join(words) or "no findings") + (
        " (strict: notes count)" if notes_decide else ""
    )


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _standing(tensors: Sequence[Judged]) -> str:
    """Say how many tensors are what their names promise."""
    counts = Counter(tensor.status for tensor in tensors)
    total = len(tensors)
    if not total:
        return "no tensor was judged"
    if counts["right"] == total:
        all_of = "the tensor is" if total == 1 else f"all {total} tensors are"
        return f"{all_of} what the name says"
    words = [f"{counts['right']} of {_count(total, 'tensor')} right"]
    if counts["wrong"]:
        words.append(f"{counts['wrong']} wrong")
    if counts["unclaimed"]:
        words.append(f"{counts['unclaimed']} unclaimed")
    return ", ".join(words)


# -- findings ------------------------------------------------------------------


def _finding(finding: Finding, dots: str) -> Iterator[RenderableType]:
    rule = finding.rule
    yield Text.assemble(
        (finding.severity, COLOUR[finding.severity]),
        (f" {rule.code} {rule.name}", "bold"),
        f": {visible(finding.message)}",
        overflow="fold",
    )
    rows = [(label, words) for label, words in _rows(finding, dots) if words]
    yield Padding(listed(rows), (0, 0, 0, 2))
    if finding.traceback:
        lines = Text("\n".join(visible_lines(finding.traceback)), overflow="fold")
        yield Padding(lines, (0, 0, 0, 4))


def _rows(finding: Finding, dots: str) -> Iterator[tuple[str, str]]:
    yield "at", abbreviated(finding.places, "places", dots)
    yield "promised", abbreviated(finding.sites, "sites", dots)
    yield "found", abbreviated(finding.found, "tensors", dots)
    yield "run", visible(finding.run)
    yield "evidence", ", ".join(_evidence(finding))
    yield "mend", visible(finding.mend or finding.rule.mend)
    yield "more", f"recon explain {finding.rule.code}"


def abbreviated(names: Sequence[str], noun: str, dots: str = "…") -> str:
    """List a few names; of many the first, the last and how many there are."""
    distinct = [_clipped(name, dots) for name in dict.fromkeys(names)]
    if len(distinct) <= MANY_PLACES:
        return ", ".join(distinct)
    return f"{distinct[0]} {dots} {distinct[-1]} ({len(distinct)} {noun})"


def _evidence(finding: Finding) -> Iterator[str]:
    for name, value in finding.evidence.items():
        figure = f"{value:.4g}" if isinstance(value, float) else visible(str(value))
        yield f"{visible(name)} {figure}"


# -- tensors -------------------------------------------------------------------


@dataclass
class _Row:
    """One tensor, or several right ones whose words differ in a number only."""

    name: str
    status: str
    sentence: str
    count: int = 1


def _tensors(tensors: Sequence[Judged], dots: str) -> Iterator[RenderableType]:
    rows = _table_rows(tensors)
    shown = [row for row in rows if row.status != "right"][:MANY_TENSORS]
    shown += [row for row in rows if row.status == "right"][:MANY_TENSORS]
    kept = [row for row in rows if any(row is one for one in shown)]
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("tensor", overflow="fold")
    table.add_column("status", no_wrap=True)
    table.add_column("what it is", overflow="fold")
    for row in kept:
        many = f" ({row.count} tensors)" if row.count > 1 else ""
        table.add_row(
            Text(_clipped(row.name, dots) + many),
            Text(row.status, style=_STATUS[row.status]),
            Text(visible(row.sentence)),
        )
    yield table
    left = sum(row.count for row in rows) - sum(row.count for row in kept)
    if left:
        yield Text(f"and {_count(left, 'tensor')} more: --json lists every one")


def _table_rows(tensors: Sequence[Judged]) -> list[_Row]:
    """Make a row of each tensor; where they are many, one row of the right ones alike.

    A wrong one keeps its row: which block's tensor it is may be just what is wrong.
    """
    rows = [
        # The name stands in the row already.
        _Row(t.name, t.status, t.sentence.removeprefix(f"`{t.name}` is "))
        for t in tensors
    ]
    if len(rows) <= MANY_TENSORS:
        return rows
    groups: dict[object, list[_Row]] = {}
    for number, row in enumerate(rows):
        alike = _starred(row) if row.status == "right" else number
        groups.setdefault(alike, []).append(row)
    return [
        _Row(*_starred(group[0]), count=len(group)) if len(group) > 1 else group[0]
        for group in groups.values()
    ]


def _starred(row: _Row) -> tuple[str, str, str]:
    """Put a star for the block's number, in the name and in the sites of a sentence."""
    name = re.sub(r"\d+", "*", row.name, count=1)
    sentence = row.sentence.replace(row.name, name)
    return name, row.status, re.sub(r"(?<=[a-z]\.)\d+(?!\d)", "*", sentence)


# -- circumstances -------------------------------------------------------------


def circumstances(report: AuditReport) -> list[tuple[str, str]]:
    """Return what was audited, on what and how, as names with values to print."""
    env = report.environment
    rows = [
        ("target", visible(report.target)),
        ("model", f"{visible(report.model)} ({env.architecture})"),
        ("run", arithmetic(env)),
        ("runs", ", ".join(map(visible, report.runs))),
        ("environment", installed(env)),
    ]
    rows.append(("judged", _judges(report.tensors)))
    if report.ignored:
        rows.append(("ignored", f"{_count(report.ignored, 'finding')}, on request"))
    if report.seconds is not None:
        rows.append(("time", f"{report.seconds:.3g} s"))
    return [(label, words) for label, words in rows if words]


def _judges(tensors: Sequence[Judged]) -> str:
    """Say what captures were judged by, if recon did not see them taken."""
    counts = Counter(str(tensor.by) for tensor in tensors if tensor.claim)
    words = {
        "certify": "by certify, from the captures that the model makes them of",
        "run": "by the model's own run",
    }
    return ", ".join(
        f"{_count(counts[by], 'tensor')} {said}"
        for by, said in words.items()
        if counts[by]
    )
