"""Bounds of attention: softmax, plain or online, and what a fused kernel makes of it.

The derivations stand in docs/numerics.md, under *Scores*, *Softmax* and *z*.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from recon.rounding import ELEMENTARY, Arithmetic, Bounded, compounded, lost
from recon.rounding import stored as rounded

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
    q: Float[Tensor, "*lead queries width"],
    k: Float[Tensor, "*lead keys width"],
    scale: float,
    allowed: Tensor,
    bias: Tensor | None,
    stored: Arithmetic,
) -> Softmax:
    """Return softmax(scale q k^T + bias) over the allowed keys, plain or online.

    ``stored`` is the arithmetic in which scores are kept between the product and the
    exponential. Where one score may overflow before it is scaled, its whole row has no
    bound: exp makes a 0 of minus infinity.
    """
    inner = stored.inside
    a, u = inner.a, stored.u
    scores, size, near = _scores(q, k, scale, stored)
    # Kept in the accumulator, q or k may be scaled first, which rounds every product.
    # What is subtracted and scaled below is off already: 4 a of its error more.
    steps = (4 * a, 0.0 if u > a else 4 * a)
    off = size * compounded(inner.relative(q.shape[-1]), *steps)
    if u > a:
        rounded = compounded(u, u, u, u, 4 * a)
        off = off.add_(scores.abs().add_(off), alpha=rounded)
    hidden = ~allowed
    over = _overflowing(scores, size, off, stored, scale)
    if bias is not None:
        scores = scores + bias
        off = off.add_(scores.abs().add_(off), alpha=u)
        over = over | ~(scores.abs().add_(off) < torch.finfo(stored.store).max)
    if over.numel() > 1:
        over = over | _unmasked(scores, off, hidden, over, stored)
    scores = scores.masked_fill(hidden, -math.inf)
    top = scores.amax(-1, keepdim=True).nan_to_num(neginf=0.0)
    shifted = scores - top
    # Subtracting the maximum, and base-2 exponentials that scale by log2(e) first.
    far = scores.abs_().add_(top.abs()).sub_(shifted)
    off = off.add_(far, alpha=2 * a).add_(ELEMENTARY * a + near)
    off = off.masked_fill_(hidden, 0.0)
    p = shifted.softmax(-1).nan_to_num_(nan=0.0)
    keys = scores.shape[-1]
    # A rescaling is an exponential and a product.
    sums = inner.gamma(keys + 5 * math.ceil(keys / _BLOCK))
    relative = sums + (2 + ELEMENTARY) * a
    # Logarithms: a score of 10^4 in bfloat16 is off by more than exp can hold.
    low, high = shifted - off, shifted.add_(off)
    lowest, highest = (t.logsumexp(-1, keepdim=True) for t in (low, high))
    above = high.sub_(lowest).exp_().mul_(1 + relative).nan_to_num_(nan=0.0)
    below = low.sub_(highest).exp_().mul_(1 - relative).nan_to_num_(nan=0.0)
    above = above.clamp_(max=1.0 + relative).sub_(p)
    error = torch.maximum(above, below.neg_().add_(p), out=above)
    error = error.clamp_(min=0.0).add_(lost(inner.store))
    gone = (over & ~hidden).any(-1, keepdim=True) if bool(over.any()) else over
    return Softmax(p, error.masked_fill_(gone, math.inf), sums)


def _scores(
    q: Tensor, k: Tensor, scale: float, stored: Arithmetic
) -> tuple[Tensor, Tensor, float]:
    """Return scaled scores, |q||k| scaled alike, and what any loses near zero at most.

    Operands, before and after one is scaled, products and sums are lost in the
    accumulator; a score when it is stored, scaled twice, divided and masked.
    """
    left, right = q.double(), k.double().transpose(-1, -2)
    far, wide = left.abs(), right.abs()
    scores, size = (left * scale) @ right, (far * abs(scale)) @ wide
    sums = float(far.sum(-1).amax()) + float(wide.sum(-2).amax())
    terms = 2 * (sums + q.shape[-1]) * max(1.0, abs(scale)) * lost(stored.accumulator)
    return scores, size, terms + 5 * lost(stored.store)


def _overflowing(
    scores: Tensor, size: Tensor, off: Tensor, stored: Arithmetic, scale: float
) -> Tensor:
    """Return which scores may exceed what they are summed or stored in; one if none.

    Sums reach at most |q||k|, before they are scaled.
    """
    least = min(1.0, abs(scale)) or 1.0
    limit, wide = (
        least * torch.finfo(kind).max for kind in (stored.store, stored.accumulator)
    )
    if float(size.amax()) < limit / 8:
        return torch.zeros(1, dtype=torch.bool, device=size.device)
    # float32 sums exceed |q||k| by less than a hundredth.
    return ~(size < 0.99 * wide) | ~(scores.abs().add_(off) < limit)


def _unmasked(
    scores: Tensor, off: Tensor, hidden: Tensor, over: Tensor, stored: Arithmetic
) -> Tensor:
    """Return in which rows a hidden key may show: the mask is a number that is added.

    With scores below a quarter of the largest number, and one that is shown above minus
    a half of it, hidden ones stay a quarter behind, of which exp makes 0.
    """
    quarter = torch.finfo(stored.store).max / 4
    near = scores.abs().add_(off)
    outweighs = (hidden & (over | ~(near < quarter))).any(-1, keepdim=True)
    ahead = (~hidden & (near < 2 * quarter)).any(-1, keepdim=True)
    return hidden.any(-1, keepdim=True) & (outweighs | ~ahead)


def mixed(soft: Softmax, values: Tensor, arithmetic: Arithmetic) -> Bounded:
    """Return ``p v`` of a fused kernel: weights rounded to the dtype, then summed."""
    exact, store = values.double(), arithmetic.store
    size = exact.abs()
    value = soft.weights @ exact
    half = arithmetic.u > arithmetic.inside.a
    weight_rounding = arithmetic.u if half else 0.0
    operands = weight_rounding, arithmetic.inputs, arithmetic.inputs
    relative = compounded(soft.sums, *operands)
    off = (soft.error * (1 + relative)).add_(soft.weights, alpha=relative)
    if half:
        # A weight near zero loses up to the smallest float16, or all of itself.
        off.add_((soft.weights + soft.error).clamp_(max=lost(store)))
    keys = soft.weights.shape[-1]
    # Products, sums, rescalings of either, and operands of v that are flushed.
    error = (off @ size).add_((3 * keys + 2) * lost(arithmetic.accumulator))
    return rounded(value, error, arithmetic)
