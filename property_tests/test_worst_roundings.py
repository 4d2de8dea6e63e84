"""Sound where every rounding is as bad as the assumptions allow, and in league.

An algorithm is written over an operation ``fl`` that makes each result off by a share
of its unit. The gradient of one output says which way each share hurts; all are then
set to their worst. No real computation is as unlucky, so this comes nearer to the
bounds than any search over inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from transformers.activations import ACT2FN

from property_tests.adversarial import Matrix, matrices
from recon.activations import activation
from recon.rounding import ELEMENTARY, UNIT, Arithmetic, Bounded, layer_norm, product
from recon.softmax import attention_weights, mixed

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])


class Roundings:
    """Results that are off by chosen shares of their units, in float64."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._accumulator = UNIT[Arithmetic(dtype).accumulator]
        self._store = UNIT[dtype]
        self._shares: list[Tensor] = []
        self._at = 0
        self._chosen = False

    def __call__(self, exact: Tensor, units: float = 1.0) -> Tensor:
        """Compute in the accumulator."""
        return self._off(exact, units * self._accumulator)

    def stored(self, exact: Tensor) -> Tensor:
        """Store in the dtype, if that is another than the accumulator's."""
        same = self._store == self._accumulator
        return exact if same else self._off(exact, self._store)

    def elementary(self, exact: Tensor) -> Tensor:
        """Compute an exponential or its like."""
        return self(exact, ELEMENTARY)

    def _off(self, exact: Tensor, unit: float) -> Tensor:
        if not self._chosen:
            self._shares.append(torch.zeros_like(exact, requires_grad=True))
        share = self._shares[self._at]
        self._at += 1
        return exact * (1 + unit * share)

    def against(self, output: Tensor, sign: int) -> Roundings:
        """Return roundings that all push one output the same way."""
        slopes = torch.autograd.grad(
            output, self._shares, retain_graph=True, materialize_grads=True
        )
        worst = Roundings(torch.float32)
        worst.__dict__ |= self.__dict__
        worst._shares = [sign * slope.sign() for slope in slopes]
        worst._at, worst._chosen = 0, True
        return worst


Run = Callable[[Roundings], Tensor]


def worst_ratio(run: Run, bounded: Bounded, dtype: torch.dtype, at: int) -> float:
    """Return the largest error over its bound at one output, roundings at worst."""
    value, error = (float(t.flatten()[at]) for t in (bounded.value, bounded.error))
    fl = Roundings(dtype)
    output = run(fl).flatten()[at]
    found = [float(run(fl.against(output, s)).flatten()[at]) for s in (1, -1)]
    assert all(map(math.isfinite, found))
    # The shares are of first order; what they leave out is no more than their square.
    return max(abs(one - value) for one in found) / error * (1 - 1e-6)


def in_order(fl: Roundings, terms: Tensor) -> Tensor:
    total = terms[..., 0]
    for k in range(1, terms.shape[-1]):
        total = fl(total + terms[..., k])
    return total


# -- products ------------------------------------------------------------------


@each_dtype
@given(x=matrices(("normal", "wide", "cancelling", "outlier")), n=st.integers(1, 24))
def test_products_in_order(dtype, x, n):
    left, right = x.tensor(1, n, dtype), Matrix("normal", x.seed).tensor(n, 1, dtype)
    bias = right[0]
    bounded = product(left, right, bias, Arithmetic(dtype))
    row, column, offset = (t.double() for t in (left[0], right[:, 0], bias))

    def run(fl: Roundings) -> Tensor:
        terms = torch.cat([offset, fl(row * column)])
        return fl.stored(in_order(fl, terms))

    assert worst_ratio(run, bounded, dtype, 0) <= 1


# -- LayerNorm -----------------------------------------------------------------


def two_pass(fl: Roundings, x: Tensor) -> tuple[Tensor, Tensor]:
    mean = fl(in_order(fl, x) / len(x))
    return mean, fl(in_order(fl, fl(fl(x - mean).square())) / len(x))


def welford(fl: Roundings, x: Tensor) -> tuple[Tensor, Tensor]:
    mean, total = x[0], torch.zeros((), dtype=torch.float64)
    for k in range(1, len(x)):
        gap = fl(x[k] - mean)
        mean = fl(mean + fl(gap / (k + 1)))
        # Rounding to nearest is monotone: the mean does not step past x[k].
        total = fl(total + fl(gap * fl(x[k] - mean)).clamp(min=0))
    return mean, fl(total / len(x))


