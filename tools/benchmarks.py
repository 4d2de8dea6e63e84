"""Turn results of pytest-benchmark into docs/benchmarks.md and its plots.

From bench/results.json, or from the files that are named: several shorter runs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results.json"
PAGE = ROOT / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

Made from results of `bench/` by tools/benchmarks.py (`make bench`); do not edit. Ratios
are medians of paired ratios to the first line of each table, every variant run once a
round in random order, with a 95% bootstrap interval. `bare again (noise)` is what the
machine makes of nothing: what lies within its interval cannot be told from it. The
libraries of requirements-peers.txt have rows where they were installed; what each keeps
stands in `bench/peers.py`. Under each title stands on what it was measured, and how
much of the machine other processes took meanwhile.
"""


def main(files: Sequence[Path]) -> None:
    """Write the page, and a plot for each table of ratios."""
    runs = [json.loads(file.read_text("utf-8")) for file in files]
    known = [
        (one["extra_info"], f"{run['machine_info']['cpu']['brand_raw']}, {day(run)}")
        for run in runs
        for one in run["benchmarks"]
        if "ratios" in one["extra_info"]
    ]
    parts = [HEAD]
    for number, (extra, where) in enumerate(known):
        parts.append(section(extra, where, number))
    PAGE.write_text("\n".join(parts), encoding="utf-8")


def day(run: dict[str, Any]) -> str:
    """Return the day of a run, 2026-11-24 for one."""
    return str(run["datetime"])[:10]


def section(extra: dict[str, Any], where: str, number: int) -> str:
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
        f"{extra['circumstances']}; {where}",
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
    main([Path(name) for name in sys.argv[1:]] or [RESULTS])
