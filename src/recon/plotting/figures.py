"""Draw what ``data`` computed; each function returns a matplotlib Figure.

Colours are those of viridis, cividis and Okabe and Ito, which a colour-blind reader
tells apart. What is undefined is hatched, never coloured like a number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recon.errors import UsageError
from recon.files import replacing
from recon.plotting.data import (
    Array,
    Correlations,
    Histogram,
    Patterns,
    Prefix,
    Scatter,
    Sizes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
_FEW = 40


def draw_scatter(found: Scatter) -> Figure:
    """Plot one token's neurons against the other's, with the identity line."""
    figure = _figure(5.6, 5.4)
    axes = figure.subplots()
    both = np.concatenate([found.x, found.y])
    finite = both[np.isfinite(both)]
    ends = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
    axes.plot(ends, ends, color="0.45", linestyle="--", linewidth=1, label="identity")
    axes.scatter(
        found.x, found.y, s=12, color=BLUE, alpha=0.6, linewidths=0, label="a neuron"
    )
    axes.set_aspect("equal", adjustable="datalim")
    _label(
        axes,
        f"activation at token {found.names[0]}",
        f"activation at token {found.names[1]}",
    )
    _title(axes, f"{found.site}, {len(found.x):,} neurons: {_r(found.r)}")
    axes.legend(loc="upper left", frameon=False)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    return figure


def draw_correlations(found: Sequence[Correlations]) -> Figure:
    """Draw a matrix of tokens by tokens for each site, on one scale from -1 to 1."""
    if not found:
        raise UsageError("no site to draw")
    tokens = len(found[0].tokens)
    columns = min(len(found), 4)
    lines = math.ceil(len(found) / columns)
    side = min(max(2.6, 0.13 * tokens + 1.2), 11.0) if len(found) == 1 else 3.1
    figure = _figure(columns * side + 1.4, lines * (side + 0.35))
    grid = figure.subplots(lines, columns, squeeze=False)
    image = None
    for place, axes in enumerate(grid.flat):
        if place >= len(found):
            axes.set_visible(False)
            continue
        one = found[place]
        image = _matrix(axes, one.matrix, "RdBu_r", -1.0, 1.0)
        _title(axes, one.site)
        _ticks(axes, one.tokens, every=len(found) == 1)
    _bar(figure, image, grid, "Pearson's r over neurons (hatched: undefined)")
    return figure


def draw_sizes(found: Sizes) -> Figure:
    """Plot norms by layer, token by token, and the largest neuron of each layer."""
    figure = _figure(8.6, 6.4)
    above, below = figure.subplots(2, 1, sharex=True)
    _norms(above, found)
    _largest(below, found)
    for axes in (above, below):
        if (found.median > 0).all() and np.isfinite(found.norms).all():
            axes.set_yscale("log")
        axes.margins(y=0.22)
        axes.legend(loc="best", frameon=False, fontsize=8)
        axes.grid(color="0.92")
    layers = range(len(found.sites))
    below.set_xticks(layers, found.sites, rotation=30, ha="right", fontsize=8)
    return figure


def _norms(axes: Axes, found: Sizes) -> None:
    """Draw a line for each token; the first, which is often the largest, stands out."""
    for token, norms in enumerate(found.norms.T[1:], 1):
        label = "other tokens" if token == 1 else None
        axes.plot(norms, color=BLUE, alpha=0.35, linewidth=1, label=label)
    first = f"token 0 {found.tokens[0]}"
    axes.plot(found.norms[:, 0], color=ORANGE, linewidth=2, marker="o", label=first)
    _label(axes, "", "Euclidean norm of a token")
    _title(axes, "How large activations are, by layer")


def _largest(axes: Axes, found: Sizes) -> None:
    """Draw each layer's largest magnitude, whose it is, and the median."""
    for values, colour, marker, word in (
        (found.largest, ORANGE, "o", "largest"),
        (found.median, GREEN, "s", "median"),
    ):
        label = f"{word} magnitude"
        axes.plot(values, color=colour, marker=marker, linewidth=2, label=label)
    for layer in np.flatnonzero(np.isfinite(found.largest)):
        axes.annotate(
            f"neuron {found.dimension[layer]}\ntoken {found.position[layer]}",
            (layer, found.largest[layer]),
            textcoords="offset points",
            xytext=(0, 7),
            ha="center",
            fontsize=6.5,
        )
    _label(axes, "", "magnitude of a neuron")


def draw_patterns(found: Patterns) -> Figure:
    """Draw each head's attention: a row for each query, a column for each key."""
    from matplotlib.colors import PowerNorm

    heads = len(found.weights)
    columns = min(heads, 4)
    lines = math.ceil(heads / columns)
    side = 3.3 if found.weights.shape[1] <= _FEW else 3.8
    figure = _figure(columns * side + 1.2, lines * (side + 0.3))
    grid = figure.subplots(lines, columns, squeeze=False)
    image = None
    for head, axes in enumerate(grid.flat):
        if head >= heads:
            axes.set_visible(False)
            continue
        image = _matrix(axes, found.weights[head], "viridis", 0.0, 1.0)
        # Most weights are small, and would all look alike.
        image.set_norm(PowerNorm(0.4, 0.0, 1.0))
        _title(axes, f"{found.site}, head {head}")
        _ticks(axes, found.tokens, every=False)
        _label(axes, "key", "query")
    _bar(figure, image, grid, "attention weight")
    return figure


