"""A map from names alone: the number in a name is its block, the rest its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from recon.report.bytes import block_of, part_of
from recon.report.html.grid import Cell, Line, Map, drawn

T = TypeVar("T")


def by_block(
    named: Sequence[tuple[str, T]], cell: Callable[[str, list[T]], Cell]
) -> Map:
    """Lay things with names out; those that share a block and a place share a cell.

    Names are taken in order of computation: those without a number lie above the
    blocks, or below them once a block has been seen.
    """
    rows: dict[int, dict[str, list[T]]] = {}
    above: dict[str, list[T]] = {}
    below: dict[str, list[T]] = {}
    for name, thing in named:
        block = block_of(name)
        if block is None:
            (below if rows else above).setdefault(name, []).append(thing)
        else:
            rows.setdefault(block, {}).setdefault(part_of(name), []).append(thing)
    parts = list(dict.fromkeys(part for row in rows.values() for part in row))

    def outside(things: dict[str, list[T]]) -> Iterator[tuple[str, Cell]]:
        return ((name, cell(name, found)) for name, found in things.items())

    lines = [
        Line(
            f"h.{block}",
            tuple(
                cell(part.replace("*", str(block), 1), rows[block][part])
                if part in rows[block]
                else None
                for part in parts
            ),
        )
        for block in sorted(rows)
    ]
    columns = [part.removeprefix("h.*.") for part in parts]
    return drawn(columns, lines, outside(above), outside(below))
