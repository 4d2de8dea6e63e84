"""Judge captures by each other: does the model make each one of those before it?

A capture whose inputs were captured, too, is judged by the local identity, with its
proven bound; no run of the model is needed for it. Where an input is missing or itself
wrong, the judgement by the model's own run stands.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from recon import gpt2
from recon.auditing.judgement import Judgement
from recon.auditing.near import allowance
from recon.certify import check as certified
from recon.compare import Check
from recon.facts import Identity
from recon.ops import Add, Same, split_heads
from recon.sites import Site
from recon.trace import Trace


def by_each_other(judged: Sequence[Judgement], clean: Trace) -> list[Judgement]:
    """Return the judgements, those that can be certified replaced by that.

    ``clean`` is the model's own run on the inputs; of it only weights, masks and tokens
    are used here.
    """
    held = {one.reading.site: one for one in judged if one.reading is not None}
    tensors = {
        place: tensor
        for place, one in held.items()
        if (tensor := _whole(one, clean)) is not None
    }
    trace = replace(clean, tensors=tensors)
    done: dict[Site, Judgement] = {}
    for identity in gpt2.identities(trace):
        if identity.site in tensors and _inputs_right(identity, held | done, tensors):
            found = certified(trace, identity)
            if found.verdict not in ("missing", "unverified"):
                one = (held | done)[identity.site]
                done[identity.site] = _by_identity(one, identity, found)
    return [_of(one, done) for one in judged]


def _of(one: Judgement, done: Mapping[Site, Judgement]) -> Judgement:
    if one.reading is not None and (new := done.get(one.reading.site)) is not None:
        return new if new.name == one.name else one
    return one


def _whole(one: Judgement, clean: Trace) -> Tensor | None:
    """Return a capture as its site has it; None if it is but a piece, or a form."""
    assert one.reading is not None
    place, tensor = one.reading.site, one.tensor.detach()
    if one.reading.form or place not in clean or not tensor.is_floating_point():
        return None
    known = clean[place]
    if known.ndim == 4 and tensor.ndim == 3 and tensor.shape[-1] == clean.facts.width:
        tensor = split_heads(tensor, clean.facts.heads)
    if known.ndim == tensor.ndim + 1 and known.shape[0] == 1:
        tensor = tensor[None]
    same = tensor.shape == known.shape and tensor.dtype == known.dtype
    return tensor.to(known.device) if same else None


def _inputs_right(
    identity: Identity, judged: Mapping[Site, Judgement], tensors: Mapping[Site, Tensor]
) -> bool:
    return all(i in tensors and judged[i].right for i in identity.inputs)


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
        f"`{one.name}` is {identity.site}: what the model makes of "
        f"{_inputs(identity)}, certified{share}"
    )
    right = replace(one, sentence=sentence, by="certify")
    return replace(right, rule="", found=str(identity.site)) if one.rule else right


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
