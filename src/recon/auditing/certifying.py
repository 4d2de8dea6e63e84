"""Judge captures by each other: does the model make each one of those before it?

A capture whose inputs were captured, too, is judged by the local identity, with its
proven bound; no run of the model is needed for it. Where an input is missing or itself
wrong, the judgement by the model's own run stands.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from recon import gpt2
from recon.auditing.formulas import other_formulas
from recon.auditing.judgement import Judgement
from recon.auditing.near import Neighbourhood, allowance, merged
from recon.auditing.quantities import Quantity, axes_of
from recon.certify import check as certified
from recon.compare import Check
from recon.facts import Identity
from recon.ops import (
    Add,
    Fused,
    Lookup,
    Mix,
    Pattern,
    Same,
    merge_heads,
    split_heads,
)
from recon.sites import Site
from recon.trace import Trace

_UNNAMED = ("unexplained", "wrong-formula", "wrong-terms")


def by_each_other(judged: Sequence[Judgement], clean: Trace) -> list[Judgement]:
    """Return the judgements, those that can be certified replaced by that.

    ``clean`` is the model's own run on the inputs; of it only weights, masks and tokens
    are used here. What the model makes of captures that are wrong is wrong, too, but
    only ``follows`` from them.
    """
    held = {one.reading.site: one for one in judged if one.reading is not None}
    whole = {
        place: tensor
        for place, one in held.items()
        if (tensor := _whole(one, clean)) is not None
    }
    known, of = _completed(whole, clean)
    trace = replace(clean, tensors=known)
    done: dict[Site, Judgement] = {}
    for identity in _laws(trace):
        site, inputs = identity.site, identity.inputs
        if site not in known or not all(i in known for i in inputs):
            continue
        sources = [place for i in inputs for place in of[i]]
        # What was put in for a site says nothing of it.
        if not set(sources).isdisjoint(of[site]):
            continue
        found = certified(trace, identity)
        if found.verdict in ("missing", "unverified"):
            continue
        now = held | done
        right = all(now[place].right for place in sources)
        for place in of[site]:
            if right and (found.passed or of[site] == [site]):
                done[place] = _by_identity(now[place], identity, found)
            elif found.passed and now[place].rule:
                done[place] = _following(now[place], identity)
            elif now[place].rule in _UNNAMED:
                done[place] = _named(now[place], identity, trace)
    return _with_what_follows([_of(one, done) for one in judged])


def _laws(trace: Trace) -> Iterator[Identity]:
    """Yield the local laws, and those of patterns that a fused kernel does not show."""
    for identity in gpt2.identities(trace):
        place, op = identity.site.at("attn.pattern"), identity.op
        shown = isinstance(op, Fused) and place in trace.tensors and not identity.extra
        if shown and isinstance(op, Fused) and place.part == "attn.pattern":
            q, k, v = identity.inputs
            yield Identity("pattern", place, Pattern(op.attention), (q, k))
            yield identity
            yield Identity("z", identity.site, Mix(op.attention), (place, v))
        else:
            yield identity


def _named(one: Judgement, identity: Identity, trace: Trace) -> Judgement:
    """Say which other formula makes a capture of captures that are wrong themselves."""
    assert one.reading is not None
    place = one.reading.site
    tensor, _ = merged(trace[place], axes_of(place))
    others = [*_other_pieces(place, identity, trace)]
    others += other_formulas(trace, place, deep=True)
    near = Neighbourhood(others, sums=False).explain(
        tensor.cpu(), allowance(tensor.dtype, foreign=True)
    )
    if near is None or near.how != "same":
        return one
    (made,) = near.quantities
    if made.site == place and not made.form:
        return _following(one, identity)
    rule = "wrong-formula" if made.form else "wrong-site"
    said = f"`{one.name}` is {near.words} (up to rounding)"
    return replace(one, rule=rule, sentence=said, found=near.words, by="certify")


def _other_pieces(place: Site, identity: Identity, trace: Trace) -> Iterator[Quantity]:
    """Yield q, k and v, which may stand in each other's places."""
    if identity.site.part != "attn.qkv" or place == identity.site:
        return
    whole = identity.op(*(trace[i] for i in identity.inputs)).detach()
    for number, part in enumerate("qkv"):
        other = place.at(f"attn.{part}")
        made = split_heads(whole.chunk(3, -1)[number], trace.facts.heads)
        yield Quantity(other, made, axes_of(other))


def _with_what_follows(judged: list[Judgement]) -> list[Judgement]:
    """Count, with the first capture that is wrong by itself, what follows from it."""
    roots = {
        one.reading.site: one
        for one in judged
        if one.rule and not one.follows and one.reading is not None
    }
    count = sum(one.follows for one in judged)
    if not roots:
        return [replace(one, follows=False) for one in judged]
    first = roots[min(roots)]
    words = f"{count} more captures, each what the model makes of wrong ones before it"
    told = replace(first, evidence={**first.evidence, "hence": words})
    return [told if one is first and count else one for one in judged]


