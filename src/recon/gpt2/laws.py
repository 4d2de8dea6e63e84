"""The identities of a GPT-2: which captured sites predict which."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from recon.facts import Identity
from recon.ops import Add, Attention, Fused, Given, Mix, Pattern, Same, Slice
from recon.sites import Site
from recon.trace import Trace, sources


def identities(trace: Trace) -> Iterator[Identity]:
    """Yield the local laws of one pass, shallowest first."""
    for stage in range(-1, trace.facts.depth + 1):
        yield from stage_identities(trace, stage)


def identity_of(trace: Trace, place: Site) -> Identity | None:
    """Return the law that predicts a site; None if none does."""
    return next((one for one in identities(trace) if one.site == place), None)


def stage_identities(trace: Trace, stage: int) -> Iterator[Identity]:
    """Yield the laws of the embeddings (-1), of one block, or of the head (depth)."""
    if stage < 0:
        yield from _stem(trace)
    elif stage < trace.facts.depth:
        yield from _block(trace, stage)
    else:
        yield from _head(trace)


def _head(trace: Trace) -> Iterator[Identity]:
    last = Site.of("resid_post", trace.facts.depth - 1)
    yield from _made(trace, "ln_f", Site.of("ln_f"), last)
    yield from _made(trace, "logits", Site.of("logits"), Site.of("ln_f"))


def _made(trace: Trace, name: str, place: Site, *inputs: Site) -> Iterator[Identity]:
    maker = trace.facts.makers.get(place)
    if maker is not None:
        yield Identity(name, place, maker, inputs)


def _stem(trace: Trace) -> Iterator[Identity]:
    makers = trace.facts.makers
    embedded = [Site.of("wte"), Site.of("wpe")]
    if Site.of("wte") not in trace.facts.given:
        yield from _made(trace, "wte", Site.of("wte"))
    yield from _made(trace, "wpe", Site.of("wpe"))
    if Site.of("token_type") in makers:
        embedded.append(Site.of("token_type"))
        yield Identity("token_type", embedded[-1], makers[embedded[-1]])
    yield Identity(
        "embed",
        Site.of("embed"),
        Add(),
        tuple(embedded),
        dropout=trace.facts.dropout[Site("embed")],
    )


def _block(trace: Trace, layer: int) -> Iterator[Identity]:
    def at(part: str) -> Site:
        return Site.of(part, layer)

    before = Site.of("resid_post", layer - 1) if layer else Site.of("embed")
    yield Identity("chain", at("resid_pre"), Same(), (before,))
    yield from _made(trace, "ln_1", at("ln_1"), at("resid_pre"))
    yield from _made(trace, "qkv", at("attn.qkv"), at("ln_1"))
    yield from _attend(trace, layer, "attn")
    stream = at("resid_pre")
    if at("cross_out") in trace.facts.attention:
        yield Identity(
            "resid_cross", at("cross.resid_pre"), Add(), (at("attn_out"), stream)
        )
        stream = at("cross.resid_pre")
        yield from _made(trace, "cross_ln", at("cross.ln"), stream)
        yield from _made(trace, "cross_q", at("cross.q"), at("cross.ln"))
        yield from _encoder(trace, at("cross.kv"))
        yield from _attend(trace, layer, "cross")
        yield Identity("resid_mid", at("resid_mid"), Add(), (stream, at("cross_out")))
    else:
        yield Identity("resid_mid", at("resid_mid"), Add(), (at("attn_out"), stream))
    yield from _made(trace, "ln_2", at("ln_2"), at("resid_mid"))
    yield from _made(trace, "mlp_pre", at("mlp.pre"), at("ln_2"))
    yield from _made(trace, "mlp_post", at("mlp.post"), at("mlp.pre"))
    yield from _made(trace, "mlp_out", at("mlp.out"), at("mlp.post"))
    yield Identity(
        "mlp_out",
        at("mlp_out"),
        Same(),
        (at("mlp.out"),),
        dropout=trace.facts.dropout[at("mlp_out")],
    )
    yield Identity(
        "resid_post", at("resid_post"), Add(), (at("resid_mid"), at("mlp_out"))
    )


def _attend(trace: Trace, layer: int, kind: str) -> Iterator[Identity]:
    """Yield the laws from q, k, v to the update, for self- or cross-attention."""

    def at(part: str) -> Site:
        return Site.of(f"{kind}.{part}", layer)

    update, name = Site.of(f"{kind}_out", layer), "" if kind == "attn" else "cross_"
    call = trace.facts.attention.get(update)
    if call is None:
        # The attention never ran: its update is missing, and is told so.
        yield from _made(trace, f"{kind}_out", at("out"), at("z"))
        return
    yield from _pieces(trace, layer, kind)
    q, k, v = at("q"), at("k"), at("v")
    extra: tuple[Tensor, ...] = ()
    keys: tuple[Site, ...] = (k,)
    values: tuple[Site, ...] = (v,)
    if call.keys is not None and call.values is not None:
        yield from _cached(call, trace, k, v, f"{name}cache")
        keys, values, extra = (), (), (call.keys, call.values)
    if call.kernel == "sdpa":
        yield Identity(f"{name}z", at("z"), Fused(call), (q, *keys, *values), extra)
    else:
        yield Identity(
            f"{name}pattern",
            at("pattern"),
            Pattern(call),
            (q, *keys),
            extra[:1],
            dropout=call.dropout,
        )
        yield Identity(
            f"{name}z", at("z"), Mix(call), (at("pattern"), *values), extra[1:]
        )
    yield from _made(trace, f"{kind}_out", at("out"), at("z"))
    yield Identity(
        f"{kind}_out", update, Same(), (at("out"),), dropout=trace.facts.dropout[update]
    )


def _pieces(trace: Trace, layer: int, kind: str) -> Iterator[Identity]:
    """Yield ``split`` for the q, k, v that a trace holds of its own, not as views."""
    whole, parts = ("attn.qkv", "qkv") if kind == "attn" else ("cross.kv", "kv")
    for piece, part in enumerate(parts):
        place = Site.of(f"{kind}.{part}", layer)
        if trace.origin(place) == "captured":
            op = Slice(piece, len(parts), trace.facts.heads)
            yield Identity("split", place, op, (Site.of(whole, layer),))


def _cached(
    call: Attention, trace: Trace, k: Site, v: Site, name: str
) -> Iterator[Identity]:
    """Yield the law that the cache's entries of this step are k and v."""
    for place, cached in ((k, call.keys), (v, call.values)):
        if cached is not None and trace.origin(place) is not None:
            (whole,) = sources(place)
            held = trace.tensors.get(whole)
            rows = trace[place].shape[2] if held is None else held.shape[1]
            yield Identity(
                name, place, Given(cached[:, :, call.past : call.past + rows])
            )


def _encoder(trace: Trace, place: Site) -> Iterator[Identity]:
    """Yield the law of the encoder's keys and values, where this pass made them."""
    states, maker = trace.facts.encoder.get(place), trace.facts.makers.get(place)
    if states is not None and maker is not None:
        yield Identity("cross_kv", place, maker, (), (states,))
