"""What other formulas make of the inputs of a site."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F  # noqa: N812 - as torch's own documentation has it
from torch import Tensor

from recon import gpt2
from recon.auditing.claims import LENS
from recon.auditing.forms import UNARY, apply, divisor, fits, normalized
from recon.auditing.near import allowance, apart
from recon.auditing.quantities import Quantity, axes_of
from recon.auditing.rerouting import rerouted
from recon.auditing.scores import other_attention
from recon.facts import Identity
from recon.ops import (
    Activation,
    Add,
    LayerNorm,
    Linear,
    Same,
    Slice,
    Unembed,
    merge_heads,
)
from recon.sites import Site, site
from recon.trace import Trace


def derived(trace: Trace, place: Site, form: str) -> Quantity | None:
    """Return a site in a form that other libraries show, or None if it has none.

    ``normalized`` is a LayerNorm's output before weight and bias, ``scale`` the
    deviation that it divides by, ``raw`` scores before the mask, ``centered`` a
    residual state less its mean over the width, ``by head`` what each head adds,
    ``made of ln_f of h.3.resid_post`` the logits of an earlier state.
    """
    if place not in trace:
        return None
    if form.startswith(LENS):
        return _lens(trace, place, form.removeprefix(LENS))
    if form == "":
        return Quantity(place, trace[place], axes_of(place))
    identity = gpt2.identity_of(trace, place)
    norm = identity is not None and isinstance(identity.op, LayerNorm)
    if form in ("normalized", "scale") and norm:
        assert identity is not None
        assert isinstance(identity.op, LayerNorm)
        x, eps = trace[identity.inputs[0]], identity.op.eps
        make = normalized if form == "normalized" else divisor
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


def _lens(trace: Trace, place: Site, state: str) -> Quantity | None:
    """Return the logits that ln_f and the unembedding make of a state."""
    op, final = (trace.facts.makers.get(one) for one in (place, Site("ln_f")))
    if site(state) not in trace or op is None or not isinstance(final, LayerNorm):
        return None
    x = trace[site(state)]
    if not fits(final, [x]):
        return None
    return Quantity(place, apply(op, final(x)), axes_of(place), LENS + state)


def _by_head(trace: Trace, place: Site, *, turned: bool = False) -> Quantity | None:
    """Return what each head adds to the attention's output, without its bias.

    The weight is square: whoever has it ``turned`` gets the right shape.
    """
    maker, z = trace.facts.makers.get(place), place.at("attn.z")
    if place.part != "attn.out" or not isinstance(maker, Linear) or z not in trace:
        return None
    if not fits(maker, [trace[z]]):
        return None
    heads = trace[z].transpose(1, 2)
    weight = maker.weight.detach().t() if turned else maker.weight.detach()
    each = torch.einsum("bthd,hde->bthe", heads, weight.reshape(*heads.shape[2:], -1))
    form = "by head, with its weight transposed" if turned else "by head"
    return Quantity(place, each, ("B", "T", "H", "D"), form)


def _unmasked(trace: Trace, place: Site, form: str) -> Quantity | None:
    """Return scores before the mask, or with what it hides at minus infinity."""
    words = "without the mask" if form == "raw" else "with the mask as -inf"
    others = other_attention(trace, place)
    return next((one for one in others if one.form == words), None)


def other_formulas(
    trace: Trace, place: Site, *, deep: bool = False
) -> Iterator[Quantity]:
    """Yield what plausible but different formulas make of the inputs of a site.

    ``deep`` also applies the right formula to what people make of the inputs.
    """
    wanted = place.at("attn.z") if place.part in ("attn.pattern",) else place
    identity = gpt2.identity_of(trace, place) or gpt2.identity_of(trace, wanted)
    if place.part in ("attn.q", "attn.k", "attn.v"):
        whole = place.at("attn.qkv")
        op = Slice("qkv".index(place.part[-1]), 3, trace.facts.heads)
        for one in other_formulas(trace, whole):
            yield Quantity(place, op(one.tensor), axes_of(place), one.form)
        yield from _other_biases(trace, place)
        return
    if place.part in ("attn.pattern", "attn.scores", "attn.z"):
        yield from other_attention(trace, place)
        return
    if identity is None or not all(i in trace for i in identity.inputs):
        return
    if isinstance(identity.op, Same) and not identity.dropout:
        for one in other_formulas(trace, identity.inputs[0], deep=deep):
            yield replace(one, site=place)
        return
    for turned in (False, True):
        if (each := _by_head(trace, place, turned=turned)) is not None:
            yield each
    inputs = [trace[i] for i in identity.inputs]
    if not fits(identity.op, inputs):
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
    if deep:
        yield from rerouted(trace, place)


def _other_biases(trace: Trace, place: Site) -> Iterator[Quantity]:
    """Yield q, k or v with the bias of another of the three."""
    maker = trace.facts.makers.get(place.at("attn.qkv"))
    if not isinstance(maker, Linear) or place not in trace:
        return
    heads = trace.facts.heads
    three = [bias.view(heads, 1, -1) for bias in maker.bias.detach().chunk(3)]
    mine = "qkv".index(place.part[-1])
    for number, other in enumerate(three):
        if number != mine:
            made = trace[place] - three[mine] + other
            part = place.at(f"attn.{'qkv'[number]}")
            yield Quantity(place, made, axes_of(place), f"with the bias of {part}")


def _of_other_inputs(
    identity: Identity, usual: Tensor, trace: Trace
) -> Iterator[tuple[str, Tensor]]:
    """Yield what the same operation makes of other sites, of its block or the last.

    Logits are also made of what ln_f makes of earlier states, as a logit lens does.
    """
    layer, final = identity.site.layer, trace.facts.makers.get(Site("ln_f"))
    if identity.site == Site("logits") and isinstance(final, LayerNorm):
        for state in trace.sites:
            if state.part in ("embed", "resid_post") and fits(final, [trace[state]]):
                made = apply(identity.op, final(trace[state]))
                yield f"{LENS}{state}", made
    near = trace.facts.depth - 1 if layer is None else layer
    for other in trace.sites:
        suits = other.layer in (None, near) and trace[other].shape == usual.shape
        if suits and other not in identity.inputs and other != identity.site:
            yield (
                f"made of {other} for {identity.inputs[0]}",
                apply(identity.op, trace[other]),
            )


def _of_other_forms(
    identity: Identity, usual: Tensor, trace: Trace
) -> Iterator[tuple[str, Tensor]]:
    """Yield what the operation makes of its input normalized, or normed once more."""
    if usual.ndim != 3:
        return
    name = identity.inputs[0]
    for words, make in UNARY.items():
        yield f"made of {name} {words}", apply(identity.op, make(usual))
    maker = trace.facts.makers.get(name)
    if isinstance(maker, LayerNorm):
        yield f"made of {name} normalized twice", apply(identity.op, maker(usual))


def _others(
    identity: Identity, inputs: list[Tensor], trace: Trace
) -> Iterator[tuple[str, Tensor]]:
    op = identity.op
    if isinstance(op, LayerNorm):
        yield from _other_norms(op, inputs[0])
    elif isinstance(op, Activation):
        usual = op(inputs[0])
        for name, act in _ACTIVATIONS.items():
            made = act(inputs[0])
            # The same function, in the terms of another library, is no other formula.
            if apart(usual, made) > allowance(usual.dtype):
                yield f"with {name} for {op.name}", made
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
        if (turned := _transposed(op.weight)) is not None:
            yield "with its weight transposed", x @ turned + op.bias
        for other in trace.sites:
            maker = trace.facts.makers.get(other)
            same = other.part == identity.site.part and other != identity.site
            if same and isinstance(maker, Linear):
                yield f"with the weights of {other}", x @ maker.weight + maker.bias


def _transposed(weight: Tensor) -> Tensor | None:
    """Transpose a square weight, or each of the square ones side by side in it."""
    size, width = weight.shape
    if width % size:
        return None
    return torch.cat([one.t() for one in weight.split(size, 1)], 1)


def _other_norms(op: LayerNorm, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    bias = torch.zeros_like(op.weight) if op.bias is None else op.bias
    centred = x - x.mean(-1, keepdim=True)
    for eps in (1e-3, 1e-5, 1e-6, 1e-8, 1e-12, 0.0):
        if eps != op.eps:
            words = f"with eps {eps:g} for {op.eps:g}"
            yield words, F.layer_norm(x, x.shape[-1:], op.weight, bias, eps)
    for words, below in (
        ("with the variance over n-1", (x.var(-1, keepdim=True) + op.eps).sqrt()),
        ("with eps outside the root", x.std(-1, keepdim=True, correction=0) + op.eps),
        ("with n-1 and eps outside the root", x.std(-1, keepdim=True) + op.eps),
    ):
        yield words, centred / below * op.weight + bias
    usual = divisor(x, op.eps)
    yield "divisor, squared", usual.square()
    yield "divisor, inverted", 1 / usual
    yield "divisor without eps", divisor(x, 0.0)
    yield "divisor over n-1", (x.var(-1, keepdim=True) + op.eps).sqrt()
    yield "over tokens and width", _over_tokens(x, op) * op.weight + bias
    plain = normalized(x, op.eps)
    yield "without weight and bias", plain
    yield "without its bias", plain * op.weight
    yield "without its weight", plain + bias
    rms = F.rms_norm(x, x.shape[-1:], op.weight, op.eps)
    yield "as RMSNorm", rms
    yield "as RMSNorm with bias", rms + bias
    yield "without centring", x / divisor(x, op.eps) * op.weight + bias


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
