"""A report for people: on a terminal with colours, in a pipe as plain aligned text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from recon.compare import Check, Verdict
from recon.report.columns import GROUPINGS, Placed, cells, header, place, worst
from recon.report.words import circumstances, facts, verdict_words, word

if TYPE_CHECKING:
    from recon.results import Report

MAX_SHOWN = 20
_COLOUR: dict[Verdict, str] = {
    "exact": "green",
    "rounding": "cyan",
    "diverged": "bold red",
    "missing": "bold red",
    "unverified": "bold yellow",
}
_LABEL = "block"


@dataclass(frozen=True)
class Style:
    """How an exact cell is shown: ``✓ exact``, ``✓`` or, in a pipe, ``exact``."""

    tick: str
    word: str

    @classmethod
    def of(cls, console: Console) -> Style:
        """Read off a console what it can show."""
        if not console.is_terminal:
            return cls("", "exact")
        try:
            "✓".encode(console.encoding)
        except UnicodeEncodeError:
            return cls("ok", "")
        return cls("✓", "exact")

    def cell(self, check: Check | None) -> Text:
        """Say a check in a word or two; an empty cell for none."""
        if check is None:
            return Text("")
        exact = f"{self.tick} {self.word}".strip()
        words = exact if check.verdict == "exact" else word(check)
        return Text(words, style=_COLOUR[check.verdict])


def render(
    report: Report, *, model: str, source: str, console: Console
) -> RenderableType:
    """Lay a report out for the width and the abilities of ``console``."""
    style = Style.of(console)
    placed = place(report.checks, report.depth)
    parts: list[RenderableType] = [_header(report, model, source)]
    if any(placed.blocks):
        parts += [Text(""), *_table(placed, style, console.width)]
    parts += [Text(""), listed(facts(report))]
    parts += _findings(report)
    parts += [Text(""), _verdict(report)]
    return Group(*parts)


# -- above the table -----------------------------------------------------------


def _header(report: Report, model: str, source: str) -> Table:
    return listed(circumstances(report, model, source))


def listed(rows: Sequence[tuple[str, str | Text]]) -> Table:
    """Set words in two columns, the second as wide as there is room."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, words in rows:
        table.add_row(name, Text(words) if isinstance(words, str) else words)
    return table


# -- the table -----------------------------------------------------------------


def _table(placed: Placed, style: Style, width: int) -> Iterator[RenderableType]:
    if placed.stem:
        yield listed([("embeddings", _line(placed.stem, style))])
    yield _widest_that_fits(placed, style, width)
    if placed.head:
        yield listed([("head", _line(placed.head, style))])


def _line(checks: Sequence[Check], style: Style) -> Text:
    """Show checks outside the blocks, one after the other, each with its site."""
    names = list(dict.fromkeys(check.site for check in checks))
    shown = [
        Text.assemble(
            f"{name} ", style.cell(worst(c for c in checks if c.site == name))
        )
        for name in names
    ]
    return Text(", " if not style.tick else "   ").join(shown)


def _widest_that_fits(placed: Placed, style: Style, width: int) -> Table:
    """Choose the table that says most of those that the width holds."""
    brief = Style(style.tick, "") if style.tick else style
    drafts = [
        _Draft(*cells(placed.blocks, grouping), look, gap)
        for grouping in GROUPINGS
        for look, gap in ((style, 2), (brief, 2), (brief, 1))
    ]
    fitting = (draft for draft in drafts if draft.width <= width)
    return next(fitting, drafts[-1]).table()


@dataclass(frozen=True)
class _Draft:
    """One way to lay the blocks out, and how wide it would be."""

    names: list[str]
    rows: list[list[Check | None]]
    style: Style
    gap: int

    @property
    def width(self) -> int:
        """Columns of the terminal that the table takes."""
        heads = [header(name).split("\n") for name in self.names]
        widths = [max(map(len, lines)) for lines in heads]
        for row in self.rows:
            shown = [self.style.cell(check).cell_len for check in row]
            widths = [max(pair) for pair in zip(widths, shown, strict=True)]
        return len(_LABEL) + sum(widths) + self.gap * len(widths)

    def table(self) -> Table:
        """Build the table, a block a row and an identity a column."""
        table = Table(
            box=None, padding=(0, self.gap, 0, 0), pad_edge=False, header_style="bold"
        )
        table.add_column(Text(_LABEL), justify="right", vertical="bottom")
        for name in self.names:
            table.add_column(Text(header(name)), overflow="fold", vertical="bottom")
        for number, row in enumerate(self.rows):
            table.add_row(str(number), *(self.style.cell(check) for check in row))
        return table


# -- below the table -----------------------------------------------------------


def _findings(report: Report) -> Iterator[RenderableType]:
    failures = report.failures
    if not failures:
        return
    yield Text("")
    yield Text("findings, shallowest first", style="bold")
    for check in failures[:MAX_SHOWN]:
        yield Padding(Text(check.describe(), overflow="fold"), (0, 0, 0, 2))
    if len(failures) > MAX_SHOWN:
        yield Text(f"  and {len(failures) - MAX_SHOWN} more")


def _verdict(report: Report) -> Text:
    verdict, words = verdict_words(report)
    colour = "bold green" if report.verdict == "reconciled" else "bold red"
    return Text.assemble((verdict, colour), f": {words}")
