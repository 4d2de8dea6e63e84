"""What a model computed, or might have computed instead: tensors with named axes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812 - as torch's own documentation has it
from torch import Tensor

from recon import gpt2
from recon.facts import Identity
from recon.ops import (
    Activation,
    Add,
    Attention,
    LayerNorm,
    Linear,
    Lookup,
    Same,
    Slice,
    Unembed,
    merge_heads,
)
from recon.sites import Site
from recon.trace import Trace


@dataclass(frozen=True, eq=False)
class Quantity:
    """A tensor that a pass computed at a site, or that a formula makes of it.

    ``axes`` name its axes (``B T D``); ``form`` says in words what was done to the site
    (empty: nothing), ``run`` which pass it comes from (empty: the one asked for).
    """

    site: Site
    tensor: Tensor
    axes: tuple[str, ...]
    form: str = ""
    run: str = ""

    @property
    def label(self) -> str:
        """Say in words what it is: ``h.3.ln_1 without weight and bias``."""
        words = f"{self.site} {self.form}".strip()
        return f"{words} of {self.run}" if self.run else words


def axes_of(place: Site) -> tuple[str, ...]:
    """Return the names of a site's axes: ``("B", "H", "T", "d")``."""
    return tuple(place.row.shape.replace("1|B", "B").split())


def computed(trace: Trace, run: str = "") -> Iterator[Quantity]:
    """Yield every site of a pass as it is."""
    for place in trace.sites:
        yield Quantity(place, trace[place], axes_of(place), run=run)


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


# -- forms: what may be made of one site ----------------------------------------


def _normalized(x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], None, None, eps)


def _scale(x: Tensor, eps: float) -> Tensor:
    return (x.var(-1, keepdim=True, correction=0) + eps).sqrt()


def derived(trace: Trace, place: Site, form: str) -> Quantity | None:
    """Return a site in a form that other libraries show, or None if it has none.

    ``normalized`` is a LayerNorm's output before weight and bias, ``scale`` the
    deviation that it divides by, ``raw`` scores before the mask, ``centered`` a
    residual state less its mean over the width, ``by head`` what each head adds.
    """
    if place not in trace:
        return None
    if form == "":
        return Quantity(place, trace[place], axes_of(place))
    identity = _identity(trace, place)
    norm = identity is not None and isinstance(identity.op, LayerNorm)
    if form in ("normalized", "scale") and norm:
        assert identity is not None
        assert isinstance(identity.op, LayerNorm)
        x, eps = trace[identity.inputs[0]], identity.op.eps
        make = _normalized if form == "normalized" else _scale
        words = "before weight and bias" if form == "normalized" else "divisor"
        return Quantity(place, make(x, eps), axes_of(place), words)
    if form == "centered":
        x = trace[place]
        return Quantity(place, x - x.mean(-1, keepdim=True), axes_of(place), "centred")
    if form == "by head":
        return _by_head(trace, place)
    if form in ("raw", "-inf"):
        return _unmasked(trace, place, form)
    return None


def _by_head(trace: Trace, place: Site) -> Quantity | None:
    """Return what each head adds to the attention's output, without its bias."""
    maker, z = trace.facts.makers.get(place), place.at("attn.z")
    if place.part != "attn.out" or not isinstance(maker, Linear) or z not in trace:
        return None
    if not _fits(maker, [trace[z]]):
        return None
    heads = trace[z].transpose(1, 2)
    weight = maker.weight.detach().view(*heads.shape[2:], -1)
    each = torch.einsum("bthd,hde->bthe", heads, weight)
    return Quantity(place, each, ("B", "T", "H", "D"), "by head")


def _unmasked(trace: Trace, place: Site, form: str) -> Quantity | None:
    """Return scores before the mask, or with what it hides at minus infinity."""
    words = "without the mask" if form == "raw" else "with the mask as -inf"
    others = _other_attention(trace, place)
    return next((one for one in others if one.form == words), None)


