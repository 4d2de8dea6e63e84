"""A line over depth on a logarithmic scale, as coordinates for an inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 640.0, 220.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 64.0, 12.0, 12.0, 34.0
_MOST_TICKS = 13


@dataclass(frozen=True)
class Point:
    """One value: where it is drawn, and what hovering says."""

    x: float
    y: float
    label: str


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Chart:
    """Values over depth; those that are 0 lie on the floor, below all others."""

    title: str
    across: str
    up: str
    points: tuple[Point, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    width: float = WIDTH
    height: float = HEIGHT

    @property
    def path(self) -> str:
        """The line, as SVG's ``points``."""
        return " ".join(f"{p.x:.1f},{p.y:.1f}" for p in self.points)


def chart(
    title: str, values: Sequence[tuple[str, float]], *, across: str, up: str
) -> Chart | None:
    """Draw values by name, in order; None where there is nothing above 0 to draw."""
    positive = [v for _, v in values if v > 0 and math.isfinite(v)]
    if not positive:
        return None
    low = math.floor(math.log10(min(positive)))
    high = max(math.ceil(math.log10(max(positive))), low + 1)
    floor, ceiling = HEIGHT - _BOTTOM, _TOP
    step = (WIDTH - _LEFT - _RIGHT) / max(1, len(values) - 1)
    # Zeros get a stripe of their own, under the lowest power of ten.
    zero = any(v <= 0 for _, v in values)
    bottom = floor - (18.0 if zero else 0.0)

    def up_to(value: float) -> float:
        if value <= 0:
            return floor
        share = (min(math.log10(value), high) - low) / (high - low)
        return bottom - (bottom - ceiling) * (share if math.isfinite(share) else 1.0)

    points = tuple(
        Point(_LEFT + n * step, up_to(value), f"{name}: {value:.3g}")
        for n, (name, value) in enumerate(values)
    )
    every = math.ceil((high - low) / 6)
    powers = range(low, high + 1, every)
    y_ticks = [Tick(up_to(10.0**power), f"1e{power:+03d}") for power in powers]
    y_ticks += [Tick(floor, "0")] if zero else []
    shown = range(0, len(values), math.ceil(len(values) / _MOST_TICKS))
    x_ticks = [Tick(points[n].x, values[n][0]) for n in shown]
    return Chart(title, across, up, points, tuple(x_ticks), tuple(y_ticks))
