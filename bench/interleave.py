"""Time variants of one thing in turn, so that a noisy machine disturbs all alike."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import transformers


@dataclass(frozen=True)
class Ratio:
    """One variant against the first: median of the paired ratios, and their spread."""

    name: str
    seconds: float
    ratio: float
    low: float
    high: float

    def __str__(self) -> str:
        return (
            f"{self.name:<34} {self.seconds * 1e3:9.2f} ms   {self.ratio:6.3f}  "
            f"[{self.low:.3f}, {self.high:.3f}]"
        )


def interleaved(
    variants: Mapping[str, Callable[[], object]],
    rounds: int,
    warm_up: int = 3,
    around: Mapping[str, Callable[[], AbstractContextManager[None]]] | None = None,
) -> list[Ratio]:
    """Run every variant once a round, in random order; compare with the first.

    ``around`` gives what a variant runs inside of, untimed. The interval is a 95%
    bootstrap interval of the median ratio.
    """
    settings = around or {}
    times: dict[str, list[float]] = {name: [] for name in variants}
    order, dice = list(variants), random.Random(0)
    for done in range(warm_up + rounds):
        dice.shuffle(order)
        for name in order:
            with settings.get(name, nullcontext)():
                begun = time.perf_counter()
                variants[name]()
                took = time.perf_counter() - begun
            if done >= warm_up:
                times[name].append(took)
    first = next(iter(variants))
    return [_ratio(name, times[name], times[first], dice) for name in variants]


def _ratio(
    name: str, mine: list[float], base: list[float], dice: random.Random
) -> Ratio:
    ratios = [a / b for a, b in zip(mine, base, strict=True)]
    medians = sorted(
        statistics.median(dice.choices(ratios, k=len(ratios))) for _ in range(500)
    )
    return Ratio(
        name,
        statistics.median(mine),
        statistics.median(ratios),
        medians[12],
        medians[-13],
    )


def show(title: str, ratios: list[Ratio], benchmark: object) -> None:
    """Print a table and keep it with the benchmark's own figures."""
    print(f"\n{title}\n{circumstances()}")
    for ratio in ratios:
        print(f"  {ratio}")
    benchmark.extra_info["ratios"] = {  # type: ignore[attr-defined]
        r.name: {"seconds": r.seconds, "ratio": r.ratio, "interval": [r.low, r.high]}
        for r in ratios
    }
    benchmark.extra_info["circumstances"] = circumstances()  # type: ignore[attr-defined]


def circumstances() -> str:
    """Say with what the figures were measured."""
    return (
        f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{torch.get_num_threads()} threads"
    )