def _standard(x: Tensor, axis: int) -> Tensor:
    centred = x - x.mean(axis, keepdim=True)
    return centred / x.std(axis, keepdim=True, correction=int(x.shape[axis] > 1))


_UNARY: Mapping[str, Callable[[Tensor], Tensor]] = {
    "less its mean over the width": lambda x: x - x.mean(-1, keepdim=True),
    "normalized without weight and bias": lambda x: _normalized(x, 1e-5),
    "divided by its root mean square": lambda x: F.rms_norm(x, x.shape[-1:], eps=1e-5),
    "divided by its norm": lambda x: F.normalize(x, dim=-1),
    "less its mean over the rows": lambda x: x - x.mean(0),
    "less its mean over the tokens": lambda x: x - x.mean(-2, keepdim=True),
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
}
_STREAMS = frozenset(
    {"embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"}
)
_NORMS = ("ln_1", "ln_2", "ln_f")


def reshaped(trace: Trace) -> Iterator[Quantity]:
    """Yield what people make of a residual state: centred, normalized, ln_f of it."""
    final = trace.facts.makers.get(Site("ln_f"))
    for place in trace.sites:
        if place.part not in _STREAMS:
            continue
        x = trace[place]
        for words, make in _UNARY.items():
            yield Quantity(place, make(x), axes_of(place), words)
        if final is not None and _fits(final, [x]) and place.part != "resid_mid":
            yield Quantity(place, _apply(final, x), axes_of(place), "after ln_f")
    for place in trace.sites:
        maker = trace.facts.makers.get(place)
        if isinstance(maker, LayerNorm) and _fits(maker, [trace[place]]):
            yield Quantity(
                place, _apply(maker, trace[place]), axes_of(place), "normalized twice"
            )


def pointwise(trace: Trace, place: Site) -> Iterator[Quantity]:
    """Yield what the usual functions of one number, and softmax, make of a site."""
    if place in trace and trace[place].is_floating_point():
        for words, make in _POINTWISE.items():
            yield Quantity(place, make(trace[place]), axes_of(place), words)


def _apply(op: object, x: Tensor) -> Tensor:
    assert callable(op)
    result: Tensor = op(x)
    return result


def parameters(trace: Trace) -> Iterator[Quantity]:
    """Yield what a sum may lack in every row: biases, by site, and positions."""
    if Site("wpe") in trace and trace[Site("wpe")].shape[0] == 1:
        yield Quantity(Site("wpe"), trace[Site("wpe")][0], ("T", "D"))
    for place, maker in trace.facts.makers.items():
        bias = getattr(maker, "bias", None)
        if isinstance(bias, Tensor) and bias.ndim == 1:
            yield Quantity(place, bias.detach(), ("D",), "bias")


def tables(trace: Trace) -> Iterator[Quantity]:
    """Yield the embedding tables, of which a pass looks up some rows."""
    for place, axis in ((Site("wpe"), "N"), (Site("wte"), "V")):
        maker = trace.facts.makers.get(place)
        if isinstance(maker, Lookup):
            yield Quantity(place, maker.table.detach(), (axis, "D"), "table")


def weights(trace: Trace) -> Iterator[Quantity]:
    """Yield the weights of the modules, each under the site that it makes."""
    for place, maker in trace.facts.makers.items():
        weight = getattr(maker, "weight", None)
        if isinstance(weight, Tensor):
            axes = ("in", "out") if weight.ndim == 2 else ("D",)
            yield Quantity(place, weight.detach(), axes, "weight")


