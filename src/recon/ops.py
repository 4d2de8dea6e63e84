"""The operations of a transformer as plain data that can be called.

Each op holds the weights and constants it needs and, called on tensors, computes
with the functional and the dtype that the library itself uses, so that on the same
machine the bits agree. It never calls a module of the user's: a live hook would fire
again and hide the very edit that we look for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812 - as torch's own documentation has it
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.backends import cuda

Heads: TypeAlias = Float[Tensor, "batch heads seq head_width"]
Keys: TypeAlias = Float[Tensor, "batch heads keys head_width"]
Scores: TypeAlias = Float[Tensor, "batch heads seq keys"]


def split_heads(
    merged: Float[Tensor, "batch seq width"], heads: int
) -> Float[Tensor, "batch heads seq head_width"]:
    """View ``B T D`` as ``B H T d``; no copy."""
    batch, seq, width = merged.shape
    return merged.view(batch, seq, heads, width // heads).transpose(1, 2)


def merge_heads(
    split: Float[Tensor, "batch heads seq head_width"],
) -> Float[Tensor, "batch seq width"]:
    """Undo ``split_heads``; a view if ``split`` is one."""
    return split.transpose(1, 2).flatten(-2)


@dataclass(frozen=True, eq=False)
class Lookup:
    """Rows of an embedding table (V D) at the ids that the module received."""

    table: Tensor
    ids: Tensor

    def __call__(self) -> Tensor:
        """Return B T D."""
        return F.embedding(self.ids, self.table)


@dataclass(frozen=True, eq=False)
class Add:
    """The sum of its inputs, from left to right."""

    def __call__(self, first: Tensor, *others: Tensor) -> Tensor:
        """Return the sum, in the shape of its inputs."""
        total = first
        for other in others:
            total = total + other
        return total


@dataclass(frozen=True, eq=False)
class Same:
    """The input itself."""

    def __call__(self, value: Tensor) -> Tensor:
        """Return ``value``."""
        return value


@dataclass(frozen=True, eq=False)
class LayerNorm:
    """``(x - mean) / sqrt(var + eps) * weight + bias`` over the last axis."""

    weight: Tensor
    bias: Tensor | None
    eps: float

    def __call__(
        self, x: Float[Tensor, "batch seq width"]
    ) -> Float[Tensor, "batch seq width"]:
        """Return B T D."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True, eq=False)
class Linear:
    """``x W + b`` with W (in, out), as transformers' Conv1D stores it.

    An input split by head is merged first; with ``heads`` the output is split.
    """

    weight: Tensor
    bias: Tensor
    heads: int = 0

    def __call__(self, x: Tensor) -> Tensor:
        """Return B T out, or B H T out/H."""
        x = merge_heads(x) if x.ndim == 4 else x
        rows = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
        merged = rows.view(*x.shape[:-1], -1)
        return split_heads(merged, self.heads) if self.heads else merged


@dataclass(frozen=True, eq=False)
class Unembed:
    """``x W^T (+ b)`` with W (V, D), at the rows that ``logits_to_keep`` names."""

    weight: Tensor
    bias: Tensor | None
    keep: int | Tensor = 0

    def __call__(
        self, x: Float[Tensor, "batch seq width"]
    ) -> Float[Tensor, "batch kept vocabulary"]:
        """Return the logits."""
        return F.linear(self.rows(x), self.weight, self.bias)

    def rows(self, x: Tensor) -> Tensor:
        """Return the rows of ``x`` that get logits."""
        if isinstance(self.keep, int):
            return x[:, -self.keep :, :] if self.keep else x
        return x[:, self.keep, :]


