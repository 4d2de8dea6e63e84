"""Values that carry a proven error bound.

A ``Bounded`` is a pair (v, e) in float64: every correctly rounded way of computing the
same quantity in the run's arithmetic lies within e of v. Each rule adds what one
operation may add. The derivations stand in docs/numerics.md; the sources are Higham,
*Accuracy and Stability of Numerical Algorithms* (2nd ed., SIAM 2002), and Higham &
Mary, *A New Approach to Probabilistic Rounding Error Analysis* (SISC 41, 2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from recon.ops import product_rounding

Form: TypeAlias = Literal["deterministic", "probabilistic"]

# Unit roundoff: half the gap between 1 and the next number.
UNIT: dict[torch.dtype, float] = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}
# What a result may lose near zero. Half precision rounds to its smallest subnormal;
# elsewhere hardware may take subnormals for zero (AVX512's bfloat16 products do), so
# the smallest normal number.
_LOST: dict[torch.dtype, float] = {
    torch.float64: 2.0**-1021,  # what the reference loses, too
    torch.float32: 2.0**-126,
    torch.float16: 2.0**-24,
    torch.bfloat16: 2.0**-126,
}
# An operand may be taken for zero as well, but for float16, which is widened first.
_IGNORED = {**_LOST, torch.float16: 0.0}


def lost(dtype: torch.dtype) -> float:
    """Return what a result may lose near zero."""
    return _LOST[dtype]


def ignored(dtype: torch.dtype) -> float:
    """Return what an operand may lose near zero."""
    return _IGNORED[dtype]


# The reference is computed in float64 itself: its own error goes into every bound.
_REFERENCE = UNIT[torch.float64]
# exp, tanh, erf and their like: vectorised libraries promise 1 ulp, accelerators'
# fast versions 2; an ulp is up to two units of roundoff.
ELEMENTARY = 4.0
# The probabilistic form fails, per sum of n terms, with probability 2 n exp(-L^2/2).
LAMBDA = 8.0


def compounded(*errors: float) -> float:
    """Return ``(1 + e_1)(1 + e_2)... - 1``, without the rounding of 1 + e."""
    total = 0.0
    for error in errors:
        total += error + total * error
    return total


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

    def relative(self, n: int) -> float:
        """Bound the relative error of n products and their sum, operands rounded."""
        return compounded(self.inputs, self.inputs, self.gamma(n))

    def gamma(self, n: int) -> float:
        """Bound the relative error of a sum of n products, in any order.

        ``n a / (1 - n a)`` (Higham 2002, lemma 3.1 and section 3.1), or
        ``exp(L sqrt(n) a + n a^2/(1-a)) - 1`` (Higham & Mary 2019, theorem 2.4), which
        a correct sum of equal terms, one after another, may exceed: no proof.
        """
        a = self.a
        if self.form == "probabilistic":
            return math.expm1(LAMBDA * math.sqrt(n) * a + n * a * a / (1 - a))
        return n * a / (1 - n * a) if n * a < 1 else math.inf

    def exact(self, tensor: Tensor) -> Bounded:
        """Take a tensor as it is: no error yet."""
        return self._taken(tensor, 0.0)

    def operand(self, tensor: Tensor) -> Bounded:
        """Take a tensor as hardware reads it: a subnormal may be taken for zero."""
        return self._taken(tensor, ignored(tensor.dtype))

    def _taken(self, tensor: Tensor, error: float) -> Bounded:
        value = tensor.double()
        return Bounded(value, value.new_full((), error).expand_as(value), self)


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

        Where the value may exceed the largest number, or is none, the error is
        infinite.
        """
        return self._stored(self.value, self.error.clone(), units)

    def _stored(self, value: Tensor, error: Tensor, units: float = 1.0) -> Bounded:
        """Return a value that was rounded; ``error``, that before, is used up.

        All but the last of several roundings are a kernel's, in the accumulator.
        """
        store, u = self.arithmetic.store, self.arithmetic.u
        near = _LOST[store] + max(0.0, units - 1) * _LOST[self.arithmetic.accumulator]
        limit = torch.finfo(store).max
        largest = value.abs().add_(error)
        # What is not a number, here or before, has no bound either.
        over = None if float(largest.amax()) < limit else ~(largest < limit)
        error.add_(largest, alpha=units * u).add_(near)
        if over is not None:
            error.masked_fill_(over, math.inf)
        return Bounded(value, error, self.arithmetic)

    def to(self, arithmetic: Arithmetic) -> Bounded:
        """Store in another precision; free if it is not coarser."""
        moved = replace(self, arithmetic=arithmetic)
        coarser = UNIT[arithmetic.store] > UNIT[self.arithmetic.store]
        return moved.rounded() if coarser else moved

    def __add__(self, other: Bounded | float) -> Bounded:
        if isinstance(other, Bounded):
            return self._stored(self.value + other.value, self.error + other.error)
        # A constant is rounded to the precision in which it is used.
        off = self.arithmetic.u * abs(other)
        return self._stored(self.value + other, self.error + off)

    def __sub__(self, other: Bounded | float) -> Bounded:
        if isinstance(other, Bounded):
            return self + replace(other, value=-other.value)
        return self + -other

    def __mul__(self, other: Bounded | float) -> Bounded:
        if isinstance(other, Bounded):
            # |x| e_y + e_x (|y| + e_y)
            error = self.value.abs().mul_(other.error)
            error.addcmul_(self.error, other.value.abs().add_(other.error))
            return self._stored(self.value * other.value, error)
        size, off = abs(other), self.arithmetic.u * abs(other)
        error = self.value.abs().mul_(off).add_(self.error, alpha=size + off)
        return self._stored(self.value * other, error)

    def power(self, n: int) -> Bounded:
        """The n-th power, by ``pow`` or by n-1 products."""
        # (|x| + e)^n - |x|^n, which cancels, is at most n e (|x| + e)^(n-1).
        error = self.value.abs().add_(self.error).pow_(n - 1).mul_(self.error).mul_(n)
        return self._stored(self.value**n, error, max(ELEMENTARY, n - 1))

    def monotone(
        self, function: Callable[[Tensor], Tensor], units: float = ELEMENTARY
    ) -> Bounded:
        """Apply a monotone function that libraries compute to ``units`` roundoffs."""
        value = function(self.value)
        above = (function(self.value + self.error) - value).abs_()
        below = (function(self.value - self.error) - value).abs_()
        return self._stored(value, torch.maximum(above, below, out=above), units)

    def clipped(self, low: float, high: float) -> Bounded:
        """Clip; both ends and the slope of one are exact."""
        return self.monotone(lambda x: x.clamp(low, high), units=0.0)