def reductions(
    trace: Trace, mask: Tensor | None = None, places: Sequence[Site] | None = None
) -> Iterator[Quantity]:
    """Yield means, sums and extremes of sites over an axis other than their last.

    With a ``mask`` (B T, 1 for text) also the mean over the tokens of the text.
    """
    for place in trace.sites if places is None else places:
        axes, x = axes_of(place), trace[place]
        if x.ndim != len(axes):
            continue
        if mask is not None and axes[:2] == ("B", "T") and x.shape[:2] == mask.shape:
            weights = mask[..., None].to(x.dtype)
            mean = (x * weights).sum(1) / weights.sum(1)
            yield Quantity(place, mean, ("B", *axes[2:]), "averaged over the text")
        for axis, name in enumerate(axes[:-1]):
            rest = axes[:axis] + axes[axis + 1 :]
            word = {"B": "rows", "T": "tokens", "H": "heads"}.get(name, name)
            yield Quantity(place, x.mean(axis), rest, f"averaged over {word}")
            yield Quantity(place, x.sum(axis), rest, f"summed over {word}")
            yield Quantity(place, x.amax(axis), rest, f"largest over {word}")
        norm = x.norm(dim=-1)
        yield Quantity(place, norm, axes[:-1], "as the norm of each vector")


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


# -- other formulas at one site --------------------------------------------------


def _identity(trace: Trace, place: Site) -> Identity | None:
    return next((i for i in gpt2.identities(trace) if i.site == place), None)


def other_formulas(
    trace: Trace, place: Site, *, deep: bool = False
) -> Iterator[Quantity]:
    """Yield what plausible but different formulas make of the inputs of a site.

    ``deep`` also applies the right formula to what people make of the inputs.
    """
    wanted = place.at("attn.z") if place.part in ("attn.pattern",) else place
    identity = _identity(trace, place) or _identity(trace, wanted)
    if place.part in ("attn.q", "attn.k", "attn.v"):
        whole = place.at("attn.qkv")
        op = Slice("qkv".index(place.part[-1]), 3, trace.facts.heads)
        for one in other_formulas(trace, whole):
            yield Quantity(place, op(one.tensor), axes_of(place), one.form)
        return
    if place.part in ("attn.pattern", "attn.scores", "attn.z"):
        yield from _other_attention(trace, place)
        return
    if identity is None or not all(i in trace for i in identity.inputs):
        return
    if isinstance(identity.op, Same) and not identity.dropout:
        for one in other_formulas(trace, identity.inputs[0], deep=deep):
            yield replace(one, site=place)
        return
    if (each := _by_head(trace, place)) is not None:
        yield each
    inputs = [trace[i] for i in identity.inputs]
    if not _fits(identity.op, inputs):
        return
    named = Quantity(place, inputs[0] if inputs else trace[place], axes_of(place))
    for words, tensor in _others(identity, inputs, trace):
        yield replace(named, tensor=tensor, form=words)
    if len(inputs) == 1 and not isinstance(identity.op, Same | Add):
        for words, tensor in _of_other_inputs(identity, inputs[0], trace):
            yield replace(named, tensor=tensor, form=words)
        if deep:
            for words, tensor in _of_other_forms(identity, inputs[0], trace):
                yield replace(named, tensor=tensor, form=words)


def _fits(op: object, inputs: Sequence[Tensor]) -> bool:
    """Whether an op's weights still have the dtype of what a pass computed."""
    weight = getattr(op, "weight", None)
    return weight is None or not inputs or weight.dtype == inputs[0].dtype


def _of_other_inputs(
    identity: Identity, usual: Tensor, trace: Trace
) -> Iterator[tuple[str, Tensor]]:
    """Yield what the same operation makes of other sites, of its block or the last.

    Logits are also made of what ln_f makes of earlier states, as a logit lens does.
    """
    layer, final = identity.site.layer, trace.facts.makers.get(Site("ln_f"))
    if identity.site == Site("logits") and isinstance(final, LayerNorm):
        for state in trace.sites:
            if state.part in ("embed", "resid_post") and _fits(final, [trace[state]]):
                made = _apply(identity.op, final(trace[state]))
                yield f"made of ln_f of {state}", made
    near = trace.facts.depth - 1 if layer is None else layer
    for other in trace.sites:
        fits = other.layer in (None, near) and trace[other].shape == usual.shape
        if fits and other not in identity.inputs and other != identity.site:
            yield (
                f"made of {other} for {identity.inputs[0]}",
                _apply(identity.op, trace[other]),
            )


