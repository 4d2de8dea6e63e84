"""Hill-climbing for a correct result that leaves its bound: none may be found.

Each start is a shape of data on which rounding is at its worst; each step changes some
elements, and is kept if the largest error over its bound grew.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as torch's own documentation has it
from transformers.activations import ACT2FN

from recon.activations import activation
from recon.rounding import (
    Arithmetic,
    Bounded,
    attention_weights,
    layer_norm,
    mixed,
    product,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
STEPS = 24


def ratio(found, bounded: Bounded) -> float:
    """Return the largest error over its bound; nothing is unbounded here."""
    assert bounded.error.isfinite().all()
    assert found.isfinite().all()
    return float(((found.double() - bounded.value).abs() / bounded.error).amax())


def climbed(
    rate: Callable[[torch.Tensor], float], start: torch.Tensor, steps: int = STEPS
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


def near_constant(dtype, spread=2.0**-7):
    dice = torch.Generator().manual_seed(1)
    return (3 + spread * torch.randn(8, 96, generator=dice)).to(dtype)


def outlier(dtype):
    dice = torch.Generator().manual_seed(2)
    x = torch.randn(8, 96, generator=dice)
    x[:, 7] = 3000.0
    return x.to(dtype)


def subnormal(dtype):
    dice = torch.Generator().manual_seed(3)
    tiny = torch.finfo(dtype).smallest_normal
    x = torch.randn(8, 96, generator=dice, dtype=torch.float64)
    return (x * tiny / 4).to(dtype)


def ordinary(dtype):
    return torch.randn(8, 96, generator=torch.Generator().manual_seed(4)).to(dtype)


STARTS = [near_constant, outlier, subnormal, ordinary]


# -- LayerNorm -----------------------------------------------------------------


def two_pass(x, gain, offset, eps):
    wide = x.double() if x.dtype == torch.float64 else x.float()
    centred = wide - wide.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    return (centred * scale * gain.to(wide.dtype) + offset.to(wide.dtype)).to(x.dtype)


def welford(x, gain, offset, eps):
    wide = x.double() if x.dtype == torch.float64 else x.float()
    mean, total = torch.zeros_like(wide[:, 0]), torch.zeros_like(wide[:, 0])
    for k, column in enumerate(wide.unbind(-1), start=1):
        gap = column - mean
        mean = mean + gap / k
        total = total + gap * (column - mean)
    scale = (total / wide.shape[-1] + eps).rsqrt()
    shifted = wide * scale[:, None] - (mean * scale)[:, None]
    return (shifted * gain.to(wide.dtype) + offset.to(wide.dtype)).to(x.dtype)


def torchs(x, gain, offset, eps):
    return F.layer_norm(x, x.shape[-1:], gain, offset, eps)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("norm", [torchs, two_pass, welford])
def test_no_layer_norm_climbs_out_of_its_bound(norm, start, dtype):
    dice = torch.Generator().manual_seed(5)
    gain = (1 + 0.1 * torch.randn(96, generator=dice)).to(dtype)
    offset = (0.1 * torch.randn(96, generator=dice)).to(dtype)
    steps = 10 if norm is welford else STEPS

    def rate(x):
        bounded = layer_norm(x, gain, offset, 1e-5, Arithmetic(dtype))
        return ratio(norm(x, gain, offset, 1e-5), bounded)

    best = climbed(rate, start(dtype), steps)
    assert best <= 1
    # Products of subnormals may be exact, and float64 is the reference's own dtype.
    assert best > 1e-4 or start is subnormal or dtype == torch.float64


# -- products ------------------------------------------------------------------


def in_order(x, weight):
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    total = torch.zeros(x.shape[0], weight.shape[1], dtype=wide)
    for column, row in zip(x.to(wide).unbind(-1), weight.to(wide), strict=True):
        total = total + column[:, None] * row
    return total.to(x.dtype)


def matmul(x, weight):
    return x @ weight


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("multiply", [matmul, in_order])
def test_no_product_climbs_out_of_its_bound(multiply, start, dtype):
    dice = torch.Generator().manual_seed(6)
    weight = torch.randn(96, 16, generator=dice)
    weight[:, 0] = 1.0
    weight[:, 1] = torch.randn(96, generator=dice).sign()
    weight[:, 2] *= torch.finfo(dtype).smallest_normal
    weight = weight.to(dtype)
    steps = 15 if multiply is in_order else STEPS

    def rate(x):
        return ratio(multiply(x, weight), product(x, weight, None, Arithmetic(dtype)))

    best = climbed(rate, start(dtype), steps)
    assert best <= 1
    # Products of subnormals may be exact, and float64 is the reference's own dtype.
    assert best > 1e-4 or start is subnormal or dtype == torch.float64


def test_the_climb_finds_a_term_that_is_missing():
    def rate(x):
        weight = torch.ones(96, 4)
        return ratio(
            x[:, 1:] @ weight[1:], product(x, weight, None, Arithmetic(torch.float32))
        )

    assert climbed(rate, ordinary(torch.float32)) > 1000


# -- activations ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "name", ["gelu_new", "gelu", "silu", "quick_gelu", "gelu_fast"]
)
@pytest.mark.parametrize("about", [-9.0, -5.0, -3.0, -0.75, 1e-3, 3.0, 9.0])
def test_no_activation_climbs_out_of_its_bound(about, name, dtype):
    dice = torch.Generator().manual_seed(7)
    start = (about * (1 + 0.05 * torch.randn(64, 16, generator=dice))).to(dtype)
    module = ACT2FN[name]

    def rate(x):
        return ratio(module(x), activation(module, x, Arithmetic(dtype)))

    assert climbed(rate, start, 12) <= 1


# -- attention -----------------------------------------------------------------


def equal_logits(dtype):
    return torch.ones(4, 8).to(dtype), torch.ones(96, 8).to(dtype)


def one_outlier(dtype):
    dice = torch.Generator().manual_seed(8)
    keys = torch.randn(96, 8, generator=dice)
    keys[40] *= 20
    return torch.randn(4, 8, generator=dice).to(dtype), keys.to(dtype)


def eager(q, k, v):
    scores = (q @ k.T) * q.shape[-1] ** -0.5
    return F.softmax(scores, dim=-1), None


def fused(q, k, v):
    mixture = F.scaled_dot_product_attention(
        q[None, None], k[None, None], v[None, None]
    )
    return None, mixture[0, 0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("start", [equal_logits, one_outlier])
@pytest.mark.parametrize("attend", [eager, fused])
def test_no_attention_climbs_out_of_its_bound(attend, start, dtype):
    q, keys = start(dtype)
    v = ordinary(dtype)[:, :8].repeat(12, 1)
    scale = q.shape[-1] ** -0.5
    arithmetic = Arithmetic(dtype)
    kept = arithmetic if attend is eager else arithmetic.inside
    allowed = torch.ones(len(q), len(keys), dtype=torch.bool)

    def rate(k):
        left, right = q.double() * scale, k.double().T
        soft = attention_weights(
            left @ right, left.abs() @ right.abs(), allowed, None, 8, kept, scale
        )
        weights, mixture = attend(q, k, v)
        if weights is None:
            return ratio(mixture, mixed(soft, v, arithmetic))
        whole = Bounded(soft.weights, soft.error, arithmetic).rounded()
        return ratio(weights, whole)

    assert climbed(rate, keys) <= 1
