"""Rebuild the residual stream from embeddings and updates: level ``ledger``.

Pure functions of a trace. They never read a block's output: a captured tensor compared
with itself proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import index
from typing import Literal, SupportsIndex, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from recon.errors import UsageError
from recon.ops import LayerNorm, Linear, kept, merge_heads
from recon.sites import Site, site
from recon.trace import Trace, require_numbers

Granularity: TypeAlias = Literal["update", "head", "neuron"]
Hidden: TypeAlias = Float[Tensor, "batch seq width"]
Component: TypeAlias = tuple[str, Tensor]

_NEURONS_AT_ONCE = 256


def reconstruct(
    trace: Trace, *, granularity: Granularity = "update"
) -> tuple[Hidden, ...]:
    """Return what ``output_hidden_states`` must be: L+1 tensors, B T D each.

    Adds embeddings and updates in the model's own order, so with whole updates every
    bit agrees; the last entry went through the final LayerNorm unless the config
    unties it. ``head`` rebuilds each attention update from its heads, ``neuron`` each
    MLP update from its neurons: other orders of summation, equal up to rounding.

    Raises CaptureError (a KeyError too) if the trace lacks an update.
    """
    require_whole(trace)
    with torch.no_grad(), trace.arithmetic():
        states = list(_residual_stream(trace, granularity))
        if trace.facts.tied_last:
            states[-1] = final_norm(trace)(states[-1])
    return tuple(states)


def decompose(
    trace: Trace,
    state: SupportsIndex | str | Site,
    *,
    granularity: Granularity = "update",
) -> dict[str, Tensor]:
    """Return the named terms, B T D each, whose sum is a residual state.

    ``state`` is an index into the hidden states, 0 to L, before any final LayerNorm,
    or a site of the stream such as ``h.3.resid_mid``. With ``head`` each attention
    update is split into ``h.l.attn.head.i`` and ``h.l.attn.bias``; with ``neuron`` each
    MLP update into groups ``h.l.mlp.neurons.a-b`` and ``h.l.mlp.bias``.

    Raises UsageError for a state that does not exist.
    """
    require_whole(trace)
    stop = _as_stream_site(trace, state)
    terms: dict[str, Tensor] = {}
    with torch.no_grad(), trace.arithmetic():
        for place, update in _terms(trace):
            if stop < place:
                break
            terms |= dict(_split(trace, place, update, granularity))
    return terms


def require_whole(trace: Trace) -> None:
    """Raise UsageError for a trace that no run of the model can be rebuilt from."""
    if not trace.complete:
        raise UsageError(
            f"run {trace.run} did not finish ({trace.failure}): its trace is "
            "incomplete and cannot be verified; run the model again"
        )
    if trace.altered:
        raise UsageError(
            f"the trace was captured with {trace.altered}: it no longer holds what the "
            "model computed; capture without it to verify"
        )
    require_numbers(trace)


def _residual_stream(trace: Trace, granularity: Granularity) -> Iterator[Hidden]:
    """Yield the stream as it enters block 0, then as it leaves each block.

    Adds in the model's order: float addition is not associative, so summing the
    updates first would agree only up to rounding.
    """
    stream: Tensor | None = None
    layer = None
    for place, update in _terms(trace):
        if place.layer != layer and stream is not None:
            yield stream
        layer = place.layer
        update = _rebuilt(trace, place, update, granularity)
        stream = update if stream is None else stream + update
    if stream is None:
        raise UsageError("the trace holds no embeddings")
    yield stream


def _terms(trace: Trace) -> Iterator[tuple[Site, Tensor]]:
    """Yield the embeddings, then each block's updates, in the order of the sums."""
    yield from embeddings(trace)
    for layer in range(trace.facts.depth):
        yield from updates(trace, layer)


def embeddings(trace: Trace) -> Iterator[tuple[Site, Tensor]]:
    """Yield what the stream starts from, in the order of the sum."""
    if trace.facts.dropout[Site("embed")]:
        # Dropout came between: only what it let through can be added up.
        yield Site("embed"), trace["embed"]
    else:
        for place in (Site("wte"), Site("wpe"), Site("token_type")):
            if place.part != "token_type" or place in trace.facts.makers:
                yield place, trace[place]


def updates(trace: Trace, layer: int) -> Iterator[tuple[Site, Tensor]]:
    """Yield what one block adds to the stream, in the model's order."""
    yield Site("attn_out", layer), trace[Site("attn_out", layer)]
    if Site("cross_out", layer) in trace.facts.attention:
        yield Site("cross_out", layer), trace[Site("cross_out", layer)]
    yield Site("mlp_out", layer), trace[Site("mlp_out", layer)]


