"""The fingerprint of a tensor: a digest, moments, and sums with random signs.

Such a sum of a difference d is about as large as d is long, whatever d is, and exceeds
L times that length with probability 2 exp(-L^2/2) at most (Hoeffding 1963, theorem 2).
So a few numbers tell how far a tensor is from one that is no longer there.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from recon.saving import digest

# Sums to a tensor, and digits of its digest (128 bits).
PROJECTIONS, _DIGITS = 4, 32
# A sum of a correct run leaves what is allowed with this probability.
FALSE_ALARM = 1e-15
_LAMBDA = math.sqrt(2 * math.log(2 / FALSE_ALARM))
_AT_ONCE = 2**16


def content(tensor: Tensor) -> str:
    """Return a digest of dtype, shape and bytes."""
    return digest([tensor])[:_DIGITS]


def rounded(value: float) -> float:
    """Return a figure for people, to six digits."""
    return float(f"{value:.6g}")


def moments(tensor: Tensor) -> dict[str, float]:
    """Return mean and root mean square, to six digits."""
    flat = _flat(tensor).astype(np.float64)
    square = float(flat @ flat) / len(flat)
    return {"mean": rounded(float(flat.mean())), "rms": rounded(math.sqrt(square))}


def project(tensor: Tensor, name: str) -> list[float]:
    """Return the sums of all elements with random signs; ``name`` is their seed.

    Each element is split in two at a power of two, so that the sum of the upper parts
    is exact: the same bits give the same sums on every machine, but for the last place.
    """
    flat = _flat(tensor)
    most = float(np.abs(flat).max()) if len(flat) else 0.0
    if not math.isfinite(most):
        return [math.nan] * PROJECTIONS
    step = _step(most, len(flat))
    words = list(_random_words(name, len(flat)))
    sums = np.zeros((PROJECTIONS, 2))
    for start in range(0, len(flat), _AT_ONCE):
        some = flat[start : start + _AT_ONCE].astype(np.float64)
        upper = np.rint(some / step) * step
        sums += _signs(words, start, len(some)) @ np.stack([upper, some - upper], 1)
    return [float(high + low) for high, low in sums]


def _flat(tensor: Tensor) -> np.ndarray:
    plain = tensor.detach().cpu().flatten()
    # numpy knows no bfloat16.
    wide = plain if plain.dtype == torch.float64 else plain.float()
    return np.asarray(wide.numpy())


def _step(most: float, count: int) -> float:
    """Return the power of two of which ``count`` multiples up to ``most`` add up."""
    exponent = math.frexp(most)[1] + count.bit_length() - 52
    return math.ldexp(1.0, max(exponent, -1021))


def _random_words(name: str, count: int) -> Iterator[np.ndarray]:
    """Yield random bytes, a bit an element; Philox's raw stream is every numpy's."""
    for number in range(PROJECTIONS):
        seed = hashlib.sha256(f"{name}/{number}".encode()).digest()
        key = np.frombuffer(seed[:16], dtype="<u8")
        words = np.random.Philox(key=key).random_raw(count // 64 + 1)
        yield words.astype("<u8").view(np.uint8)


def _signs(words: Sequence[np.ndarray], start: int, count: int) -> np.ndarray:
    """Return the signs (sums, count) of some elements; ``start`` is a multiple of 8."""
    some = np.stack([row[start // 8 : (start + count + 7) // 8] for row in words])
    return np.unpackbits(some, axis=1, count=count) * 2.0 - 1.0


def own_error(sums: Sequence[float], most: float, count: int) -> float:
    """Bound the error of sums themselves: the last place, and that of the lower parts.

    The lower parts are at most half a step each, and sums of n of them are off by at
    most n roundoffs of their sizes (Higham 2002, section 4.2).
    """
    lower = count * count * 2.0**-53 * _step(most, count)
    return 2.0**-51 * max(map(abs, sums)) + lower


def allowed(length: float, count: int) -> float:
    """Return how large a sum of differences may be whose bounds have this length."""
    return min(_LAMBDA, math.sqrt(count)) * length


def gap(then: Sequence[float], now: Sequence[float]) -> float:
    """Return the largest difference of two fingerprints; not a number counts as far."""
    gaps = [abs(a - b) for a, b in zip(then, now, strict=True)]
    return max((one if math.isfinite(one) else math.inf for one in gaps), default=0.0)


def distance(then: Sequence[float], now: Sequence[float], size: float) -> float:
    """Estimate the length of a difference over ``size``, that of the tensor."""
    square = sum((a - b) ** 2 for a, b in zip(then, now, strict=True)) / len(then)
    if not math.isfinite(square):
        return math.inf
    return math.sqrt(square) / size if size else math.inf if square else 0.0
