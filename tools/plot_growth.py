"""Measure how certify's cost grows with tokens, batch and depth, and draw it.

Writes docs/images/certify_growth.svg and prints the table of docs/numerics.md. Times
are CPU times of one thread, the shortest of some rounds, so that other work on the
machine counts little.

python -m tools.plot_growth
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import linear_regression

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from numpy import log

from bench.bench_checking import GROWTH, captured, narrow
from recon.checks import Levels, trace_checks

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "certify_growth.svg"
ROUNDS = 3


def main() -> None:
    """Measure every axis; print a row for each, and draw all."""
    torch.set_num_threads(1)
    measured: dict[str, dict[int, float]] = {}
    print("| by | time | exponent |", "|---|---|---|", sep="\n")
    for axis, (sizes, shape) in GROWTH.items():
        measured[axis] = times = {size: _seconds(*shape(size)) for size in sizes}
        shown = ", ".join(f"{size}: {1e3 * t:.0f} ms" for size, t in times.items())
        print(f"| {axis} | {shown} | {exponent(times):.2f} |", flush=True)
    _draw(measured)


def exponent(times: Mapping[int, float]) -> float:
    """Return the slope of log time over log size, by least squares."""
    return linear_regression(log(list(times)), log(list(times.values()))).slope


def _seconds(batch: int, tokens: int, depth: int) -> float:
    """Return the shortest CPU time of certifying one pass, after a first."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(997, (batch, tokens), generator=generator)
    trace = captured(narrow(depth), ids)

    def certify() -> None:
        trace_checks(trace, None, Levels(("certify",)))

    certify()
    return min(_timed(certify) for _ in range(ROUNDS))


def _timed(call: Callable[[], None]) -> float:
    begun = time.process_time()
    call()
    return time.process_time() - begun


def _draw(measured: Mapping[str, Mapping[int, float]]) -> None:
    mpl.rcParams["svg.hashsalt"] = "recon"
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for axis, times in measured.items():
        label = f"{axis}, exponent {exponent(times):.2f}"
        axes.loglog(list(times), [1e3 * t for t in times.values()], "o-", label=label)
    axes.set(xlabel="tokens, rows or blocks", ylabel="certify, CPU time (ms)")
    axes.legend()
    draft = PICTURE.with_suffix(f".{os.getpid()}.svg")
    figure.savefig(draft, metadata={"Date": None})
    draft.replace(PICTURE)


if __name__ == "__main__":
    main()