def final_norm(trace: Trace) -> LayerNorm:
    """Return the LayerNorm that the last state goes through if it is tied."""
    norm = trace.facts.makers[Site("ln_f")]
    assert isinstance(norm, LayerNorm)
    return norm


def _as_stream_site(trace: Trace, state: SupportsIndex | str | Site) -> Site:
    """Return the first site that already contains everything in the state."""
    depth = trace.facts.depth
    if not isinstance(state, str | Site):
        number = _as_number(state)
        if not 0 <= number <= depth:
            raise UsageError(f"state {number}: this model has states 0 to {depth}")
        last = number == depth
        return Site("resid_post", depth - 1) if last else Site("resid_pre", number)
    place = site(state)
    if not (
        place.part.endswith(("resid_pre", "resid_post"))
        or place.part
        in (
            "resid_mid",
            "embed",
        )
    ):
        raise UsageError(
            f"{place} is no state of the residual stream, such as h.0.resid_mid"
        )
    if place.layer is not None and place.layer >= depth:
        raise UsageError(f"{place}: this model has blocks 0 to {depth - 1}")
    return place


def _as_number(state: SupportsIndex) -> int:
    try:
        return index(state)
    except TypeError:
        raise UsageError(
            f"state {state!r}: expected a number, or a site such as h.0.resid_mid"
        ) from None


# -- finer than one update -----------------------------------------------------


def _rebuilt(
    trace: Trace, place: Site, update: Tensor, granularity: Granularity
) -> Tensor:
    finer = _finer(place, granularity)
    if finer is None:
        return update
    total: Tensor | None = None
    for _, term in finer(trace, place):
        total = term if total is None else total + term
    assert total is not None
    return _through_dropout(trace, place, total, update)


def _split(
    trace: Trace, place: Site, update: Tensor, granularity: Granularity
) -> Iterator[Component]:
    finer = _finer(place, granularity)
    if finer is None:
        yield str(place), update
        return
    for name, term in finer(trace, place):
        yield name, _through_dropout(trace, place, term, update)


def _finer(
    place: Site, granularity: Granularity
) -> Callable[[Trace, Site], Iterator[Component]] | None:
    if granularity not in ("update", "head", "neuron"):
        raise UsageError(
            f"granularity={granularity!r}: expected update, head or neuron"
        )
    if granularity == "head" and place.part in ("attn_out", "cross_out"):
        return _by_head
    if granularity == "neuron" and place.part == "mlp_out":
        return _by_neuron
    return None


def _by_head(trace: Trace, place: Site) -> Iterator[Component]:
    """Yield ``z_h W_O[h]`` for each head, then the bias."""
    kind = place.part.removesuffix("_out")
    out = _linear(trace, place.at(f"{kind}.out"))
    z = trace[place.at(f"{kind}.z")]
    width = z.shape[-1]
    for head in range(z.shape[1]):
        rows = out.weight[head * width : (head + 1) * width]
        yield f"h.{place.layer}.{kind}.head.{head}", z[:, head] @ rows
    yield f"h.{place.layer}.{kind}.bias", _constant(out.bias, merge_heads(z))


def _by_neuron(trace: Trace, place: Site) -> Iterator[Component]:
    """Yield ``post[m] W_O[m]`` summed over groups of neurons, then the bias.

    A group at a time: B T M D numbers are never held at once.
    """
    out = _linear(trace, place.at("mlp.out"))
    post = trace[place.at("mlp.post")]
    for start in range(0, post.shape[-1], _NEURONS_AT_ONCE):
        stop = min(start + _NEURONS_AT_ONCE, post.shape[-1])
        term = post[..., start:stop] @ out.weight[start:stop]
        yield f"h.{place.layer}.mlp.neurons.{start}-{stop - 1}", term
    yield f"h.{place.layer}.mlp.bias", _constant(out.bias, post)


def _linear(trace: Trace, place: Site) -> Linear:
    maker = trace.facts.makers[place]
    assert isinstance(maker, Linear)
    return maker


def _constant(bias: Tensor, like: Tensor) -> Tensor:
    return bias.detach().expand(*like.shape[:2], -1)


def _through_dropout(trace: Trace, place: Site, term: Tensor, update: Tensor) -> Tensor:
    """Apply the dropout that the update went through, read off its zeros."""
    p = trace.facts.dropout[place]
    return (
        torch.where(update == 0, torch.zeros_like(term), kept(term, p)) if p else term
    )