def draw_histogram(found: Histogram) -> Figure:
    """Draw how often values occur, with counts on a logarithmic scale."""
    figure = _figure(7.0, 4.2)
    axes = figure.subplots()
    axes.stairs(found.counts, found.edges, fill=True, color=BLUE)
    axes.axvline(
        found.mean,
        color=ORANGE,
        linewidth=1.5,
        label=f"mean {found.mean:.3g}, standard deviation {found.std:.3g}",
    )
    axes.set_yscale("log")
    # The words have a stripe of their own, above the highest bar.
    axes.set_ylim(bottom=0.7, top=4.0 * max(1, int(found.counts.max())))
    _label(axes, "activation", "values in a bin")
    left = f", {found.dropped:,} not finite left out" if found.dropped else ""
    _title(
        axes, f"{found.site}: {found.values:,} values of {found.passes} prompts{left}"
    )
    axes.legend(loc="upper right", frameon=False)
    return figure


def draw_prefix(found: Prefix) -> Figure:
    """Draw the difference of two prompts, site by token: equal until they part."""
    shown = found.apart.shape[1]
    figure = _figure(
        min(max(6.0, 0.17 * shown + 2.6), 15.0), 1.7 + 0.3 * len(found.sites) + 1.0
    )
    axes = figure.subplots()
    with np.errstate(divide="ignore"):
        logs = np.where(found.equal, np.nan, np.log10(np.maximum(found.apart, 1e-300)))
    image = _matrix(axes, logs, "cividis", None, None, empty="white", hatch=None)
    axes.set_aspect("auto")
    axes.axvline(found.common - 0.5, color=ORANGE, linewidth=2)
    axes.set_yticks(range(len(found.sites)), found.sites, fontsize=8)
    first, second = found.names
    labels = [
        a if t < found.common else f"{a} | {b}"
        for t, (a, b) in enumerate(zip(first, second, strict=False))
    ]
    axes.set_xticks(range(shown), labels, rotation=90, fontsize=_size(shown))
    for label in axes.get_xticklabels():
        label.set_parse_math(False)
    state = "equal, every bit" if found.kept else "NOT equal, see the marks"
    _title(axes, f"{found.common} shared tokens, left of the line: {state}")
    _bar(
        figure,
        image,
        np.array([axes]),
        "log10 of the largest difference (white: equal)",
    )
    return figure


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as .png or .svg, whole or not at all.

    Raises UsageError for another suffix, or where it cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in (".png", ".svg"):
        raise UsageError(f"{path}: expected a name that ends with .png or .svg")
    kind = path.suffix.lower().removeprefix(".")
    # Without the date a figure drawn again is the same file.
    metadata = {"Date": None} if kind == "svg" else None
    try:
        with replacing(path) as draft:
            figure.savefig(draft, format=kind, metadata=metadata)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error


def token_labels(tokens: Sequence[str]) -> tuple[str, ...]:
    """Return tokens to print: blanks are seen, and so is what the font lacks."""
    return tuple("".join(map(_mark, token)) or "(empty)" for token in tokens)


def _mark(mark: str) -> str:
    if mark == " ":
        return "\u00b7"
    if mark.isprintable() and ord(mark) in _drawable():
        return mark
    return mark.encode("unicode_escape").decode("ascii")


@lru_cache(maxsize=1)
def _drawable() -> frozenset[int]:
    from matplotlib import font_manager, get_data_path

    path = Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return frozenset(font_manager.get_font(str(path)).get_charmap())


# -- pieces --------------------------------------------------------------------


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def _matrix(
    axes: Axes,
    values: Array,
    colours: str,
    low: float | None,
    high: float | None,
    *,
    empty: str = "0.85",
    hatch: str | None = "////",
) -> Any:
    from matplotlib import colormaps

    if not np.isfinite(values).any():
        low, high = low or 0.0, high or 1.0
    shades = colormaps[colours].with_extremes(bad=(0.0, 0.0, 0.0, 0.0))
    axes.patch.set(facecolor=empty, hatch=hatch, edgecolor="0.6")
    return axes.imshow(
        np.ma.masked_invalid(values),
        cmap=shades,
        vmin=low,
        vmax=high,
        interpolation="nearest",
    )


def _ticks(axes: Axes, tokens: Sequence[str], *, every: bool) -> None:
    """Name the tokens, or number some where the names would not be legible."""
    count = len(tokens)
    if every or count <= 16:
        axes.set_xticks(range(count), tokens, rotation=90, fontsize=_size(count))
        axes.set_yticks(range(count), tokens, fontsize=_size(count))
    else:
        step = max(1, round(count / 8))
        some = list(range(0, count, step))
        axes.set_xticks(some, [f"{n}" for n in some], fontsize=7)
        axes.set_yticks(some, [f"{n} {tokens[n]}" for n in some], fontsize=7)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_parse_math(False)


def _size(count: int) -> float:
    return max(5.5, min(9.0, 9.0 - (count - 20) / 15))


def _bar(figure: Figure, image: Any, grid: Any, words: str) -> None:
    shown = [axes for axes in np.ravel(grid) if axes.get_visible()]
    bar = figure.colorbar(image, ax=shown, shrink=0.7, aspect=28, pad=0.02)
    bar.set_label(words, fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, parse_math=False)
    axes.set_ylabel(y, parse_math=False)


def _title(axes: Axes, words: str) -> None:
    axes.set_title(words, fontsize=9, parse_math=False)


def _r(value: float) -> str:
    return (
        f"r = {value:.3f}"
        if math.isfinite(value)
        else "r undefined (a row is constant or not finite)"
    )
