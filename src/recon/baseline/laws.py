"""What makes each captured site, in words that two runs can be compared by.

The words name the function that is computed, not the kernel that computes it: eager
attention and a fused one have one law, ``z`` from queries, keys and values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from recon import gpt2
from recon.facts import Facts, Identity
from recon.ops import (
    Activation,
    Add,
    Attention,
    Fused,
    LayerNorm,
    Linear,
    Lookup,
    Mix,
    Pattern,
    Same,
    Unembed,
)
from recon.saving import digest
from recon.sites import Site
from recon.trace import Trace, sources

_SHORT = 12


@dataclass(frozen=True, eq=False)
class Law:
    """What one site is made of; ``identity`` bounds it, given its inputs."""

    site: Site
    words: str
    inputs: tuple[Site, ...]
    weights: tuple[str, ...]
    identity: Identity


def laws(trace: Trace) -> Iterator[Law]:
    """Yield the law of each captured site, shallowest first."""
    for identity in gpt2.identities(trace):
        if identity.site in trace.tensors:
            yield _law(trace, _from_queries(identity))


def _from_queries(identity: Identity) -> Identity:
    """Let z come from queries, keys and values, whatever the kernel shows between."""
    op = identity.op
    if not isinstance(op, Mix | Fused) or op.attention.past:
        return identity
    kind = identity.site.part.split(".")[0]
    q, k, v = (identity.site.at(f"{kind}.{part}") for part in "qkv")
    return replace(identity, op=Fused(op.attention), inputs=(q, k, v), extra=())


def _law(trace: Trace, identity: Identity) -> Law:
    captured = [
        held
        for place in identity.inputs
        for held in ((place,) if place in trace.tensors else sources(place))
    ]
    return Law(
        site=identity.site,
        words=_words(trace, identity),
        inputs=tuple(dict.fromkeys(captured)),
        weights=_weights(trace.facts, identity),
        identity=identity,
    )


def _words(trace: Trace, identity: Identity) -> str:
    match identity.op:
        case Lookup(ids=ids):
            return f"lookup of ids {_short(ids)}"
        case Add():
            return "sum"
        case Same():
            return "the same"
        case LayerNorm(eps=eps):
            return f"layer_norm, eps {eps:g}"
        case Linear(weight=weight):
            return f"linear, {weight.shape[0]} to {weight.shape[1]}"
        case Unembed(keep=keep):
            rows = keep if isinstance(keep, int) else _short(keep)
            return f"unembed, rows {rows or 'all'}"
        case Activation() as op:
            return op.name
        case Pattern(attention=call) | Mix(attention=call) | Fused(attention=call):
            return _attention(trace, identity, call)
        case op:
            return type(op).__name__.lower()


def _attention(trace: Trace, identity: Identity, call: Attention) -> str:
    kind = identity.site.part.split(".")[0]
    q, k = (trace[identity.site.at(f"{kind}.{part}")] for part in "qk")
    keys = call.past + k.shape[2]
    allowed, bias = call.mask_parts(q.shape[0], q.shape[2], keys, q.device)
    what = "softmax" if isinstance(identity.op, Pattern) else "attention"
    shown = _short(allowed.any(1))
    added = "" if bias is None else f", bias {_short(bias)}"
    return (
        f"{what}, {call.heads} heads, scale {call.scale(q.shape[-1]):.9g}, "
        f"mask {shown}{added}"
    )


def _short(tensor: Tensor) -> str:
    return digest([tensor])[:_SHORT]


def _weights(facts: Facts, identity: Identity) -> tuple[str, ...]:
    """Name the parameters of an op; those it shares go by their first name."""
    held = [getattr(identity.op, name, None) for name in ("table", "weight", "bias")]
    names = {id(tensor): name for name, tensor, _ in reversed(facts.weights_at_run)}
    return tuple(names[id(t)] for t in held if t is not None and id(t) in names)