def stored(value: Tensor, error: Tensor, arithmetic: Arithmetic) -> Bounded:
    """Return a value that was stored once; ``error``, that before, is used up."""
    return Bounded(value, error, arithmetic)._stored(value, error)


def summed(terms: Sequence[Tensor], arithmetic: Arithmetic) -> Bounded:
    """Return the sum of two or three captured terms, in any order."""
    read = [arithmetic.operand(term) for term in terms]
    # Of three terms, which two come first is all that an order decides.
    orders = range(3 if len(read) == 3 else 1)
    ways = [sum(read[at + 1 :] + read[:at], read[at]) for at in orders]
    errors = torch.stack([way.error for way in ways])
    return replace(ways[0], error=errors.amax(0))


# -- sums of products ----------------------------------------------------------


def product(
    x: Tensor, weight: Tensor, bias: Tensor | None, arithmetic: Arithmetic
) -> Bounded:
    """Return ``x W + b`` for x (rows, in), W (in, out); see ``Rows``."""
    return Rows(x, arithmetic).times(weight, bias)


class Rows:
    """The rows of a left factor, made ready for products: any order, split or FMA.

    gamma_{n+1} (|x||W| + |b|), accumulated, then stored once. A kernel that flushes
    operands (AVX512's bfloat16 products do) loses s |w| or s |x| with each term, one
    that flushes results s with each product and each sum.
    """

    def __init__(
        self, x: Float[Tensor, "*lead rows in"], arithmetic: Arithmetic
    ) -> None:
        self._arithmetic = arithmetic
        self._terms = x.shape[-1] + 1
        self._exact = x.double()
        self._kind, self._short = _sizes_in(arithmetic, self._terms, x.device)
        far = x.to(self._kind).abs()
        self._lost = far.sum(-1, keepdim=True, dtype=torch.float64)
        # A row of ones makes the sums of |W| in the same product.
        self._far = torch.cat([far, torch.ones_like(far[..., :1, :])], -2)

    def times(
        self,
        weight: Float[Tensor, "*lead in out"],
        bias: Float[Tensor, " out"] | None = None,
    ) -> Bounded:
        """Return the product with W, plus b."""
        value = self._exact @ weight.double()
        size = self._far @ weight.to(self._kind).abs()
        size, sums = size[..., :-1, :], size[..., -1:, :].double()
        if bias is not None:
            value.add_(bias.double())
            size.add_(bias.to(self._kind).abs())
        return stored(value, self._error(size, sums), self._arithmetic)

    def _error(self, size: Tensor, sums: Tensor) -> Tensor:
        """Bound the sum; what is lost near zero counts in |x||W| as well."""
        arithmetic, n = self._arithmetic, self._terms
        relative = arithmetic.relative(n) / (1 - self._short)
        lost = (self._lost + 2 * n) * ((1 + relative) * _LOST[arithmetic.accumulator])
        sums *= (1 + relative) / (1 - self._short) * _LOST[arithmetic.accumulator]
        error = size.double() if size.dtype != torch.float64 else size
        return error.mul_(relative).add_(sums).add_(lost)


