"""The vocabulary for people: what ``recon sites`` shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

_UNBOUNDED = 10_000
_WORDS = {
    "B": "batch",
    "T": "tokens",
    "S": "keys",
    "E": "encoder tokens",
    "D": "width",
    "H": "heads",
    "d": "width of a head",
    "M": "MLP width",
    "V": "vocabulary",
    "l": "block",
}


@dataclass(frozen=True)
class Row:
    """One site: its names, its shape in letters and in this model, where it is from."""

    site: str
    shape: str
    here: str
    origin: str
    meaning: str
    lens: str
    hf: str


@dataclass(frozen=True)
class Vocabulary:
    """The sites that one model has."""

    model: str
    architecture: str
    blocks: int
    sizes: Mapping[str, int]
    rows: tuple[Row, ...]


_SHAPES = ("site", "shape", "here", "origin", "meaning")
_NAMES = ("site", "TransformerLens", "Hugging Face")
_EVERYTHING = (*_SHAPES[:4], *_NAMES[1:], "meaning")


def render(listing: Vocabulary, console: Console) -> RenderableType:
    """Lay the sites out: one line a site, or in two tables where that is too wide."""

    def width(table: Table) -> int:
        unbounded = console.options.update(max_width=_UNBOUNDED)
        return console.measure(table, options=unbounded).maximum

    tables = [_table(listing, _EVERYTHING)]
    if not console.is_terminal:
        # A pipe has no width: each line stays whole, for grep.
        console.width = max(console.width, width(tables[0]))
    elif width(tables[0]) > console.width:
        narrow = [_table(listing, heads) for heads in (_SHAPES, _NAMES)]
        gap = 2 if width(narrow[1]) <= console.width else 1
        tables = [_table(listing, heads, gap) for heads in (_SHAPES, _NAMES)]
    parts: list[RenderableType] = [_head(listing)]
    for table in tables:
        parts += [Text(""), table]
    return Group(*parts)


def _head(listing: Vocabulary) -> Text:
    """Say whose sites these are, and what the letters in their shapes stand for."""
    used = {letter for row in listing.rows for letter in row.shape} | {"l"}
    sizes = {letter: f" {size}" for letter, size in listing.sizes.items()}
    sizes["l"] = f" 0 to {listing.blocks - 1}"
    letters = ", ".join(
        f"{letter} {words}{sizes.get(letter, '')}"
        for letter, words in _WORDS.items()
        if letter in used
    )
    count = len(listing.rows)
    return Text(f"{listing.model} ({listing.architecture}): {count} sites\n{letters}")


def _table(listing: Vocabulary, heads: tuple[str, ...], gap: int = 2) -> Table:
    table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="bold")
    for head in heads:
        table.add_column(head, overflow="fold", no_wrap=head == "site")
    for row in listing.rows:
        cells = vars(row) | {"TransformerLens": row.lens, "Hugging Face": row.hf}
        table.add_row(*(Text(cells[head] or "-") for head in heads))
    return table