@each_dtype
@pytest.mark.parametrize("moments", [two_pass, welford])
@pytest.mark.parametrize("folded", [False, True])
# 2026-11: roundings that are each at their worst made a variance of -1e-11.
@example(Matrix("near constant", 2410, 30.0), 2, 1e-12)
@given(
    x=matrices(("normal", "wide", "near constant", "outlier"), (1.0, 30.0)),
    n=st.integers(2, 24),
    eps=st.sampled_from([1e-5, 1e-12]),
)
def test_layer_norms(moments, folded, dtype, x, n, eps):
    rows = x.tensor(1, n, dtype)
    gain, bias = Matrix("normal", x.seed + 1).tensor(2, n, dtype)
    bounded = layer_norm(rows, gain, bias, eps, Arithmetic(dtype))
    row, g, b = (t.double() for t in (rows[0], gain, bias))

    def run(fl: Roundings) -> Tensor:
        mean, variance = moments(fl, row)
        scale = fl.elementary(fl(variance + eps).rsqrt())
        if folded:
            steep = fl(scale * g)
            return fl.stored(fl(fl(row * steep) + fl(b - fl(mean * steep))))
        return fl.stored(fl(fl(fl(fl(row - mean) * scale) * g) + b))

    assert worst_ratio(run, bounded, dtype, x.seed % n) <= 1


# -- attention -----------------------------------------------------------------


@each_dtype
@given(
    x=matrices(("normal", "outlier", "small integers"), (1.0, 3.0)),
    keys=st.sampled_from([1, 5, 40]),
    width=st.sampled_from([1, 4]),
)
def test_online_attention(dtype, x, keys, width):
    q = x.tensor(1, width, dtype)
    k, v = (Matrix("normal", x.seed + i).tensor(keys, width, dtype) for i in (1, 2))
    scale, arithmetic = width**-0.5, Arithmetic(dtype)
    right, values = k.double(), v.double()
    everyone = torch.ones(1, keys, dtype=torch.bool)
    soft = attention_weights(q, k, scale, everyone, None, arithmetic.inside)

    def run(fl: Roundings) -> Tensor:
        raw = in_order(fl, fl(q.double()[0] * right))
        scores = fl(fl(raw * scale) * math.log2(math.e))
        top = total = mixture = None
        for some, part in zip(scores.split(32), values.split(32), strict=True):
            newer = some.amax() if top is None else torch.maximum(top, some.amax())
            weights = fl.elementary(fl(some - newer).exp2())
            here = in_order(fl, weights)
            mixed_here = in_order(fl, fl(fl.stored(weights) * part.T))
            if top is None:
                total, mixture = here, mixed_here
            else:
                shrink = fl.elementary(fl(top - newer).exp2())
                total = fl(fl(total * shrink) + here)
                mixture = fl(fl(mixture * shrink) + mixed_here)
            top = newer
        return fl.stored(fl(mixture / total))

    bounded = mixed(soft, v, arithmetic)
    assert worst_ratio(run, bounded, dtype, x.seed % width) <= 1


# -- activations ---------------------------------------------------------------


def tanh_gelu(fl: Roundings, x: Tensor) -> Tensor:
    inner = fl(fl(math.sqrt(2 / math.pi) * x) * fl(1 + fl(0.044715 * fl(x * x))))
    return fl(fl(0.5 * x) * fl(1 + fl.elementary(inner.tanh())))


def silu(fl: Roundings, x: Tensor) -> Tensor:
    return fl(x / fl(1 + fl.elementary((-x).exp())))


def silu_by_reciprocal(fl: Roundings, x: Tensor) -> Tensor:
    return fl(x * fl(1 / fl(1 + fl.elementary((-x).exp()))))


def quick_gelu(fl: Roundings, x: Tensor) -> Tensor:
    return fl(x * fl(1 / fl(1 + fl.elementary((-fl(1.702 * x)).exp()))))


def mish(fl: Roundings, x: Tensor) -> Tensor:
    power = fl.elementary(x.exp())
    above = fl(power * fl(power + 2))
    return fl(x * fl(above / fl(above + 2)))


# 2026-11: silu at -23, every operation at its worst, was at 1.4 bounds.
@each_dtype
@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("gelu_pytorch_tanh", tanh_gelu),
        ("silu", silu),
        ("silu", silu_by_reciprocal),
        ("quick_gelu", quick_gelu),
        ("mish", mish),
    ],
    ids=lambda part: getattr(part, "__name__", ""),
)
def test_activations(name, formula, dtype):
    x = torch.cat([torch.linspace(-30, 30, 241), torch.logspace(-6, 0, 13)]).to(dtype)
    bounded = activation(ACT2FN[name], x, Arithmetic(dtype))
    worst = [
        worst_ratio(
            lambda fl, one=one: fl.stored(formula(fl, one)),
            Bounded(bounded.value[i], bounded.error[i], bounded.arithmetic),
            dtype,
            0,
        )
        for i, one in enumerate(x.double())
    ]
    assert max(worst) <= 1


def test_a_rounding_too_many_is_seen():
    x = torch.tensor([-23.0])
    bounded = activation(ACT2FN["silu"], x, Arithmetic(torch.float32))

    def run(fl: Roundings) -> Tensor:
        return fl(silu_by_reciprocal(fl, x.double()), ELEMENTARY)

    assert worst_ratio(run, bounded, torch.float32, 0) > 1
