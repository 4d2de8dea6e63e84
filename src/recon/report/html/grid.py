"""The map of a model: blocks down, places across, a cell for what was found there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

# What a cell shows besides its colour.
MARKS = {
    "exact": "✓",
    "rounding": "≈",
    "diverged": "✗",
    "missing": "∅",
    "unverified": "?",
    "right": "✓",
    "wrong": "✗",
    "unclaimed": "·",
    "equal": "✓",
    "apart": "≠",
    "follows": "→",
    "weights": "w",
    "changed": "✗",
    "unproven": "?",
    "vanished": "∅",
    "appeared": "+",
    "needed": "✓",
    "excess": "!",
    "shared": "=",
}


@dataclass(frozen=True)
class Section:
    """One part of what a cell opens: a heading, and names with values."""

    heading: str
    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Detail:
    """What a cell opens when it is clicked."""

    title: str
    law: str
    sections: tuple[Section, ...]
    advice: str


@dataclass(frozen=True)
class Cell:
    """One place: its verdict, a figure or nothing, what hovering says, and details.

    ``number`` is that of its details on the page.
    """

    kind: str
    figure: str
    label: str
    detail: Detail
    number: int = -1

    @property
    def mark(self) -> str:
        """The sign of its verdict, so that colour is not alone in saying it."""
        return MARKS[self.kind]


@dataclass(frozen=True)
class Line:
    """A row of the map: a block, or the places above and below all blocks."""

    name: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Map:
    """The map, and the details of its cells in the order of their numbers."""

    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    stem: tuple[tuple[str, Cell], ...]
    head: tuple[tuple[str, Cell], ...]
    details: tuple[Detail, ...]

    @property
    def kinds(self) -> list[str]:
        """The verdicts that occur, in the order of ``MARKS``: the legend."""
        cells = [cell for line in self.lines for cell in line.cells if cell is not None]
        cells += [cell for _, cell in (*self.stem, *self.head)]
        seen = {cell.kind for cell in cells}
        return [kind for kind in MARKS if kind in seen]


def drawn(
    columns: Sequence[str],
    lines: Iterable[Line],
    stem: Iterable[tuple[str, Cell]] = (),
    head: Iterable[tuple[str, Cell]] = (),
) -> Map:
    """Number the cells and collect their details."""
    details: list[Detail] = []

    def numbered(cell: Cell) -> Cell:
        details.append(cell.detail)
        return replace(cell, number=len(details) - 1)

    above = tuple((name, numbered(cell)) for name, cell in stem)
    rows = tuple(
        Line(
            line.name,
            tuple(None if cell is None else numbered(cell) for cell in line.cells),
        )
        for line in lines
    )
    below = tuple((name, numbered(cell)) for name, cell in head)
    return Map(tuple(columns), rows, above, below, tuple(details))
