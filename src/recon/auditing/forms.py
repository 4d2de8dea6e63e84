"""What may be made of what a model computed: other shapes, centred, reduced."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - as torch's own documentation has it
from torch import Tensor

from recon.auditing.quantities import Quantity, axes_of
from recon.ops import LayerNorm
from recon.sites import Site
from recon.trace import Trace


def missplit(trace: Trace) -> Iterator[Quantity]:
    """Yield what c_attn's output gives when its columns are grouped in a wrong way."""
    heads = trace.facts.heads
    for place in trace.sites:
        if place.part != "attn.qkv":
            continue
        merged = trace[place]
        batch, tokens, width = merged.shape
        size = width // 3 // heads
        for words, shape, axis in (
            ("(H 3 d)", (heads, 3, size), 3),
            ("(H d 3)", (heads, size, 3), 4),
            ("(d 3 H)", (size, 3, heads), 3),
            ("(d H 3)", (size, heads, 3), 4),
            ("(3 d H)", (3, size, heads), 2),
        ):
            split = merged.view(batch, tokens, *shape)
            for piece in range(3):
                part = split.select(axis, piece)
                if words in ("(d 3 H)", "(d H 3)", "(3 d H)"):
                    part = part.transpose(-1, -2)
                yield Quantity(
                    place.at(f"attn.{'qkv'[piece]}"),
                    part.transpose(1, 2),
                    ("B", "H", "T", "d"),
                    f"with the columns of qkv taken as {words}",
                )


def fits(op: object, inputs: Sequence[Tensor]) -> bool:
    """Whether an op's weights still have the dtype of what a pass computed."""
    weight = getattr(op, "weight", None)
    return weight is None or not inputs or weight.dtype == inputs[0].dtype


def apply(op: object, x: Tensor) -> Tensor:
    """Call an operation on its one input."""
    assert callable(op)
    result: Tensor = op(x)
    return result


def divisor(x: Tensor, eps: float) -> Tensor:
    """Return what a LayerNorm divides by: (B, T, 1)."""
    return (x.var(-1, keepdim=True, correction=0) + eps).sqrt()


def normalized(x: Tensor, eps: float) -> Tensor:
    """Return a LayerNorm's output before its weight and bias."""
    return F.layer_norm(x, x.shape[-1:], None, None, eps)


def _standard(x: Tensor, *axes: int) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    several = all(x.shape[axis] > 1 for axis in axes)
    return centred / x.std(axes, keepdim=True, correction=int(several))


UNARY: Mapping[str, Callable[[Tensor], Tensor]] = {
    "less its mean over the width": lambda x: x - x.mean(-1, keepdim=True),
    "normalized without weight and bias": lambda x: normalized(x, 1e-5),
    "divided by its root mean square": lambda x: F.rms_norm(x, x.shape[-1:], eps=1e-5),
    "divided by its norm": lambda x: F.normalize(x, dim=-1),
    "less its mean over the rows": lambda x: x - x.mean(0),
    "less its mean over the tokens": lambda x: x - x.mean(-2, keepdim=True),
    "less its mean over rows and tokens": lambda x: x - x.mean((0, -2), keepdim=True),
    "standardised over rows and tokens": lambda x: _standard(x, 0, -2),
    "standardised over the rows": lambda x: _standard(x, 0),
    "standardised over the tokens": lambda x: _standard(x, -2),
}


_POINTWISE: Mapping[str, Callable[[Tensor], Tensor]] = {
    "in absolute value": torch.abs,
    "squared": torch.square,
    "after relu": F.relu,
    "after exp": torch.exp,
    "after log": torch.log,
    "after tanh": torch.tanh,
    "after sigmoid": torch.sigmoid,
    "after softmax": lambda x: x.softmax(-1),
    "after log-softmax": lambda x: x.log_softmax(-1),
    "after softmax over the tokens": lambda x: x.softmax(-2),
}


_STREAMS = frozenset(
    {"embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"}
)


