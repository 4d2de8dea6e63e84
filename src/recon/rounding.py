"""Values that carry a proven error bound.

A ``Bounded`` is a pair (v, e) in float64: every correctly rounded way of computing the
same quantity in the run's arithmetic lies within e of v. Each rule adds what one
operation may add. The derivations stand in docs/numerics.md; the sources are Higham,
*Accuracy and Stability of Numerical Algorithms* (2nd ed., SIAM 2002), and Higham &
Mary, *A New Approach to Probabilistic Rounding Error Analysis* (SISC 41, 2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Form: TypeAlias = Literal["deterministic", "probabilistic"]

# Unit roundoff: half the gap between 1 and the next number.
UNIT: dict[torch.dtype, float] = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}
# What a result may lose near zero. Half precision rounds to its smallest subnormal;
# elsewhere hardware may flush subnormals (AVX512's bfloat16 products do), so the
# smallest normal number.
_LOST: dict[torch.dtype, float] = {
    torch.float64: 2.0**-1022,
    torch.float32: 2.0**-126,
    torch.float16: 2.0**-24,
    torch.bfloat16: 2.0**-126,
}
# The reference is computed in float64 itself: its own error goes into every bound.
_REFERENCE = UNIT[torch.float64]
# exp, tanh, erf and their like: vectorised libraries promise 1 ulp, accelerators'
# fast versions 2; an ulp is up to two units of roundoff.
ELEMENTARY = 4.0
# The probabilistic form fails, per sum of n terms, with probability 2 n exp(-L^2/2).
LAMBDA = 8.0


@dataclass(frozen=True)
class Arithmetic:
    """How a run computes: the dtype it stores in, and the one it accumulates in.

    ``inputs`` is the relative rounding of the operands of a matrix product, other than
    0 where TF32 or bfloat16 products stand in for float32 ones.
    """

    store: torch.dtype
    form: Form = "deterministic"
    inputs: float = 0.0

    @property
    def u(self) -> float:
        """Roundoff of a stored result, the reference's own included."""
        return UNIT[self.store] + _REFERENCE

    @property
    def a(self) -> float:
        """Roundoff of the accumulator: float32 for half dtypes."""
        return UNIT[self.accumulator] + _REFERENCE

    @property
    def accumulator(self) -> torch.dtype:
        """The dtype in which sums are kept before they are stored."""
        return torch.float64 if self.store == torch.float64 else torch.float32

    @property
    def inside(self) -> Arithmetic:
        """The arithmetic between two stores: everything in the accumulator."""
        return replace(self, store=self.accumulator)

    def gamma(self, n: int) -> float:
        """Bound the relative error of a sum of n products, in any order.

        ``n a / (1 - n a)`` (Higham 2002, lemma 3.1 and section 3.1), or
        ``exp(L sqrt(n) a + n a^2/(1-a)) - 1`` (Higham & Mary 2019, theorem 2.4).
        """
        a = self.a
        if self.form == "probabilistic":
            return math.expm1(LAMBDA * math.sqrt(n) * a + n * a * a / (1 - a))
        return n * a / (1 - n * a) if n * a < 1 else math.inf

    def exact(self, tensor: Tensor) -> Bounded:
        """Take a tensor as it is: no error yet."""
        value = tensor.double()
        return Bounded(value, torch.zeros_like(value), self)