def _of(one: Judgement, done: Mapping[Site, Judgement]) -> Judgement:
    if one.reading is not None and (new := done.get(one.reading.site)) is not None:
        return new if new.name == one.name else one
    return one


def _completed(
    captured: Mapping[Site, Tensor], clean: Trace
) -> tuple[dict[Site, Tensor], dict[Site, list[Site]]]:
    """Put in what captures stand for, and say of which captures each tensor is.

    Embeddings are looked up, which nothing can go wrong with; without dropout
    what is before it is what is after; q, k and v are what c_attn put out.
    """
    known, of = dict(captured), {place: [place] for place in captured}
    for place in clean.tensors:
        lookup = isinstance(clean.facts.makers.get(place), Lookup)
        if lookup and place not in known:
            known[place], of[place] = clean[place], []
    for layer in range(clean.facts.depth):
        parts = [Site(f"attn.{p}", layer) for p in "qkv"]
        whole = Site("attn.qkv", layer)
        if whole not in known and all(p in captured for p in parts):
            known[whole] = torch.cat([merge_heads(captured[p]) for p in parts], -1)
            of[whole] = parts
    same = [
        (identity.site, *identity.inputs)
        for identity in gpt2.identities(clean)
        if isinstance(identity.op, Same) and not identity.dropout
    ]
    for pair in (*same, *reversed(same)):
        for here, there in (pair, pair[::-1]):
            if here in known and there not in known:
                known[there], of[there] = known[here], of[here]
    return known, of


def _whole(one: Judgement, clean: Trace) -> Tensor | None:
    """Return a capture as its site has it; None if it is but a piece, or a form."""
    assert one.reading is not None
    place, tensor = one.reading.site, one.tensor.detach()
    if one.reading.form or place not in clean or not tensor.is_floating_point():
        return None
    known = clean[place]
    if known.ndim == 4 and tensor.ndim == 3 and tensor.shape[-1] == clean.facts.width:
        tensor = split_heads(tensor, clean.facts.heads)
    if known.ndim == 4 == tensor.ndim and known.shape != tensor.shape:
        tensor = tensor.transpose(1, 2)
    if known.ndim == tensor.ndim + 1 and known.shape[0] == 1:
        tensor = tensor[None]
    same = tensor.shape == known.shape and tensor.dtype == known.dtype
    return tensor.to(known.device) if same else None


def _following(one: Judgement, identity: Identity) -> Judgement:
    words = f"is what the model makes of {_inputs(identity)}, which is wrong itself"
    return replace(one, follows=True, sentence=f"`{one.name}` {words}", by="certify")


def _by_identity(one: Judgement, identity: Identity, found: Check) -> Judgement:
    if found.passed:
        return _certified(one, identity, found)
    moved = isinstance(identity.op, Add | Same) and _slight(one.tensor, found)
    if one.rule or one.exact or moved:
        # What is wrong is named already; bits that the model itself computes are right,
        # and a sum of captures that were stored in fewer bits need not be exact.
        return one
    return replace(
        one,
        rule="unexplained",
        sentence=f"`{one.name}` is not what the model makes of {_inputs(identity)}: "
        f"{_off(found)}",
        evidence=dict(_figures(found)),
        by="certify",
    )


def _certified(one: Judgement, identity: Identity, found: Check) -> Judgement:
    share = f" ({found.bound_ratio:.2g} of the bound)" if found.bound_ratio else ""
    sentence = (
        f"`{one.name}` is {one.reading}: what the model makes of "
        f"{_inputs(identity)}, certified{share}"
    )
    right = replace(one, sentence=sentence, by="certify")
    return replace(right, rule="", found=str(one.reading)) if one.rule else right


def _inputs(identity: Identity) -> str:
    return " and ".join(map(str, identity.inputs)) or "the inputs"


def _slight(tensor: Tensor, found: Check) -> bool:
    size = float(tensor.double().square().mean().sqrt())
    off = found.max_abs
    return off is not None and off <= allowance(tensor.dtype) * size


def _off(found: Check) -> str:
    if found.reason:
        return found.reason
    where = "" if found.index is None else f" at {list(found.index)}"
    times = "" if found.bound_ratio is None else f", {found.bound_ratio:.3g} times the"
    bound = f"{times} proven bound" if times else ""
    return f"off by up to {found.max_abs:.3g}{where}{bound}"


def _figures(found: Check) -> Iterator[tuple[str, float]]:
    if found.max_abs is not None:
        yield "max_abs", found.max_abs
    if found.bound_ratio is not None:
        yield "bound_ratio", found.bound_ratio