def _of_other_forms(
    identity: Identity, usual: Tensor, trace: Trace
) -> Iterator[tuple[str, Tensor]]:
    """Yield what the operation makes of its input normalized, or normed once more."""
    if usual.ndim != 3:
        return
    name = identity.inputs[0]
    for words, make in _UNARY.items():
        yield f"made of {name} {words}", _apply(identity.op, make(usual))
    maker = trace.facts.makers.get(name)
    if isinstance(maker, LayerNorm):
        yield f"made of {name} normalized twice", _apply(identity.op, maker(usual))


def _others(
    identity: Identity, inputs: list[Tensor], trace: Trace
) -> Iterator[tuple[str, Tensor]]:
    op = identity.op
    if isinstance(op, LayerNorm):
        yield from _other_norms(op, inputs[0])
    elif isinstance(op, Activation):
        for name, act in _ACTIVATIONS.items():
            yield f"with {name} for {op.name}", act(inputs[0])
    elif isinstance(op, Unembed):
        scores = trace[identity.site]
        table = getattr(trace.facts.makers.get(Site("wte")), "table", None)
        if table is not None and table is not op.weight:
            yield "made with wte for lm_head", F.linear(op.rows(inputs[0]), table)
        yield "after softmax", scores.softmax(-1)
        yield "after log-softmax", scores.log_softmax(-1)
    elif isinstance(op, Linear):
        x = merge_heads(inputs[0]) if inputs[0].ndim == 4 else inputs[0]
        yield "without its bias", x @ op.weight
        if op.weight.shape[0] == op.weight.shape[1]:
            yield "with its weight transposed", x @ op.weight.t() + op.bias
        for other in trace.sites:
            maker = trace.facts.makers.get(other)
            same = other.part == identity.site.part and other != identity.site
            if same and isinstance(maker, Linear):
                yield f"with the weights of {other}", x @ maker.weight + maker.bias


def _other_norms(op: LayerNorm, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    bias = torch.zeros_like(op.weight) if op.bias is None else op.bias
    centred = x - x.mean(-1, keepdim=True)
    for eps in (1e-3, 1e-5, 1e-6, 1e-8, 1e-12, 0.0):
        if eps != op.eps:
            words = f"with eps {eps:g} for {op.eps:g}"
            yield words, F.layer_norm(x, x.shape[-1:], op.weight, bias, eps)
    for words, divisor in (
        ("with the variance over n-1", (x.var(-1, keepdim=True) + op.eps).sqrt()),
        ("with eps outside the root", x.std(-1, keepdim=True, correction=0) + op.eps),
        ("with n-1 and eps outside the root", x.std(-1, keepdim=True) + op.eps),
    ):
        yield words, centred / divisor * op.weight + bias
    scale = _scale(x, op.eps)
    yield "divisor, squared", scale.square()
    yield "divisor, inverted", 1 / scale
    yield "divisor without eps", _scale(x, 0.0)
    yield "divisor over n-1", (x.var(-1, keepdim=True) + op.eps).sqrt()
    yield "over tokens and width", _over_tokens(x, op) * op.weight + bias
    plain = _normalized(x, op.eps)
    yield "without weight and bias", plain
    yield "without its bias", plain * op.weight
    yield "without its weight", plain + bias
    rms = F.rms_norm(x, x.shape[-1:], op.weight, op.eps)
    yield "as RMSNorm", rms
    yield "as RMSNorm with bias", rms + bias
    yield "without centring", x / _scale(x, op.eps) * op.weight + bias


def _over_tokens(x: Tensor, op: LayerNorm) -> Tensor:
    return F.layer_norm(x, x.shape[1:], None, None, op.eps)


_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "the erf gelu": F.gelu,
    "the tanh gelu": lambda x: F.gelu(x, approximate="tanh"),
    "quick gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


def _other_attention(trace: Trace, place: Site) -> Iterator[Quantity]:
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