@dataclass(frozen=True, eq=False)
class Bounded:
    """A value and how far any correct computation of it may stray; float64, one shape.

    Operators round once, to the precision of ``arithmetic.store``.
    """

    value: Tensor
    error: Tensor
    arithmetic: Arithmetic

    def rounded(self, units: float = 1.0) -> Bounded:
        """Add a rounding of ``units`` roundoffs, and what may be lost near zero.

        Where the value may exceed the largest number, the error is infinite.
        """
        store, u = self.arithmetic.store, self.arithmetic.u
        largest = self.value.abs() + self.error
        error = self.error + units * u * largest + _LOST[store]
        error = error.masked_fill(largest >= torch.finfo(store).max, math.inf)
        return replace(self, error=error)

    def to(self, arithmetic: Arithmetic) -> Bounded:
        """Store in another precision; free if it is not coarser."""
        moved = replace(self, arithmetic=arithmetic)
        coarser = UNIT[arithmetic.store] > UNIT[self.arithmetic.store]
        return moved.rounded() if coarser else moved

    def _as(self, other: Bounded | float) -> Bounded:
        if isinstance(other, Bounded):
            return other
        value = torch.full_like(self.value, other)
        # A constant is rounded to the precision in which it is used.
        return Bounded(value, self.arithmetic.u * value.abs(), self.arithmetic)

    def __add__(self, other: Bounded | float) -> Bounded:
        other = self._as(other)
        return replace(
            self, value=self.value + other.value, error=self.error + other.error
        ).rounded()

    def __sub__(self, other: Bounded | float) -> Bounded:
        other = self._as(other)
        return self + replace(other, value=-other.value)

    def __mul__(self, other: Bounded | float) -> Bounded:
        other = self._as(other)
        error = (
            self.value.abs() * other.error
            + self.error * other.value.abs()
            + self.error * other.error
        )
        return replace(self, value=self.value * other.value, error=error).rounded()

    def power(self, n: int) -> Bounded:
        """The n-th power, by ``pow`` or by n-1 products."""
        high = (self.value.abs() + self.error) ** n
        error = high - self.value.abs() ** n
        return replace(self, value=self.value**n, error=error).rounded(
            max(ELEMENTARY, n - 1)
        )

    def monotone(
        self, function: Callable[[Tensor], Tensor], units: float = ELEMENTARY
    ) -> Bounded:
        """Apply a monotone function that libraries compute to ``units`` roundoffs."""
        value = function(self.value)
        above = (function(self.value + self.error) - value).abs()
        below = (function(self.value - self.error) - value).abs()
        return replace(self, value=value, error=torch.maximum(above, below)).rounded(
            units
        )

    def clipped(self, low: float, high: float) -> Bounded:
        """Clip; both ends and the slope of one are exact."""
        return self.monotone(lambda x: x.clamp(low, high), units=0.0)


# -- sums of products ----------------------------------------------------------


def product(
    x: Tensor, weight: Tensor, bias: Tensor | None, arithmetic: Arithmetic
) -> Bounded:
    """Return ``x W + b`` for x (rows, in), W (in, out): any order, any split, any FMA.

    gamma_{n+1} (|x||W| + |b|), accumulated, then stored once.
    """
    exact, into = x.double(), weight.double()
    value, size = exact @ into, exact.abs() @ into.abs()
    if bias is not None:
        value, size = value + bias.double(), size + bias.double().abs()
    n = x.shape[-1] + 1
    inputs = 2 * arithmetic.inputs + arithmetic.inputs**2
    error = (arithmetic.gamma(n) + inputs) * size + n * _LOST[arithmetic.accumulator]
    return Bounded(value, error, arithmetic).rounded()


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, arithmetic: Arithmetic
) -> Bounded:
    """Return the LayerNorm of rows x (rows, n), two-pass or Welford.

    The variance strays by gamma (2 s r) + (gamma r)^2, with s the deviation and r the
    root mean square: Welford's is the larger of the two (Chan, Golub & LeVeque, *The
    American Statistician* 37, 1983, table 1).
    """
    inner = arithmetic.inside
    a, n = inner.a, x.shape[-1]
    exact = x.double()
    mean = exact.mean(-1, keepdim=True)
    centred = exact - mean
    variance = centred.square().mean(-1, keepdim=True)
    size = exact.abs().mean(-1, keepdim=True)
    root = exact.square().mean(-1, keepdim=True).sqrt()
    gamma = inner.gamma(n + 2)
    off_mean = gamma * size
    off_variance = 2 * gamma * variance.sqrt() * root + (gamma * root).square()

    def scale(v: Tensor) -> Tensor:
        return (v.clamp(min=0) + eps).rsqrt()

    rstd = scale(variance)
    off_rstd = (
        torch.maximum(
            scale(variance - off_variance) - rstd, rstd - scale(variance + off_variance)
        )
        + 4 * a * rstd
    )
    # Kernels may compute x * rstd - mean * rstd, which cancels: two roundings each.
    off_centred = off_mean + 2 * a * (exact.abs() + mean.abs())
    normal = centred * rstd
    off_normal = off_centred * (rstd + off_rstd) + centred.abs() * off_rstd
    gain = weight.double()
    value, error = normal * gain, off_normal * gain.abs()
    error = error + 2 * a * (value.abs() + error)
    if bias is not None:
        value = value + bias.double()
        error = error + a * (value.abs() + bias.double().abs() + error)
    return Bounded(value, error, arithmetic).rounded()


