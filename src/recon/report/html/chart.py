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
    """Values over depth: 0 lies on the floor, below all others, and ∞ above them.

    ``unmeasured`` says that some value is not finite.
    """

    title: str
    across: str
    up: str
    points: tuple[Point, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    unmeasured: bool = False
    width: float = WIDTH
    height: float = HEIGHT

    @property
    def path(self) -> str:
        """The line, as SVG's ``points``."""
        return " ".join(f"{p.x:.1f},{p.y:.1f}" for p in self.points)


def chart(
    title: str, values: Sequence[tuple[str, float]], *, across: str, up: str
) -> Chart | None:
    """Draw values by name, in order; None where all are 0."""
    if all(v == 0 for _, v in values):
        return None
    positive = [v for _, v in values if v > 0 and math.isfinite(v)]
    low, high = _powers(positive)
    # What is not finite has a stripe of its own, above the highest power of ten.
    unmeasured = any(not math.isfinite(v) for _, v in values)
    floor, ceiling = HEIGHT - _BOTTOM, _TOP + (18.0 if unmeasured else 0.0)
    step = (WIDTH - _LEFT - _RIGHT) / max(1, len(values) - 1)
    # Zeros get a stripe of their own, under the lowest power of ten.
    zero = any(v <= 0 for _, v in values)
    bottom = floor - (18.0 if zero else 0.0)

    def up_to(value: float) -> float:
        if not math.isfinite(value):
            return _TOP
        if value <= 0:
            return floor
        return bottom - (bottom - ceiling) * (math.log10(value) - low) / (high - low)

    points = tuple(
        Point(_LEFT + n * step, up_to(value), f"{name}: {_figure(value)}")
        for n, (name, value) in enumerate(values)
    )
    powers = range(low, high + 1, math.ceil((high - low) / 6)) if positive else ()
    y_ticks = [Tick(_TOP, "∞")] if unmeasured else []
    y_ticks += [Tick(up_to(10.0**power), f"1e{power:+03d}") for power in powers]
    y_ticks += [Tick(floor, "0")] if zero else []
    shown = range(0, len(values), math.ceil(len(values) / _MOST_TICKS))
    x_ticks = [Tick(points[n].x, values[n][0]) for n in shown]
    return Chart(title, across, up, points, tuple(x_ticks), tuple(y_ticks), unmeasured)


def _powers(values: Sequence[float]) -> tuple[int, int]:
    """Return the powers of ten, at least one apart, that enclose values above 0."""
    if not values:
        return 0, 1
    low = math.floor(math.log10(min(values)))
    return low, max(math.ceil(math.log10(max(values))), low + 1)


def _figure(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "not finite"
