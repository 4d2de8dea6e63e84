"""What libraries show in place of a site, by design, made of what a pass recorded.

A form is a list of steps, ``"unbiased, by head"``, each made of the one before. They
come from processed weights: a LayerNorm's weight and bias folded into the next layer,
the weights that write to the stream and the unembedding centred, the bias of the values
moved behind attention. None of them changes what the model predicts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from recon.auditing import formulas
from recon.auditing.quantities import Quantity
from recon.ops import LayerNorm, Linear
from recon.sites import Site
from recon.trace import Trace


def shown(trace: Trace, place: Site, form: str) -> Quantity | None:
    """Return a site in a form, or None if the site has no such form."""
    first, *rest = form.split(", ")
    if first not in _STEPS:
        return formulas.derived(trace, place, form)
    begin = _values if "by head" in form else formulas.derived
    found = begin(trace, place, "")
    for step in (first, *rest):
        found = None if found is None else _STEPS[step](trace, found)
    return found


def _values(trace: Trace, place: Site, form: str) -> Quantity | None:
    """Return what a head's share of a site is made of."""
    return formulas.derived(trace, place.at("attn.z"), form)


def _with(one: Quantity, tensor: Tensor, words: str) -> Quantity:
    return replace(one, tensor=tensor, form=f"{one.form}, {words}".removeprefix(", "))


def _centered(trace: Trace, one: Quantity) -> Quantity:
    axis = "vocabulary" if one.site.part == "logits" else "width"
    words = f"less its mean over the {axis}"
    return _with(one, one.tensor - one.tensor.mean(-1, keepdim=True), words)


def _unbiased(trace: Trace, one: Quantity) -> Quantity | None:
    """Take away the bias of the values: it passes attention, whose weights sum to 1."""
    return _less(trace, one, _bias(trace, one.site), "less the bias of the values")


def _folded(trace: Trace, one: Quantity) -> Quantity | None:
    """As ``unbiased``, where the bias of ln_1 was folded into that of the values."""
    norm = trace.facts.makers.get(one.site.at("ln_1"))
    maker = trace.facts.makers.get(one.site.at("attn.qkv"))
    bias = _bias(trace, one.site)
    if bias is None or not isinstance(norm, LayerNorm) or norm.bias is None:
        return None
    assert isinstance(maker, Linear)
    whole = bias + norm.bias.detach() @ maker.weight.detach().chunk(3, -1)[2]
    return _less(trace, one, whole, "less the bias of ln_1 and the values")


def _bias(trace: Trace, place: Site) -> Tensor | None:
    maker = trace.facts.makers.get(place.at("attn.qkv"))
    return maker.bias.detach().chunk(3)[2] if isinstance(maker, Linear) else None


def _less(
    trace: Trace, one: Quantity, bias: Tensor | None, words: str
) -> Quantity | None:
    if bias is None:
        return None
    by_head = bias.view(trace.facts.heads, 1, -1)
    return _with(one, one.tensor - by_head, words)


def _by_head(trace: Trace, one: Quantity) -> Quantity | None:
    """Multiply each head by its rows of the output matrix, without the bias."""
    place = one.site.at("attn.out")
    maker = trace.facts.makers.get(place)
    if not isinstance(maker, Linear):
        return None
    weight = maker.weight.detach().unflatten(0, (trace.facts.heads, -1))
    result = (one.tensor @ weight).transpose(1, 2)
    made = Quantity(place, result, ("B", "T", "H", "D"), one.form)
    return _with(made, result, "by head, without its bias")


def _each_row(trace: Trace, one: Quantity) -> Quantity:
    again = one.tensor.expand(trace.facts.shape[0], -1, -1)
    return _with(one, again, "once for each row")


def _each_head(trace: Trace, one: Quantity) -> Quantity:
    again = one.tensor[:, :, None].expand(-1, -1, trace.facts.heads, -1)
    return _with(replace(one, axes=("B", "T", "H", "D")), again, "once for each head")


_STEPS: Mapping[str, Callable[[Trace, Quantity], Quantity | None]] = {
    "centered": _centered,
    "unbiased": _unbiased,
    "folded": _folded,
    "each row": _each_row,
    "by head": _by_head,
    "each head": _each_head,
}
