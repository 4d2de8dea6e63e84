"""What attention gives under other scales, masks and operands."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from recon.auditing.quantities import Quantity, axes_of
from recon.ops import Attention
from recon.sites import Site
from recon.trace import Trace


def other_attention(trace: Trace, place: Site) -> Iterator[Quantity]:
    """Yield scores, weights or mixtures under other scales, masks and operands."""
    call = trace.attention(place)
    parts = [place.at(f"attn.{p}") for p in "qkv"]
    if call is None or call.past or not all(p in trace for p in parts):
        return
    q, k, v = (trace[p] for p in parts)
    for words, scores in _other_scores(call, q, k):
        if place.part == "attn.scores":
            yield Quantity(place, scores, axes_of(place), words)
            continue
        pattern = scores.softmax(-1)
        made = pattern if place.part == "attn.pattern" else pattern @ v
        yield Quantity(place, made, axes_of(place), words)
    if place.part == "attn.z":
        mixed = call.pattern(q, k) @ v
        batch, heads, tokens, size = mixed.shape
        merged = mixed.reshape(batch, tokens, heads * size)
        words = "merged without moving its heads back"
        yield Quantity(place, merged, ("B", "T", "D"), words)
    if place.part == "attn.pattern":
        scores = call.scores(q, k)
        yield Quantity(place, scores, axes_of(place), "before softmax")
        allowed, _ = call.mask_parts(q.shape[0], q.shape[2], k.shape[2], q.device)
        whole = (q @ k.transpose(-1, -2) * call.scale(q.shape[-1])).softmax(-1)
        hidden = whole.masked_fill(~allowed, 0.0)
        yield Quantity(place, hidden, axes_of(place), "masked after softmax")
        for words, other in _other_scores(call, q, k):
            yield Quantity(place, other, axes_of(place), f"before softmax, {words}")
        yield Quantity(
            place, scores.softmax(-2), axes_of(place), "with softmax over the queries"
        )


def _other_scores(
    call: Attention, q: Tensor, k: Tensor
) -> Iterator[tuple[str, Tensor]]:
    width, heads = q.shape[-1], q.shape[1]
    base = call.scale(width)
    batch, _, queries, _ = q.shape
    allowed, bias = call.mask_parts(batch, queries, k.shape[2], q.device)
    lowest = torch.finfo(q.dtype).min

    def masked(raw: Tensor) -> Tensor:
        raw = raw if bias is None else raw + bias.to(raw.dtype)
        return raw.masked_fill(~allowed, lowest)

    raw = q @ k.transpose(-1, -2)
    for words, factor in (
        ("without scaling", 1.0),
        ("scaled by 1/d for 1/sqrt(d)", 1.0 / width),
        ("scaled by 1/sqrt(D) for 1/sqrt(d)", (width * heads) ** -0.5),
        ("scaled by sqrt(d)", width**0.5),
        ("scaled by 1/sqrt(d) alone", width**-0.5),
    ):
        if factor == base:
            continue
        yield words, masked(raw * factor)
        yield f"{words} and without the mask", raw * factor
    yield "without the mask", raw * base
    yield "with the mask as -inf", (raw * base).masked_fill(~allowed, float("-inf"))
    yield "with zeros for the mask", (raw * base).masked_fill(~allowed, 0.0)
    swapped = k @ q.transpose(-1, -2) * base
    yield "with q and k swapped", masked(swapped)
    yield "with q and k swapped and without the mask", swapped
    causal = torch.ones_like(allowed).tril(0)
    yield "with only the causal mask", (raw * base).masked_fill(~causal, lowest)
    further = torch.ones_like(allowed).tril(1)
    yield "masked one token too late", (raw * base).masked_fill(~further, lowest)
    strictly = causal.tril(-1)
    yield "with the diagonal masked", (raw * base).masked_fill(~strictly, lowest)