def reshaped(trace: Trace) -> Iterator[Quantity]:
    """Yield what people make of a residual state: centred, normalized, ln_f of it."""
    final = trace.facts.makers.get(Site("ln_f"))
    for place in trace.sites:
        if place.part not in _STREAMS:
            continue
        x = trace[place]
        for words, make in UNARY.items():
            yield Quantity(place, make(x), axes_of(place), words)
        if final is not None and fits(final, [x]) and place.part != "resid_mid":
            yield Quantity(place, apply(final, x), axes_of(place), "after ln_f")
    for place in trace.sites:
        maker = trace.facts.makers.get(place)
        if isinstance(maker, LayerNorm) and fits(maker, [trace[place]]):
            yield Quantity(
                place, apply(maker, trace[place]), axes_of(place), "normalized twice"
            )


def pointwise(trace: Trace, place: Site) -> Iterator[Quantity]:
    """Yield what the usual functions of one number, and softmax, make of a site."""
    if place in trace and trace[place].is_floating_point():
        for words, make in _POINTWISE.items():
            yield Quantity(place, make(trace[place]), axes_of(place), words)


def reductions(
    trace: Trace,
    mask: Tensor | None = None,
    places: Sequence[Site] | None = None,
    shape: Sequence[int] | None = None,
) -> Iterator[Quantity]:
    """Yield means, sums, extremes and spreads of sites over some of their axes.

    With a ``mask`` (B T, 1 for text) also the mean over the tokens of the text. With a
    ``shape`` only over the axes that leave it, axes of length 1 aside.
    """
    for place in trace.sites if places is None else places:
        axes, x = axes_of(place), trace[place]
        if x.ndim != len(axes):
            continue
        if mask is not None and axes[:2] == ("B", "T") and x.shape[:2] == mask.shape:
            weights = mask[..., None].to(x.dtype)
            mean = (x * weights).sum(1) / weights.sum(1)
            yield Quantity(place, mean, ("B", *axes[2:]), "averaged over the text")
        for over, words in _groups(axes):
            kept = [n for n in range(len(axes)) if n not in over]
            left = [x.shape[n] for n in kept if x.shape[n] != 1]
            if shape is not None and left != [n for n in shape if n != 1]:
                continue
            rest = tuple(axes[n] for n in kept)
            for kind, made in _statistics(x, over):
                yield Quantity(place, made, rest, kind.format(words))
        norm = x.norm(dim=-1)
        yield Quantity(place, norm, axes[:-1], "as the norm of each vector")


def _groups(axes: tuple[str, ...]) -> Iterator[tuple[tuple[int, ...], str]]:
    """Yield the axes that people reduce: each, all but the last, and all."""
    words = {"B": "rows", "T": "tokens", "H": "heads"}
    for axis, name in enumerate(axes):
        yield (axis,), words.get(name, "the width" if axis == len(axes) - 1 else name)
    if len(axes) > 2:
        yield (
            tuple(range(len(axes) - 1)),
            " and ".join(words.get(name, name) for name in axes[:-1]),
        )
    yield tuple(range(len(axes))), "everything"


def _statistics(x: Tensor, over: tuple[int, ...]) -> Iterator[tuple[str, Tensor]]:
    yield "averaged over {}", x.mean(over)
    yield "summed over {}", x.sum(over)
    yield "largest over {}", x.amax(over)
    yield "smallest over {}", x.amin(over)
    for less in (0, 1):
        if less < math.prod(x.shape[axis] for axis in over):
            spread = x.var(over, correction=less)
            more = " (over n-1)" * less
            yield f"variance over {{}}{more}", spread
            yield f"deviation over {{}}{more}", spread.sqrt()


def layer_means(trace: Trace) -> Iterator[Quantity]:
    """Yield the mean of each part over all blocks."""
    by_part: dict[str, list[Site]] = {}
    for place in trace.sites:
        if place.layer is not None:
            by_part.setdefault(place.part, []).append(place)
    for places in by_part.values():
        several = [trace[place] for place in places]
        if len(several) > 1 and len({t.shape for t in several}) == 1:
            mean = torch.stack(several).mean(0)
            yield Quantity(
                places[0], mean, axes_of(places[0]), "averaged over all blocks"
            )
