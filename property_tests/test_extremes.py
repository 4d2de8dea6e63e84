"""Hill-climbing for a correct result that leaves its bound: none may be found.

Each start is a shape of data on which rounding is at its worst; each step changes some
elements, and is kept if the largest error over its bound grew.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers.activations import ACT2FN

from property_tests.adversarial import (
    DTYPES,
    FUSED,
    HALVES,
    NORMS,
    PATTERNS,
    PRODUCTS,
    Call,
    Matrix,
    flushing,
)
from recon.activations import activation
from recon.rounding import Arithmetic, Bounded, layer_norm, product
from recon.softmax import attention_weights, mixed

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
STARTS = ("near constant", "outlier", "subnormal", "normal")
STEPS = 24


def ratio(found: Tensor, bounded: Bounded) -> float:
    """Return the largest error over its bound; nothing is unbounded here."""
    assert bounded.error.isfinite().all()
    assert found.isfinite().all()
    return float(((found.double() - bounded.value).abs() / bounded.error).amax())


def climbed(
    rate: Callable[[Tensor], float], start: Tensor, steps: int = STEPS
) -> float:
    """Return the largest ratio found on the way up from ``start``."""
    dice = torch.Generator().manual_seed(0)
    held, best = start, rate(start)
    for step in range(steps):
        some = torch.rand(start.shape, generator=dice) < (0.5, 0.1, 0.02)[step % 3]
        size = (1e-3, 0.1, 2.0**-9)[step % 3]
        moved = held * (1 + size * torch.randn(start.shape, generator=dice))
        tried = torch.where(some, moved.to(start.dtype), held)
        if (found := rate(tried)) > best:
            held, best = tried, found
    return best


def assert_near_but_inside(best: float, start: str, dtype: torch.dtype) -> None:
    assert best <= 1
    # Results on subnormals may be exact, and float64 is the reference's own dtype.
    assert best > 1e-4 or start == "subnormal" or dtype == torch.float64


@each_dtype
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("way", ["torch", "two_pass, centred", "welford, offset"])
def test_no_layer_norm_climbs_out_of_its_bound(way, start, dtype):
    gain = 1 + 0.1 * Matrix(seed=5).tensor(1, 96, dtype)[0]
    offset = 0.1 * Matrix(seed=6).tensor(1, 96, dtype)[0]

    def rate(x: Tensor) -> float:
        bounded = layer_norm(x, gain, offset, 1e-5, Arithmetic(dtype))
        return ratio(NORMS[way](x, gain, offset, 1e-5), bounded)

    steps = 10 if way.startswith("welford") else STEPS
    best = climbed(rate, Matrix(start, 1).tensor(8, 96, dtype), steps)
    assert_near_but_inside(best, start, dtype)


@each_dtype
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("way", ["addmm", "in order"])
def test_no_product_climbs_out_of_its_bound(way, start, dtype):
    weight = Matrix(seed=6).tensor(96, 16, torch.float64)
    weight[:, 0] = 1.0
    weight[:, 1] = weight[:, 1].sign()
    weight[:, 2] *= torch.finfo(dtype).smallest_normal
    weight, bias = weight.to(dtype), torch.zeros(16, dtype=dtype)

    def rate(x: Tensor) -> float:
        bounded = product(x, weight, bias, Arithmetic(dtype))
        return ratio(PRODUCTS[way](x, weight, bias), bounded)

    steps = 15 if way == "in order" else STEPS
    best = climbed(rate, Matrix(start, 2).tensor(8, 96, dtype), steps)
    assert_near_but_inside(best, start, dtype)


def test_the_climb_finds_a_term_that_is_missing():
    weight = torch.ones(96, 4)

    def rate(x: Tensor) -> float:
        bounded = product(x, weight, None, Arithmetic(torch.float32))
        return ratio(x[:, 1:] @ weight[1:], bounded)

    assert climbed(rate, Matrix().tensor(8, 96, torch.float32)) > 1000


@each_dtype
@pytest.mark.parametrize(
    "name", ["gelu_new", "gelu", "silu", "quick_gelu", "gelu_fast"]
)
@pytest.mark.parametrize("about", [-9.0, -5.0, -3.0, -0.75, 1e-3, 3.0, 9.0])
def test_no_activation_climbs_out_of_its_bound(about, name, dtype):
    start = about * (1 + 0.05 * Matrix(seed=7).tensor(64, 16, dtype))
    module = ACT2FN[name]

    def rate(x: Tensor) -> float:
        return ratio(module(x), activation(module, x, Arithmetic(dtype)))

    assert climbed(rate, start, 12) <= 1


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("dtype", HALVES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("name", sorted(ACT2FN))
def test_no_half_precision_number_leaves_an_activations_bound(name, dtype, flush):
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    x = every[every.isfinite()][None]
    module = ACT2FN[name].to(dtype)
    with torch.no_grad(), flushing(flush):
        found = module(x)
    bounded = activation(module, x, Arithmetic(dtype))
    judged = found.isfinite() & bounded.error.isfinite()
    assert int(judged.sum()) > 55_000
    inside = (found.double() - bounded.value).abs() <= bounded.error
    assert bool(inside[judged].all())
    wrong = (1.1 * found.double() - bounded.value).abs() <= bounded.error
    assert not bool(wrong[judged].all())


def equal_logits(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.ones(1, 4, 8).to(dtype), torch.ones(1, 96, 8).to(dtype)


def one_outlier(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    keys = Matrix(seed=8).tensor(96, 8, dtype)
    keys[40] *= 20
    return Matrix(seed=9).tensor(4, 8, dtype)[None], keys[None]


@each_dtype
@pytest.mark.parametrize("start", [equal_logits, one_outlier])
@pytest.mark.parametrize("way", ["eager, times scale", "sdpa"])
def test_no_attention_climbs_out_of_its_bound(way, start, dtype):
    q, keys = start(dtype)
    v = Matrix(seed=4).tensor(96, 8, dtype)[None]
    everyone = torch.ones(1, 4, 96, dtype=torch.bool)
    arithmetic = Arithmetic(dtype)
    kept = arithmetic if way in PATTERNS else arithmetic.inside

    def rate(k: Tensor) -> float:
        call = Call(q, k, v, everyone, None, 8**-0.5)
        soft = attention_weights(q, k, call.scale, everyone, None, kept)
        if way in FUSED:
            return ratio(FUSED[way](call), mixed(soft, v, arithmetic))
        whole = Bounded(soft.weights, soft.error, arithmetic).rounded()
        return ratio(PATTERNS[way](call), whole)

    assert climbed(rate, keys) <= 1