@dataclass(frozen=True, eq=False)
class Activation:
    """An element-wise function, run as its class defines it."""

    module: nn.Module

    @property
    def name(self) -> str:
        """The class of the activation, ``NewGELUActivation`` for GPT-2's own."""
        return type(self.module).__name__

    def __call__(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of ``x``."""
        # The class's forward: past hooks, and past an override on the instance.
        result: Tensor = type(self.module).forward(self.module, x)
        return result


@dataclass(frozen=True, eq=False)
class Slice:
    """One of ``parts`` equal pieces of the last axis, split by head: q, k or v."""

    piece: int
    parts: int
    heads: int

    def __call__(self, x: Tensor) -> Heads:
        """Return a view."""
        width = x.shape[-1] // self.parts
        return split_heads(x.narrow(-1, self.piece * width, width), self.heads)


@dataclass(frozen=True, eq=False)
class Attention:
    """What one attention really received in one pass, and how it computes.

    ``scaling`` multiplies the products (None: the fused kernel's own 1/sqrt(d)), or
    ``divisors`` divide them in turn, each first rounded to the scores' dtype or not.
    ``mask`` is additive, or for sdpa boolean, with True for *may attend* (eager
    attention adds even that). ``hides_later`` says that causality is the kernel's,
    not the mask's;
    ``fills_later`` that scores above the diagonal are overwritten before the mask is
    added. ``keys`` and ``values`` (B H S d) are those of the cache, present and past.
    ``dropout`` is the active probability, 0 in eval mode.
    """

    kernel: Literal["eager", "upcast", "sdpa"]
    heads: int
    scaling: float | None
    divisors: tuple[tuple[float, bool], ...] = ()
    mask: Tensor | None = None
    hides_later: bool = False
    fills_later: bool = False
    dropout: float = 0.0
    keys: Tensor | None = None
    values: Tensor | None = None
    past: int = 0
    rng: tuple[Tensor, ...] = ()
    backends: tuple[bool, ...] = ()

    @property
    def reduced(self) -> bool:
        """Whether a fused kernel may keep half-precision scores in half precision."""
        on = self.backends
        return len(on) > _REDUCED and on[_MATH] and on[_REDUCED]

    def scores(self, q: Heads, k: Keys) -> Scores:
        """Return scaled and masked scores (B H T S), in the dtype of the softmax."""
        raw = self._upcast(q, k) if self.kernel == "upcast" else self._scaled(q, k)
        if self.fills_later or self.hides_later:
            shown = self._causal(raw.shape[-2], raw.shape[-1], raw.device)
            raw = raw.masked_fill(~shown, torch.finfo(raw.dtype).min)
        if self.mask is None:
            return raw
        if self.mask.dtype == torch.bool and self.kernel == "sdpa":
            return raw.masked_fill(~self.mask, torch.finfo(raw.dtype).min)
        return raw + self.mask[..., : raw.shape[-1]]

    def _scaled(self, q: Heads, k: Keys) -> Scores:
        raw = torch.matmul(q, k.transpose(-1, -2))
        if self.scaling is not None:
            raw = raw * self.scaling
        elif not self.divisors and self.kernel == "sdpa":
            raw = raw * q.shape[-1] ** -0.5
        for divisor, rounded in self.divisors:
            raw = raw / (raw.new_full([], divisor) if rounded else divisor)
        return raw

    def _upcast(self, q: Heads, k: Keys) -> Scores:
        batch, heads, seq, width = q.shape
        left = q.reshape(-1, seq, width).float()
        right = k.transpose(-1, -2).reshape(-1, width, k.shape[2]).float()
        with torch.autocast(q.device.type, enabled=False):
            into = left.new_empty(batch * heads, seq, k.shape[2])
            raw = torch.baddbmm(into, left, right, beta=0, alpha=self.scaling or 1.0)
        return raw.view(batch, heads, seq, -1)

    def _causal(self, queries: int, keys: int, device: torch.device) -> Tensor:
        """Which key each query may see; sdpa aligns its triangle at the upper left."""
        later = 0 if self.kernel == "sdpa" else keys - queries
        ones = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=device)
        return ones.tril(later)

    def pattern(self, q: Heads, k: Keys) -> Scores:
        """Return the weights (B H T S) before dropout, in the dtype of the queries."""
        weights = F.softmax(self.scores(q, k), dim=-1)
        if self.kernel == "sdpa":
            # The fused kernel gives a row with no key zeros, not uniform weights.
            batch, _, queries, keys = weights.shape
            idle = self.idle_rows(batch, queries, keys, weights.device)
            weights = weights.masked_fill(idle[..., None], 0.0)
        return weights.to(q.dtype)

    def fused(
        self,
        q: Heads,
        k: Keys,
        v: Float[Tensor, "batch heads keys value_width"],
    ) -> Float[Tensor, "batch heads seq value_width"]:
        """Return z (B H T d) as the library's sdpa call computes it."""
        if self.hides_later and k.shape[2] > q.shape[2]:
            # A static cache at prefill: transformers cuts the unused keys off.
            k, v = k[:, :, : q.shape[2]], v[:, :, : q.shape[2]]
        with self._same_kernel(q.device):
            return F.scaled_dot_product_attention(
                q, k, v, self.mask, self.dropout, self.hides_later, scale=self.scaling
            )

    @contextmanager
    def _same_kernel(self, device: torch.device) -> Iterator[None]:
        """Run with the generator and the backends that the pass ran with."""
        devices = [device] if device.type == "cuda" else []
        before = sdp_backends()
        with torch.random.fork_rng(devices, enabled=bool(self.rng)):
            try:
                if self.rng:
                    set_rng(self.rng, device)
                if self.backends:
                    set_sdp_backends(self.backends)
                yield
            finally:
                set_sdp_backends(before)

    def scale(self, width: int) -> float:
        """Return the factor of the products, whatever steps the library takes."""
        factor = self.scaling if self.scaling is not None else 1.0
        if self.scaling is None and self.kernel == "sdpa" and not self.divisors:
            factor = width**-0.5
        for divisor, _ in self.divisors:
            factor /= divisor
        return factor

    def mask_parts(
        self, batch: int, queries: int, keys: int, device: torch.device
    ) -> tuple[Bool[Tensor, "batch masks seq keys"], Tensor | None]:
        """Return who may attend to whom, and what is added to the scores (float64)."""
        allowed = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=device)
        if self.hides_later or self.fills_later:
            allowed = self._causal(queries, keys, device)
        bias = None
        boolean = self.mask is not None and self.mask.dtype == torch.bool
        if self.mask is not None and boolean and self.kernel == "sdpa":
            allowed = allowed & self.mask[..., :keys]
        elif self.mask is not None:
            bias = self.mask[..., :keys].double().expand(batch, -1, queries, keys)
            lowest = 0.0 if boolean else torch.finfo(self.mask.dtype).min
            allowed = allowed & (bias >= lowest / 2)
            bias = bias.masked_fill(~allowed, 0.0)
            bias = bias if bool(bias.any()) else None
        return allowed.expand(batch, -1, queries, keys), bias

    def survivors(self, q: Heads, k: Keys) -> Bool[Tensor, "batch heads seq keys"]:
        """Return which weights the fused kernel's dropout kept.

        The same kernel from the same random state, mixing unit vectors, shows them.
        """
        keys = k.shape[2]
        unit = torch.eye(keys, dtype=q.dtype, device=q.device)
        return self.fused(q, k, unit.expand(*q.shape[:2], keys, keys)) != 0

    def idle_rows(
        self, batch: int, queries: int, keys: int, device: torch.device
    ) -> Bool[Tensor, "batch masks seq"]:
        """Mask the rows that may attend to no key at all.

        Eager attention gives such a row uniform weights, sdpa zeros; neither means
        anything, so attention checks leave them out and count them.
        """
        allowed, _ = self.mask_parts(batch, queries, keys, device)
        return ~allowed.any(-1)


@dataclass(frozen=True, eq=False)
class Pattern:
    """Softmax of the scores of queries and keys."""

    attention: Attention

    def __call__(self, q: Heads, k: Keys) -> Scores:
        """Return the weights before dropout."""
        return self.attention.pattern(q, k)

    def idle(self, q: Heads, k: Keys) -> Tensor:
        """Mask the rows that may attend to no key."""
        return _idle(self.attention, q, k.shape[2])


@dataclass(frozen=True, eq=False)
class Mix:
    """``pattern v = z``."""

    attention: Attention

    def __call__(self, pattern: Scores, v: Keys) -> Heads:
        """Return z."""
        return torch.matmul(pattern, v)

    def idle(self, pattern: Scores, v: Keys) -> Tensor:
        """Mask the rows that may attend to no key."""
        return _idle(self.attention, pattern, pattern.shape[3])


@dataclass(frozen=True, eq=False)
class Fused:
    """``softmax(q k^T) v = z`` in one kernel, which shows no pattern."""

    attention: Attention

    def __call__(self, q: Heads, k: Keys, v: Keys) -> Heads:
        """Return z."""
        return self.attention.fused(q, k, v)

    def idle(self, q: Heads, k: Keys, v: Keys) -> Tensor:
        """Mask the rows that may attend to no key."""
        return _idle(self.attention, q, k.shape[2])


def _idle(call: Attention, rows: Tensor, keys: int) -> Tensor:
    return call.idle_rows(rows.shape[0], rows.shape[2], keys, rows.device)


@dataclass(frozen=True, eq=False)
class Given:
    """A tensor that the run received from outside, the cache's contents for one."""

    value: Tensor

    def __call__(self) -> Tensor:
        """Return the tensor."""
        return self.value


Op: TypeAlias = (
    Lookup
    | Add
    | Same
    | LayerNorm
    | Linear
    | Unembed
    | Activation
    | Slice
    | Pattern
    | Mix
    | Fused
    | Given
)


def rng_state(device: torch.device) -> tuple[Tensor, ...]:
    """Return the generator states that dropout on ``device`` draws from."""
    if device.type == "cuda":
        return torch.get_rng_state(), torch.cuda.get_rng_state(device)
    return (torch.get_rng_state(),)


def set_rng(state: tuple[Tensor, ...], device: torch.device) -> None:
    """Put back what ``rng_state`` returned."""
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state(state[1], device)


# Roundoff of the operands of a float32 product: TF32 keeps 11 bits, and some hardware
# truncates to them.
_OPERANDS = {"ieee": 0.0, "none": 0.0, "tf32": 2.0**-10, "bf16": 2.0**-8}


def product_rounding(dtype: torch.dtype, device: torch.device) -> float:
    """Return the roundoff of a product's operands, where float32 ones are made cheaper.

    The setting nearest to the product counts: its own, its backend's, everyone's.
    ``torch.set_float32_matmul_precision`` makes the first of them.
    """
    if dtype != torch.float32:
        return 0.0
    backends: Any = torch.backends
    own = (backends.mkldnn.matmul, backends.mkldnn)
    settings = (backends.cuda.matmul,) if device.type == "cuda" else own
    chosen = [held.fp32_precision for held in (*settings, backends)]
    return _OPERANDS[next((c for c in chosen if c != "none"), "none")]


# Fused attention's backends: flash, efficient, math, cudnn. The last switch lets math
# keep half-precision scores and sums in half precision.
SDP_SWITCHES: tuple[tuple[Callable[[], bool], Callable[[bool], None]], ...] = (
    (cuda.flash_sdp_enabled, cuda.enable_flash_sdp),
    (cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp),
    (cuda.math_sdp_enabled, cuda.enable_math_sdp),
    (cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp),
    (
        cuda.fp16_bf16_reduction_math_sdp_allowed,
        cuda.allow_fp16_bf16_reduction_math_sdp,
    ),
)
_READ = [read for read, _ in SDP_SWITCHES]
_MATH, _REDUCED = 2, 4


def sdp_backends() -> tuple[bool, ...]:
    """Return which fused-attention backends may run, and whether in half precision."""
    return tuple([read() for read in _READ])


def set_sdp_backends(enabled: tuple[bool, ...]) -> None:
    """Put back what ``sdp_backends`` returned; older traces lack the last switch."""
    for (_, switch), on in zip(SDP_SWITCHES, enabled, strict=False):
        switch(on)


def kept(x: Tensor, p: float) -> Tensor:
    """What dropout of probability ``p`` makes of the elements that it keeps.

    torch multiplies by 1/(1-p): on CPU rounded to the tensor's dtype first, in fused
    kernels as a float32 factor.
    """
    if p >= 1.0:
        return torch.zeros_like(x)
    if x.device.type == "cpu":
        return x * x.new_ones([]).div_(1.0 - p)
    return (x.float() * (1.0 / (1.0 - p))).to(x.dtype)
