"""Time variants of one thing in turn, so that a noisy machine disturbs all alike."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

# A machine on which a pass differs more from itself hides what capture costs.
NOISY = 0.1
_DRAWS = 500


@dataclass(frozen=True)
class Ratio:
    """One variant against the first: the median of the paired ratios.

    ``seconds`` is the variant's median time and ``quartiles`` its spread; ``low`` and
    ``high`` are a 95% bootstrap interval of the median ratio.
    """

    name: str
    seconds: float
    quartiles: tuple[float, float]
    ratio: float
    low: float
    high: float

    @property
    def error(self) -> float:
        """How far from 1 the interval reaches."""
        return max(abs(self.low - 1), abs(self.high - 1))

    def tells(self, noise: float) -> bool:
        """Whether the interval lies outside what the machine makes of nothing."""
        return self.low > 1 + noise or self.high < 1 - noise

    def __str__(self) -> str:
        return (
            f"{self.name:<34} {self.seconds * 1e3:9.2f} ms   {self.ratio:6.3f}  "
            f"[{self.low:.3f}, {self.high:.3f}]"
        )


def interleaved(
    variants: Mapping[str, Callable[[], object]],
    rounds: int,
    warm_up: int = 3,
    around: Mapping[str, Callable[[], AbstractContextManager[object]]] | None = None,
) -> list[Ratio]:
    """Run every variant once a round, in random order; compare with the first.

    ``around`` gives what a variant runs inside of, untimed.
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
    return [ratio(name, times[name], times[first], dice) for name in variants]


def ratio(
    name: str, mine: Sequence[float], base: Sequence[float], dice: random.Random
) -> Ratio:
    """Compare paired times, in seconds; at least two of each."""
    ratios = [a / b for a, b in zip(mine, base, strict=True)]
    medians = sorted(
        statistics.median(dice.choices(ratios, k=len(ratios))) for _ in range(_DRAWS)
    )
    quarter, middle, three_quarters = statistics.quantiles(mine, method="inclusive")
    return Ratio(
        name,
        middle,
        (quarter, three_quarters),
        statistics.median(ratios),
        medians[_DRAWS // 40],
        medians[-_DRAWS // 40 - 1],
    )
