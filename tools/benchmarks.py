"""Turn results of pytest-benchmark into docs/benchmarks.md, its plots and its JSON.

From bench/results.json, or from the files that are named; a benchmark that several of
them have is taken from the last. To run only some benchmarks again:

    pytest bench/bench_scale.py --benchmark-enable --benchmark-json=bench/results.json
    python -m tools.benchmarks docs/benchmarks/results.json bench/results.json
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results.json"
PAGE = ROOT / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

Made from results of `bench/` by tools/benchmarks.py (`make bench`); do not edit. The
figures are in [results.json](benchmarks/results.json) too. Ratios
are medians of paired ratios to the first line of each table, every variant run once a
round in random order, with a 95% bootstrap interval. `bare again (noise)` is what the
machine makes of nothing: what lies within its interval cannot be told from it. The
libraries of requirements-peers.txt have rows where they were installed; what each keeps
stands in `bench/peers.py`. Under each title stands on what it was measured, and how
much of the machine other processes took meanwhile.
"""
Extra = dict[str, Any]


def main(files: Sequence[Path]) -> None:
    """Write the page, a plot for each table of ratios, and the figures as JSON."""
    known: dict[str, Extra] = {}
    for file in files:
        known |= measured(json.loads(file.read_text("utf-8")))
    place = PAGE.parent / "benchmarks"
    place.mkdir(exist_ok=True)
    mpl.rcParams["svg.hashsalt"] = "recon"  # or the same plot differs in each run
    for old in place.glob("*.svg"):
        old.unlink()
    kept = [{"fullname": name, "extra_info": extra} for name, extra in known.items()]
    text = json.dumps({"benchmarks": kept}, indent=1)
    (place / "results.json").write_text(text + "\n", encoding="utf-8")
    PAGE.write_text("\n".join([HEAD, *sections(known)]), encoding="utf-8")


def measured(run: Mapping[str, Any]) -> dict[str, Extra]:
    """Return what each benchmark of a run kept, by name, with where and when."""
    named = ((one["fullname"], one["extra_info"]) for one in run["benchmarks"])
    around = {"where": where(run)}
    return {name: around | extra for name, extra in named if "title" in extra}


def where(run: Mapping[str, Any]) -> str:
    """Return the processor and the day of a run, AMD EPYC, 2026-11-24 for one."""
    if "machine_info" not in run:
        return ""
    return f"{run['machine_info']['cpu']['brand_raw']}, {str(run['datetime'])[:10]}"


def sections(known: Mapping[str, Extra]) -> Iterator[str]:
    """Yield the benchmarks of each file below the question that it asks."""
    for file in dict.fromkeys(map(file_of, known)):
        yield question(ROOT / file)
        for name, extra in known.items():
            if file_of(name) == file:
                yield section(extra, picture(name))


def file_of(name: str) -> str:
    """Return the file of a benchmark."""
    return name.split("::")[0]


def question(file: Path) -> str:
    """Return a file's docstring, its first line as a title."""
    words = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or file.stem
    title, _, rest = words.partition("\n")
    return f"## {title}\n{rest}\n"


def picture(name: str) -> Path:
    """Return the file of a benchmark's plot."""
    words = re.findall(r"[a-z0-9]+", name.split("::test_")[1].lower())
    return PAGE.parent / "benchmarks" / f"{'-'.join(words)}.svg"


def section(extra: Extra, plot: Path) -> str:
    """Return what one benchmark found in Markdown, with its plot drawn beside it."""
    lines = [f"### {extra['title']}", ""]
    lines += [f"{extra['circumstances']}; {extra['where']}", ""]
    if "ratios" in extra:
        draw(extra, plot)
        lines += [*ratios(extra["ratios"]), "", f"![ratios](benchmarks/{plot.name})"]
        lines.append("")
    if "held" in extra:
        lines += [*sizes(extra), ""]
    return "\n".join(lines)


def ratios(found: Mapping[str, Extra]) -> Iterator[str]:
    """Yield the table of what each variant takes."""
    yield "| | ms | ratio | 95% interval |"
    yield "|---|---|---|---|"
    for name, one in found.items():
        low, high = one["interval"]
        yield (
            f"| {name} | {one['seconds'] * 1e3:.2f} | {one['ratio']:.3f} "
            f"| {low:.3f} - {high:.3f} |"
        )


def sizes(extra: Extra) -> Iterator[str]:
    """Yield the table of bytes, beside the fewest or beside those of all that is."""
    beside, what = ("needed", "times the fewest")
    if beside not in extra:
        beside, what = ("whole", "of what a whole capture keeps")
    yield f"| size | bytes kept | {what} |"
    yield "|---|---|---|"
    for size, held, other in zip(
        extra["sizes"], extra["held"], extra[beside], strict=True
    ):
        yield f"| {size} | {held:,} | {held / other:.3f} |"


def draw(extra: Extra, plot: Path) -> None:
    """Draw ratios with their intervals, the first at the top."""
    rows = list(extra["ratios"].items())[::-1]
    figure = Figure(figsize=(8, 0.4 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    middle = [one["ratio"] for _, one in rows]
    # The median of few ratios may lie outside its interval by a rounding.
    low = [max(0.0, one["ratio"] - one["interval"][0]) for _, one in rows]
    high = [max(0.0, one["interval"][1] - one["ratio"]) for _, one in rows]
    places = range(len(rows))
    axes.errorbar(middle, places, xerr=[low, high], fmt="o", capsize=3, markersize=4)
    axes.axvline(1, color="0.5", linewidth=0.8)
    axes.set_yticks(places, [name for name, _ in rows])
    if max(middle) > 3:
        axes.set_xscale("log")
    axes.set_title(extra["title"], fontsize=10)
    axes.set_xlabel(f"time, as a ratio to {rows[-1][0]}", fontsize=9)
    figure.savefig(plot, metadata={"Date": None})


def paths(names: Iterable[str]) -> list[Path]:
    """Return the files that are named, or that of the last run."""
    return [Path(name) for name in names] or [RESULTS]


if __name__ == "__main__":
    main(paths(sys.argv[1:]))
