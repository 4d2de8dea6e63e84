"""The layers of recon as a picture, read off the imports.

Rows are the layers of tests/test_layers.py, boxes their modules, lines the imports. A
line that two others imply is left out; the title of a box names all.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

Imports = Mapping[str, frozenset[str]]
WIDE, HIGH, GAP, STEP = 108, 26, 14, 62


def imports(source: Path) -> dict[str, frozenset[str]]:
    """Return each module of recon with those that its files import, types aside."""
    from tests.test_layers import TYPES_ONLY, imported, internal

    used: dict[str, set[str]] = {}
    for path in sorted(source.rglob("*.py")):
        inside = path.relative_to(source)
        module, package = inside.with_suffix("").parts[0], ("recon", *inside.parts[:-1])
        names = imported(ast.parse(path.read_text("utf-8")), package)
        used.setdefault(module, set()).update(set(internal(names)) - {module})
    for module, other in TYPES_ONLY:
        used[module].discard(other)
    return {module: frozenset(below) for module, below in used.items()}


def reached(used: Imports, module: str, seen: frozenset[str]) -> frozenset[str]:
    """Return what a module needs, directly or not."""
    for below in used[module] - seen:
        seen = reached(used, below, seen | {below})
    return seen


def direct(used: Imports) -> Iterator[tuple[str, str]]:
    """Yield the imports that no chain of others implies."""
    for module, below in used.items():
        for one in sorted(below):
            others = below - {one}
            if not any(one in reached(used, o, frozenset()) for o in others):
                yield module, one


def diagram(used: Imports, layers: Sequence[str]) -> str:
    """Return the picture as SVG; it takes the colours of the page around it.

    In a block of HTML Markdown leaves all alone; else it would make ``__init__`` bold.
    """
    rows = [[name for name in row.split() if name in used] for row in layers]
    rows = [row for row in rows if row]
    width = max(map(len, rows)) * (WIDE + GAP) + GAP
    height = len(rows) * STEP + GAP
    place = {
        name: (width / 2 + (n - (len(row) - 1) / 2) * (WIDE + GAP), GAP + number * STEP)
        for number, row in enumerate(rows)
        for n, name in enumerate(row)
    }
    lines = [_line(place[one], place[other]) for one, other in direct(used)]
    boxes = [_box(name, *at, sorted(used[name])) for name, at in place.items()]
    return (
        f'<div><svg viewBox="0 0 {width:.0f} {height}" role="img" '
        'aria-label="Modules of recon in layers; imports lead down" '
        'style="width:100%;height:auto;font:12px sans-serif">'
        + "".join([*lines, *boxes])
        + "</svg></div>"
    )


def _line(start: tuple[float, float], end: tuple[float, float]) -> str:
    (x, y), (to_x, to_y) = start, end
    y, bend = y + HIGH, (to_y - y - HIGH) / 2
    return (
        f'<path d="M{x:.0f} {y:.0f}C{x:.0f} {y + bend:.0f} {to_x:.0f} '
        f'{to_y - bend:.0f} {to_x:.0f} {to_y:.0f}" fill="none" '
        'stroke="currentColor" stroke-opacity=".3"/>'
    )


def _box(name: str, x: float, y: float, below: Sequence[str]) -> str:
    words = ", ".join(below) or "nothing of recon"
    return (
        f"<g><title>{escape(name)} imports {escape(words)}</title>"
        f'<rect x="{x - WIDE / 2:.0f}" y="{y:.0f}" width="{WIDE}" height="{HIGH}" '
        'rx="4" fill="#0b7285"/>'
        f'<text x="{x:.0f}" y="{y + 17:.0f}" text-anchor="middle" fill="#fff">'
        f"{escape(name)}</text></g>"
    )
