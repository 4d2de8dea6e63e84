"""What the plots of activations show, as plain data in float64.

Every function takes captures of one pass, a ``Trace`` or a prompt of
``recon.load_captures``: a mapping of sites to tensors with a batch axis, of which row 0
is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from recon.errors import UsageError
from recon.sites import Site, site

Array: TypeAlias = np.ndarray[Any, Any]
Run: TypeAlias = Mapping[Any, Tensor]


@dataclass(frozen=True, eq=False)
class Scatter:
    """Two tokens at one site: ``x`` and ``y`` are N neurons; ``r`` is Pearson's.

    ``r`` is NaN, undefined, where a row is constant or not finite.
    """

    site: str
    names: tuple[str, str]
    x: Array
    y: Array
    r: float


@dataclass(frozen=True, eq=False)
class Correlations:
    """Pearson's r between every two of T tokens at one site: ``matrix``, T T."""

    site: str
    tokens: tuple[str, ...]
    matrix: Array

    @property
    def with_the_others(self) -> Array:
        """Mean r of each token with all others, T; NaN is left out."""
        apart = np.where(np.eye(len(self.matrix), dtype=bool), np.nan, self.matrix)
        defined = np.isfinite(apart)
        total = np.where(defined, apart, 0.0).sum(axis=1)
        count = defined.sum(axis=1)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)


@dataclass(frozen=True, eq=False)
class Sizes:
    """How large activations are by layer, L.

    ``norms`` are Euclidean, L T; ``largest`` is each layer's largest magnitude, in
    neuron ``dimension`` of token ``position``; ``median`` is that of all magnitudes.
    """

    sites: tuple[str, ...]
    tokens: tuple[str, ...]
    norms: Array
    largest: Array
    dimension: Array
    position: Array
    median: Array


@dataclass(frozen=True, eq=False)
class Patterns:
    """Attention of one block: ``weights``, H T S, each row of which sums to 1."""

    site: str
    tokens: tuple[str, ...]
    weights: Array


@dataclass(frozen=True, eq=False)
class Histogram:
    """Values of one site over many passes: ``counts`` between ``edges``, one more.

    ``passes`` and ``values`` were counted, ``dropped`` of them were not finite.
    """

    site: str
    counts: Array
    edges: Array
    mean: float
    std: float
    passes: int
    values: int
    dropped: int


@dataclass(frozen=True, eq=False)
class Prefix:
    """Two passes that begin alike: ``apart`` is the largest difference, L T.

    T are the positions that both have; ``common`` is how many tokens they share. Row t
    of ``equal``, L T, says whether all bits agree.
    """

    sites: tuple[str, ...]
    names: tuple[tuple[str, ...], tuple[str, ...]]
    common: int
    apart: Array
    equal: Array

    @property
    def kept(self) -> bool:
        """Whether every row of the shared tokens is equal, bit by bit."""
        return bool(self.equal[:, : self.common].all())


def rows(run: Run, place: str | Site) -> Array:
    """Return a site as T N: a row a token, all neurons of all heads along it.

    Raises UsageError for a site that has no tokens or whose shape has keys.
    """
    wanted = site(place)
    axes = wanted.row.shape.replace("1|B", "B").split()
    if "T" not in axes or {"S", "E"} & set(axes):
        raise UsageError(
            f"{wanted} has the axes {' '.join(axes)}: no neurons of a token"
        )
    tensor = run[wanted].detach().cpu()[0].movedim(axes.index("T") - 1, 0)
    values: Array = tensor.flatten(1).double().numpy()
    return values


def correlation(matrix: Array) -> Array:
    """Return Pearson's r between the rows of T N, as T T; NaN where undefined."""
    finite = np.asarray(np.isfinite(matrix).all(axis=1))
    defined = finite & (np.ptp(np.where(finite[:, None], matrix, 0.0), axis=1) > 0)
    matrix = np.where(finite[:, None], matrix, 0.0)
    centred = matrix - matrix.mean(axis=1, keepdims=True)
    # Scaled first: squares of what float16 or float64 holds need not fit.
    peak = np.abs(centred).max(axis=1, keepdims=True)
    scaled = np.where(defined[:, None], centred / np.where(peak > 0, peak, 1.0), 0.0)
    norms = np.sqrt((scaled**2).sum(axis=1))
    product = scaled @ scaled.T
    r = np.clip(
        product
        / np.where(norms > 0, norms, 1.0)
        / np.where(norms > 0, norms, 1.0)[:, None],
        -1,
        1,
    )
    found: Array = np.where(np.outer(defined, defined), r, np.nan)
    return found