# -- attention -----------------------------------------------------------------

# Flash-style kernels rescale what they have once for each block of keys, of at least
# this many.
_BLOCK = 32


@dataclass(frozen=True, eq=False)
class Softmax:
    """Attention weights of some rows before they are stored: p and its bound."""

    weights: Tensor
    error: Tensor
    sums: float


def attention_weights(
    scores: Tensor,
    size: Tensor,
    allowed: Tensor,
    bias: Tensor | None,
    width: int,
    stored: Arithmetic,
) -> Softmax:
    """Return softmax(scores + bias) over the allowed keys, plain or online.

    ``scores`` are exact and scaled, ``size`` is |q||k| scaled alike, ``width`` the
    length of the products, ``stored`` the arithmetic in which scores are kept between
    the product and the exponential.
    """
    inner = stored.inside
    a, u = inner.a, stored.u
    # Kept in the accumulator, q or k may be scaled first, which rounds every product.
    rounding = 4 * u * scores.abs() if u > a else 4 * a * size
    inputs = 2 * stored.inputs + stored.inputs**2
    off = (inner.gamma(width) + inputs) * size + rounding
    if bias is not None:
        scores = scores + bias
        off = off + u * (scores.abs() + off)
    scores = scores.masked_fill(~allowed, -math.inf)
    top = scores.amax(-1, keepdim=True).nan_to_num(neginf=0.0)
    shifted = scores - top
    near = scores.abs().nan_to_num(posinf=0.0)
    # Subtracting the maximum, and base-2 exponentials that scale by log2(e) first.
    off = off + a * (2 * shifted.abs().nan_to_num(posinf=0.0) + 2 * (near + top.abs()))
    off = (off + ELEMENTARY * a).clamp(max=50.0).masked_fill(~allowed, 0.0)
    raw = shifted.exp()
    total = raw.sum(-1, keepdim=True)
    p = (raw / total).nan_to_num(nan=0.0)
    low = (p * (-off).exp()).sum(-1, keepdim=True)
    high = (p * off.exp()).sum(-1, keepdim=True)
    keys = scores.shape[-1]
    blocks = math.ceil(keys / _BLOCK)
    sums = inner.gamma(keys + 4 * blocks)
    relative = sums + (2 + ELEMENTARY) * a
    above = p * (off.exp() / low.clamp(min=1e-300)) * (1 + relative)
    below = p * ((-off).exp() / high.clamp(min=1e-300)) * (1 - relative)
    error = torch.maximum(above.clamp(max=1.0 + relative) - p, p - below)
    return Softmax(p, error.clamp(min=0.0) + _LOST[inner.store], sums)


def mixed(soft: Softmax, values: Tensor, arithmetic: Arithmetic) -> Bounded:
    """Return ``p v`` of a fused kernel: weights rounded to the dtype, then summed."""
    exact, size = values.double(), values.double().abs()
    value = soft.weights @ exact
    weight_rounding = arithmetic.u if arithmetic.u > arithmetic.inside.a else 0.0
    inputs = 2 * arithmetic.inputs + arithmetic.inputs**2
    relative = soft.sums + weight_rounding + inputs
    error = soft.error @ size * (1 + relative) + relative * (soft.weights @ size)
    keys = soft.weights.shape[-1]
    error = error + keys * _LOST[arithmetic.accumulator]
    return Bounded(value, error, arithmetic).rounded()
