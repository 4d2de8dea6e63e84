"""Turn bench/results.json into docs/benchmarks.md and its plots."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results.json"
PAGE = ROOT / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

Made by `make bench` from [bench](../bench/README.md); do not edit. Ratios are medians
of paired ratios to the first line of each table, every variant run once a round in
random order, with a 95% bootstrap interval. `bare again (noise)` is what the machine
makes of nothing: what lies within its interval cannot be told from it.
"""


def main() -> None:
    """Write the page, and a plot for each table of ratios."""
    benchmarks = json.loads(RESULTS.read_text("utf-8"))["benchmarks"]
    known = [one for one in benchmarks if "ratios" in one["extra_info"]]
    parts = [HEAD]
    for number, one in enumerate(known):
        parts.append(section(one["extra_info"], number))
    PAGE.write_text("\n".join(parts), encoding="utf-8")


def section(extra: dict[str, Any], number: int) -> str:
    """Return one table in Markdown, with its plot drawn beside it."""
    picture = PAGE.parent / "benchmarks" / f"{number}.svg"
    picture.parent.mkdir(exist_ok=True)
    draw(extra, picture)
    rows = [
        f"| {name} | {one['seconds'] * 1e3:.2f} | {one['ratio']:.3f} "
        f"| {one['interval'][0]:.3f} - {one['interval'][1]:.3f} |"
        for name, one in extra["ratios"].items()
    ]
    lines = [
        f"## {extra['title']}",
        "",
        extra["circumstances"],
        "",
        "| | ms | ratio | 95% interval |",
        "|---|---|---|---|",
        *rows,
        "",
        f"![ratios](benchmarks/{picture.name})",
        "",
    ]
    if "held" in extra:
        lines += ["| size | bytes kept | times the fewest |", "|---|---|---|"]
        for row in zip(extra["sizes"], extra["held"], extra["needed"], strict=True):
            lines.append(f"| {row[0]} | {row[1]:,} | {row[1] / row[2]:.3f} |")
        lines.append("")
    return "\n".join(lines)


def draw(extra: dict[str, Any], picture: Path) -> None:
    """Draw ratios with their intervals, the first at the top."""
    rows = list(extra["ratios"].items())[::-1]
    figure = Figure(figsize=(8, 0.4 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    middle = [one["ratio"] for _, one in rows]
    low = [one["ratio"] - one["interval"][0] for _, one in rows]
    high = [one["interval"][1] - one["ratio"] for _, one in rows]
    places = range(len(rows))
    axes.errorbar(middle, places, xerr=[low, high], fmt="o", capsize=3, markersize=4)
    axes.axvline(1, color="0.5", linewidth=0.8)
    axes.set_yticks(places, [name for name, _ in rows])
    if max(middle) > 3:
        axes.set_xscale("log")
    axes.set_title(extra["title"], fontsize=10)
    figure.savefig(picture, metadata={"Date": None})


if __name__ == "__main__":
    main()
