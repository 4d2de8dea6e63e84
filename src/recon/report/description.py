"""What a file holds, for people: what ``recon info`` shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.table import Table

from recon.report.foreign import visible

_MANY = 12


def render(path: str, kind: str, facts: Mapping[str, object]) -> Table:
    """Lay facts out, one a line; of long lists the beginning and how many follow."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row(visible(kind), visible(path))
    for name, value in facts.items():
        if value is None or isinstance(value, bool):
            continue
        table.add_row(visible(name), _words(value))
    return table


def _words(value: object) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        return visible(", ".join(_first(value)))
    return visible(str(value))


def _first(values: list[str]) -> Iterable[str]:
    yield from values[:_MANY]
    if len(values) > _MANY:
        yield f"and {len(values) - _MANY} more"