def _sizes_in(
    arithmetic: Arithmetic, n: int, device: torch.device
) -> tuple[torch.dtype, float]:
    """Return in which dtype to compute |x||W|, and the share it may fall short by.

    In float32 it costs half, and falls short by at most gamma_n: 5e-5 for n = 768.
    """
    unit = UNIT[torch.float32]
    whole = product_rounding(torch.float32, device) == 0.0
    if arithmetic.accumulator == torch.float32 and whole and n * unit < 0.01:
        return torch.float32, n * unit / (1 - n * unit)
    return torch.float64, 0.0


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, arithmetic: Arithmetic
) -> Bounded:
    """Return the LayerNorm of rows x (rows, n), two-pass or Welford.

    Where the squares may overflow, the error is infinite.
    """
    inner = arithmetic.inside
    a, s, n = inner.a, _LOST[inner.store], x.shape[-1]
    exact = x.double()
    mean = exact.mean(-1, keepdim=True)
    centred = exact - mean
    variance = centred.square().mean(-1, keepdim=True)
    far = exact.abs()
    root = exact.square().mean(-1, keepdim=True).sqrt()
    # A running mean rounds each of its steps as well: docs/numerics.md.
    gamma = inner.gamma(n + 6 + 3 * math.ceil(math.log(n)))
    # Each of its steps, and what is subtracted from it, may be lost near zero.
    near = 4 * (n + 1) * s
    off_mean = gamma * far.mean(-1, keepdim=True) + near
    off_variance = _off_variance(variance, gamma, gamma * root, near)
    rstd, off_rstd = _rsqrt(variance, off_variance, eps, inner)
    # Kernels may compute x * rstd - mean * rstd, which cancels: two roundings each.
    off_mean += 2 * a * mean.abs() + 3 * s / rstd
    off_centred = far.mul_(2 * a).add_(off_mean)
    gain = weight.double()
    value = (centred * rstd).mul_(gain)
    off = off_centred.mul_(rstd + off_rstd).addcmul_(centred.abs_(), off_rstd)
    error = off.mul_(gain.abs())
    error.mul_(1 + 2 * a).add_(value.abs(), alpha=2 * a)
    # A gain, times rstd or not, may be lost: at most sqrt(n) and |x| times it.
    error.add_(s * (3 + math.sqrt(n) * (1 + 2 * root)))
    if bias is not None:
        value.add_(bias.double())
        # Kernels may fold the mean into the bias: one more rounding of it.
        error.mul_(1 + a).add_(value.abs(), alpha=a).add_(2 * a * bias.double().abs())
    overflows = n * root.square() * (1 + gamma) >= torch.finfo(inner.store).max
    if bool((overflows | ~value.sum(-1, keepdim=True).isfinite()).any()):
        error = error.masked_fill(overflows | ~value.isfinite(), math.inf)
    return stored(value, error, arithmetic)


def _off_variance(variance: Tensor, gamma: float, off: Tensor, near: float) -> Tensor:
    """Bound the error of a variance q: gamma q of the sum, 2 sqrt(q) e + e^2.

    Here e is ``off``, gamma times the root mean square, and what may be lost near zero.
    Welford's is the larger of the two (compare Chan, Golub & LeVeque, *The American
    Statistician* 37, 1983, table 1).
    """
    off = off + near
    return gamma * variance + off * (2 * variance.sqrt() + off) + near


def _rsqrt(
    variance: Tensor, off: Tensor, eps: float, arithmetic: Arithmetic
) -> tuple[Tensor, Tensor]:
    """Return 1/sqrt(q + eps), which is monotone, and its bound."""

    def scale(v: Tensor) -> Tensor:
        return (v.clamp(min=0) + eps).rsqrt()

    rstd = scale(variance)
    far = torch.maximum(scale(variance - off) - rstd, rstd - scale(variance + off))
    return rstd, far + (ELEMENTARY + 1) * arithmetic.a * rstd