def scatter(
    run: Run, place: str | Site, pair: tuple[int, int], tokens: Sequence[str]
) -> Scatter:
    """Compare two tokens over all neurons of a site; -1 is the last token.

    Raises UsageError if both are one token: it is like itself in every model.
    """
    values = rows(run, place)
    first, second = (_position(number, len(values)) for number in pair)
    if first == second:
        raise UsageError(
            f"scatter compares two tokens, and {pair[0]} and {pair[1]} are one of "
            f"{len(values)}; give two, or a longer prompt"
        )
    return Scatter(
        str(site(place)),
        (f"{first} {tokens[first]}", f"{second} {tokens[second]}"),
        values[first],
        values[second],
        float(correlation(values[[first, second]])[0, 1]),
    )


def correlations(run: Run, place: str | Site, tokens: Sequence[str]) -> Correlations:
    """Correlate every two tokens of a prompt over all neurons of a site."""
    return Correlations(str(site(place)), tuple(tokens), correlation(rows(run, place)))


def sizes(run: Run, places: Iterable[str | Site], tokens: Sequence[str]) -> Sizes:
    """Measure norms and the largest neuron, site by site."""
    names = [str(site(place)) for place in places]
    layers = [rows(run, name) for name in names]
    if len({layer.shape for layer in layers}) != 1:
        raise UsageError("sizes compares sites of one shape, h.*.resid_post for one")
    magnitudes = np.abs(np.stack(layers))
    flat = magnitudes.reshape(len(names), -1)
    # What is no number is larger than all numbers: it must not go unseen.
    peak = np.where(np.isfinite(flat), flat, np.inf).argmax(axis=1)
    width = magnitudes.shape[2]
    return Sizes(
        tuple(names),
        tuple(tokens),
        np.sqrt((magnitudes**2).sum(axis=2)),
        np.take_along_axis(flat, peak[:, None], axis=1)[:, 0],
        peak % width,
        peak // width,
        np.median(flat, axis=1),
    )


def patterns(run: Run, layer: int, tokens: Sequence[str]) -> Patterns:
    """Take the attention weights of all heads of a block."""
    place = Site("attn.pattern", layer)
    weights: Array = run[place].detach().cpu()[0].double().numpy()
    return Patterns(str(place), tuple(tokens), weights)


def histogram(
    runs: Callable[[], Iterable[Run]], place: str | Site, bins: int = 80
) -> Histogram:
    """Count the values of a site over many passes.

    ``runs`` is called twice, first for the range, so that one pass at a time is held:
    ``lambda: recorder.traces`` of ``keep="all"``, or ``lambda: captures``.
    """
    low, high, total, square, values, dropped, passes = (
        np.inf,
        -np.inf,
        0.0,
        0.0,
        0,
        0,
        0,
    )
    for run in runs():
        flat = _values(run, place)
        finite = flat[np.isfinite(flat)]
        passes, dropped = passes + 1, dropped + len(flat) - len(finite)
        values, total = values + len(finite), total + finite.sum()
        low = min(low, finite.min(initial=np.inf))
        high = max(high, finite.max(initial=-np.inf))
    if not values:
        raise UsageError(f"{site(place)}: no finite value in {passes} passes")
    mean = total / values
    edges = np.histogram_bin_edges(np.empty(0), bins, (low, high))
    counts = np.zeros(bins, dtype=np.int64)
    for run in runs():
        flat = _values(run, place)
        finite = flat[np.isfinite(flat)]
        counts += np.histogram(finite, edges)[0]
        square += ((finite - mean) ** 2).sum()
    return Histogram(
        str(site(place)),
        counts,
        edges,
        float(mean),
        float(np.sqrt(square / values)),
        passes,
        values,
        dropped,
    )


def prefix(
    pair: tuple[Run, Run],
    places: Iterable[str | Site],
    ids: tuple[Sequence[int], Sequence[int]],
    tokens: tuple[Sequence[str], Sequence[str]],
) -> Prefix:
    """Compare two passes position by position, and see where their tokens part."""
    names = [str(site(place)) for place in places]
    length = min(len(ids[0]), len(ids[1]))
    parted = [a != b for a, b in zip(*ids, strict=False)]
    common = parted.index(True) if True in parted else length
    apart, equal = [], []
    for name in names:
        first, second = (rows(run, name)[:length] for run in pair)
        with np.errstate(invalid="ignore"):
            apart.append(np.abs(first - second).max(axis=1))
        equal.append(
            ((first == second) | (np.isnan(first) & np.isnan(second))).all(axis=1)
        )
    return Prefix(
        tuple(names),
        (tuple(tokens[0]), tuple(tokens[1])),
        common,
        np.stack(apart),
        np.stack(equal),
    )


def _values(run: Run, place: str | Site) -> Array:
    values: Array = run[site(place)].detach().cpu().flatten().to(torch.float64).numpy()
    return values


def _position(number: int, length: int) -> int:
    if not -length <= number < length:
        raise UsageError(
            f"token {number}: the prompt has {length} tokens, 0 to {length - 1}"
        )
    return number % length
