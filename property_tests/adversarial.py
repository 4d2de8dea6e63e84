"""Inputs that strain a bound, and other correct ways to compute the same thing.

Every way computes in the dtype of its inputs, with sums in float32 for the half types:
what the assumptions of docs/numerics.md allow, and nothing better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - as torch's own documentation has it
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
HALVES = (torch.bfloat16, torch.float16)
KINDS = (
    "normal",
    "wide",
    "cancelling",
    "near constant",
    "constant",
    "outlier",
    "subnormal",
    "small integers",
    "zeros",
)


def sums_of(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which products are summed."""
    return torch.float32 if dtype in HALVES else dtype


@contextmanager
def flushing(on: bool) -> Iterator[None]:
    """Take subnormal operands and results for zero meanwhile, if ``on``."""
    torch.set_flush_denormal(on)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


# -- inputs --------------------------------------------------------------------


@dataclass(frozen=True)
class Matrix:
    """A random matrix as a few words: how its rows look, and how large they are."""

    kind: str = "normal"
    seed: int = 0
    scale: float = 1.0

    def tensor(self, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        """Build it (rows, width); what the dtype cannot hold is cut to what it can."""
        generator = torch.Generator().manual_seed(self.seed)

        def normal() -> Tensor:
            return torch.randn(rows, width, generator=generator, dtype=torch.float64)

        x = normal()
        finfo = torch.finfo(dtype)
        if self.kind == "wide":
            x = x * 10.0 ** (normal() * (1.0 if dtype == torch.float16 else 4.0))
        elif self.kind == "cancelling":
            half = width // 2
            x[:, half : 2 * half] = -x[:, :half] * (
                1 + 4 * finfo.eps * normal()[:, :half]
            )
        elif self.kind == "near constant":
            x = 1.0 + x[:, :1].abs() + 8 * finfo.eps * normal()
        elif self.kind == "constant":
            x = x[:, :1].expand(rows, width)
        elif self.kind == "outlier":
            x[:, self.seed % width] *= 2000.0
        elif self.kind == "subnormal":
            x = x * finfo.tiny * 2.0 ** (normal() * 3.0)
        elif self.kind == "small integers":
            x = (3 * x).round()
        elif self.kind == "zeros":
            x = x * 0.0
        elif self.kind == "first":
            x = torch.zeros_like(x)
            x[0] = 1.0
        elif self.kind == "all but first":
            x = torch.ones_like(x)
            x[0] = 0.0
        scale = 1.0 if self.kind == "subnormal" else self.scale
        return (x * scale).clamp(finfo.min / 4, finfo.max / 4).to(dtype)


def matrices(
    kinds: tuple[str, ...] = KINDS,
    scales: tuple[float, ...] = (1.0, 30.0, 0.02, 1e-3),
) -> st.SearchStrategy[Matrix]:
    """Draw a matrix, the plain one first."""
    return st.builds(
        Matrix, st.sampled_from(kinds), st.integers(0, 9999), st.sampled_from(scales)
    )


# -- matrix products -----------------------------------------------------------

Product = Callable[[Tensor, Tensor, Tensor], Tensor]


def _in_order(order: Callable[[int], list[int]], fused: bool = False) -> Product:
    """Loop over the inner axis, the bias first; ``fused`` rounds once for each term."""

    def run(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        sums = sums_of(x.dtype)
        left, right = x.to(sums), w.to(sums)
        total = b.to(sums).expand(x.shape[0], -1)
        for k in order(x.shape[1]):
            if fused and sums == torch.float32:
                term = left[:, k, None].double() * right[k].double()
                total = (total.double() + term).float()
            else:
                total = total + left[:, k, None] * right[k]
        return total.to(x.dtype)

    return run


def _split(parts: int) -> Product:
    """Products of pieces of the inner axis, then their sum, then the bias."""

    def run(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        sums = sums_of(x.dtype)
        total: Tensor | None = None
        for left, right in zip(
            x.tensor_split(parts, 1), w.tensor_split(parts), strict=True
        ):
            piece = left.to(sums) @ right.to(sums)
            total = piece if total is None else total + piece
        assert total is not None
        return (total + b.to(sums)).to(x.dtype)

    return run


def _pairwise(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    sums = sums_of(x.dtype)
    terms = x.to(sums)[:, :, None] * w.to(sums)
    terms = torch.cat([terms, b.to(sums).expand(x.shape[0], 1, -1)], 1)
    while terms.shape[1] > 1:
        even, odd = terms[:, 0::2], terms[:, 1::2]
        paired = even[:, : odd.shape[1]] + odd
        terms = torch.cat([paired, even[:, odd.shape[1] :]], 1)
    return terms[:, 0].to(x.dtype)


def _einsum(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    sums = sums_of(x.dtype)
    made = np.einsum("ik,kj->ij", x.to(sums).numpy(), w.to(sums).numpy())
    return (torch.from_numpy(made) + b.to(sums)).to(x.dtype)


def _row_by_row(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """One-token calls take other kernels than long prompts."""
    return torch.cat([torch.addmm(b, row[None], w) for row in x])


PRODUCTS: Mapping[str, Product] = {
    "addmm": lambda x, w, b: torch.addmm(b, x, w),
    "linear": lambda x, w, b: F.linear(x, w.t().contiguous(), b),
    "row by row": _row_by_row,
    "in order": _in_order(lambda n: list(range(n))),
    "reversed": _in_order(lambda n: list(range(n))[::-1]),
    "interleaved": _in_order(lambda n: [*range(0, n, 2), *range(1, n, 2)]),
    "fused multiply-add": _in_order(lambda n: list(range(n)), fused=True),
    "split in 2": _split(2),
    "split in 3": _split(3),
    "split in 7": _split(7),
    "pairwise": _pairwise,
    "numpy": _einsum,
}

# -- LayerNorm -----------------------------------------------------------------

Norm = Callable[[Tensor, Tensor, Tensor, float], Tensor]
Moments = Callable[[Tensor], tuple[Tensor, Tensor]]


def two_pass(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = x.mean(-1, keepdim=True)
    return mean, (x - mean).square().mean(-1, keepdim=True)


def two_loops(x: Tensor) -> tuple[Tensor, Tensor]:
    """Two passes, each summed strictly in order."""

    def in_order(t: Tensor) -> Tensor:
        total = torch.zeros_like(t[:, :1])
        for k in range(t.shape[1]):
            total = total + t[:, k, None]
        return total / t.shape[1]

    mean = in_order(x)
    return mean, in_order((x - mean).square())


def welford(x: Tensor) -> tuple[Tensor, Tensor]:
    mean, spread = x[:, :1], torch.zeros_like(x[:, :1])
    for k in range(1, x.shape[1]):
        gap = x[:, k, None] - mean
        mean = mean + gap / (k + 1)
        spread = spread + gap * (x[:, k, None] - mean)
    return mean, spread / x.shape[1]


def merged_welford(x: Tensor) -> tuple[Tensor, Tensor]:
    """Welford over lanes, merged pair by pair, as vectorised kernels do."""
    lanes = [welford(part) for part in x.split(max(1, x.shape[1] // 4), 1)]
    counts = [part.shape[1] for part in x.split(max(1, x.shape[1] // 4), 1)]
    mean, spread, count = lanes[0][0], lanes[0][1] * counts[0], counts[0]
    for (other, variance), more in zip(lanes[1:], counts[1:], strict=True):
        gap, both = other - mean, count + more
        mean = mean + gap * (more / both)
        spread = spread + variance * more + gap * gap * (count * more / both)
        count = both
    return mean, spread / count


def textbook(x: Tensor) -> tuple[Tensor, Tensor]:
    """E[x^2] - m^2, which cancels: only for rows whose mean does not dominate."""
    mean = x.mean(-1, keepdim=True)
    return mean, (x.square().mean(-1, keepdim=True) - mean * mean).clamp(min=0)


def _normalised(moments: Moments, shape: str) -> Norm:
    def run(x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
        sums = sums_of(x.dtype)
        row, gain, bias = x.to(sums), gain.to(sums), bias.to(sums)
        mean, variance = moments(row)
        scale = 1.0 / (variance + eps).sqrt()
        if shape == "centred":
            made = (row - mean) * scale * gain + bias
        elif shape == "offset":
            made = (row * scale - mean * scale) * gain + bias
        else:
            made = row * (scale * gain) + (bias - mean * (scale * gain))
        return made.to(x.dtype)

    return run


NORMS: Mapping[str, Norm] = {
    "torch": lambda x, g, b, eps: F.layer_norm(x, (x.shape[-1],), g, b, eps),
    **{
        f"{moments.__name__}, {shape}": _normalised(moments, shape)
        for moments in (two_pass, two_loops, welford, merged_welford)
        for shape in ("centred", "offset", "folded")
    },
}
TEXTBOOK = _normalised(textbook, "centred")

# -- attention -----------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """One row of a batch: q (H T d), k and v (H S d), and who may attend to whom.

    ``bias`` is what a finite additive mask adds, in the dtype of the run.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    allowed: Tensor
    bias: Tensor | None
    scale: float

    @property
    def dtype(self) -> torch.dtype:
        return self.q.dtype

    @property
    def additive(self) -> Tensor:
        """The mask as it is added to scores, in the dtype of the run."""
        zeros = torch.zeros(self.allowed.shape, dtype=self.dtype)
        mask = zeros if self.bias is None else zeros + self.bias
        return mask.masked_fill(~self.allowed, torch.finfo(self.dtype).min)


def eager_scores(call: Call, steps: str) -> Tensor:
    """Scores stored in the dtype of the run after every operation."""
    raw = call.q @ call.k.transpose(-1, -2)
    if steps == "times scale":
        raw = raw * call.scale
    elif steps == "over rounded":
        raw = raw / raw.new_full([], 1.0 / call.scale)
    else:  # over sqrt(d), then over the number of the layer
        raw = raw / raw.new_full([], 0.2 / call.scale)
        raw = raw / 5.0
    return raw + call.additive


def eager_pattern(steps: str) -> Callable[[Call], Tensor]:
    return lambda call: F.softmax(eager_scores(call, steps), -1).to(call.dtype)


def _wide_scores(call: Call, first: str) -> Tensor:
    """Scores kept in the accumulator; ``first`` says what is scaled."""
    sums = sums_of(call.dtype)
    q, k = call.q.to(sums), call.k.to(sums)
    if first == "q":
        raw = (q * call.scale) @ k.transpose(-1, -2)
    elif first == "k":
        raw = q @ (k * call.scale).transpose(-1, -2)
    elif first == "both":
        raw = (q * call.scale**0.5) @ (k * call.scale**0.5).transpose(-1, -2)
    else:
        raw = (q @ k.transpose(-1, -2)) * call.scale
    raw = raw if call.bias is None else raw + call.bias.to(sums)
    return raw.masked_fill(~call.allowed, -math.inf)


def upcast_pattern(first: str) -> Callable[[Call], Tensor]:
    return lambda call: F.softmax(_wide_scores(call, first), -1).to(call.dtype)


def online(
    first: str = "q", block: int = 32, base_two: bool = False, rounds: bool = True
) -> Callable[[Call], Tensor]:
    """Flash-style attention: blocks of keys, rescaled when the maximum grows.

    ``rounds``: half-precision weights are stored before they meet v.
    """

    def run(call: Call) -> Tensor:
        sums = sums_of(call.dtype)
        scores, values = _wide_scores(call, first), call.v.to(sums)
        if base_two:
            scores = scores * math.log2(math.e)
        power = torch.exp2 if base_two else torch.exp
        top = torch.full_like(scores[..., :1], -math.inf)
        total = torch.zeros_like(top)
        mixed = torch.zeros(*scores.shape[:-1], values.shape[-1], dtype=sums)
        for start in range(0, scores.shape[-1], block):
            some = scores[..., start : start + block]
            newer = torch.maximum(top, some.amax(-1, keepdim=True))
            safe = newer.masked_fill(newer == -math.inf, 0.0)
            weights, shrink = power(some - safe), power(top - safe)
            total = total * shrink + weights.sum(-1, keepdim=True)
            weights = weights.to(call.dtype).to(sums) if rounds else weights
            mixed = mixed * shrink + weights @ values[:, start : start + block]
            top = newer
        return (mixed / total).to(call.dtype)

    return run


def split_keys(call: Call) -> Tensor:
    """Each block of keys by itself, then weighed by its share, as in flash decoding."""
    sums = sums_of(call.dtype)
    scores, values = _wide_scores(call, "scores"), call.v.to(sums)
    parts, shares = [], []
    for some, v in zip(scores.split(32, -1), values.split(32, 1), strict=True):
        top = some.amax(-1, keepdim=True).clamp(min=torch.finfo(sums).min)
        weights = (some - top).exp()
        total = weights.sum(-1, keepdim=True)
        stored = weights.to(call.dtype).to(sums)
        parts.append((stored @ v) / total.clamp(min=torch.finfo(sums).tiny))
        shares.append(top + total.log())
    share = torch.softmax(torch.cat(shares, -1), -1)
    mixture = sum(part * share[..., at, None] for at, part in enumerate(parts))
    return torch.as_tensor(mixture).to(call.dtype)


def library(
    backend: SDPBackend | None, by_head: bool = False
) -> Callable[[Call], Tensor]:
    """torch's own, as a given backend computes it."""

    def one(call: Call, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(
            q[None], k[None], v[None], mask[None], scale=call.scale
        )[0]

    def run(call: Call) -> Tensor:
        mask = call.allowed if call.bias is None else call.additive
        heads = call.q.shape[0]
        mask = mask.expand(heads, -1, -1)
        backends = [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION]
        with sdpa_kernel(backends if backend is None else [backend]):
            if not by_head:
                return one(call, call.q, call.k, call.v, mask)
            parts = [
                one(call, *(t[h : h + 1] for t in (call.q, call.k, call.v, mask)))
                for h in range(heads)
            ]
            return torch.cat(parts)

    return run


PATTERNS: Mapping[str, Callable[[Call], Tensor]] = {
    **{
        f"eager, {s}": eager_pattern(s)
        for s in ("times scale", "over rounded", "twice")
    },
    **{f"upcast, {s}": upcast_pattern(s) for s in ("q", "k", "both", "scores")},
}
FUSED: Mapping[str, Callable[[Call], Tensor]] = {
    "sdpa": library(None),
    "sdpa, math": library(SDPBackend.MATH),
    "sdpa, flash": library(SDPBackend.FLASH_ATTENTION),
    "sdpa, head by head": library(None, by_head=True),
    "online, q first": online("q"),
    "online, k first": online("k", block=48),
    "online, scores": online("scores", base_two=True),
    "online, both, base 2": online("both", base_two=True),
    "keys split": split_keys,
    "one block, exact weights": online("q", block=4096, rounds=False),
}


def masks(
    kind: str, queries: int, keys: int, dtype: torch.dtype, seed: int
) -> Iterator:
    """Yield who may attend to whom (1 T S), then the finite bias or None."""
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.ones(1, queries, keys, dtype=torch.bool)
    bias = None
    if kind in ("causal", "padded causal"):
        allowed = allowed.tril(keys - queries)
    if kind in ("padded", "padded causal"):
        allowed[..., : seed % keys] = False
    if kind == "holes":
        allowed = torch.rand(1, queries, keys, generator=generator) < 0.6
    if kind == "additive":
        bias = 8 * torch.randn(1, queries, keys, generator=generator)
        bias = bias.to(dtype)
    if kind == "steep":
        bias = torch.where(
            torch.rand(1, queries, keys, generator=generator) < 0.5, 0, -1e4
        )
        bias = bias.to(dtype)
    # A row that may attend to nothing means nothing: it attends to the last key.
    allowed = allowed.clone()
    allowed[..., -1] |= ~allowed.any(-1)
    yield allowed
    yield bias


MASKS = ("none", "causal", "padded", "padded causal", "holes", "additive", "steep")
