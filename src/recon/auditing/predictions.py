"""What people make of predictions: probabilities, entropies, losses, attributions.

Of the logits, or of those that a lens makes of a state (nostalgebraist 2020,
interpreting GPT): ln_f and the unembedding, applied to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812 - as torch's own documentation has it
from torch import Tensor

from recon.auditing.forms import apply, divisor, fits
from recon.auditing.quantities import Quantity
from recon.ops import LayerNorm, Unembed
from recon.sites import Site
from recon.trace import Trace

_Named: TypeAlias = Iterator[tuple[str, Tensor]]


def _scores(trace: Trace, place: Site, *, normed: int = 1) -> Tensor | None:  # B T V
    """Return logits, or those that a lens makes of a state."""
    if place.part == "logits":
        return trace[place] if normed == 1 else None
    op, final = (trace.facts.makers.get(Site(p)) for p in ("logits", "ln_f"))
    x = trace[place]
    if op is None or not isinstance(final, LayerNorm) or not fits(final, [x]):
        return None
    for _ in range(normed):
        x = final(x)
    return apply(op, x).detach() if fits(op, [x]) else None


def probabilities(trace: Trace, place: Site, *, log: bool) -> Iterator[Quantity]:
    """Yield softmax over the vocabulary, or its logarithm; also of the next token."""
    scores = _scores(trace, place)
    if scores is None:
        return
    made = scores.log_softmax(-1) if log else scores.softmax(-1)
    words = f"as {'log-' * log}probabilities"
    yield Quantity(place, made, ("B", "T", "V"), words)
    ids = _read(trace, made)
    if ids is not None and ids.shape[1] > 1:
        later = made[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
        yield Quantity(place, later, ("B", "T"), f"{words} of the next token")


def other_probabilities(trace: Trace, place: Site, *, log: bool) -> Iterator[Quantity]:
    """Yield softmax along other axes, twice, without ln_f, and of the token read."""
    for normed, more in ((1, ""), (0, " without ln_f"), (2, " after ln_f twice")):
        scores = _scores(trace, place, normed=normed)
        if scores is None:
            continue
        for words, made in _soft(scores):
            right = words == f"as {'log-' * log}probabilities"
            if more or not right:
                yield Quantity(place, made, ("B", "T", "V"), words + more)
            ids = _read(trace, made)
            if right and ids is not None:
                own = made.gather(-1, ids[..., None])[..., 0]
                said = f"{words}{more} of the token that is read"
                yield Quantity(place, own, ("B", "T"), said)
                yield Quantity(place, own[:, 1:], ("B", "T"), said)


def _soft(scores: Tensor) -> _Named:
    for axis, over in ((-1, ""), (-2, " over the tokens"), (0, " over the rows")):
        soft = scores.softmax(axis)
        yield f"as probabilities{over}", soft
        yield f"as log-probabilities{over}", scores.log_softmax(axis)
        if not over:
            yield "after softmax twice", soft.softmax(-1)
            yield "after softmax and log-softmax", soft.log_softmax(-1)
    yield "as logits", scores


def uncertainty(trace: Trace, place: Site) -> Iterator[Quantity]:
    """Yield the Shannon entropy of each prediction, in nats and in bits."""
    scores = _scores(trace, place)
    if scores is not None:
        nats = torch.special.entr(scores.softmax(-1)).sum(-1)
        words = "entropy of the prediction in"
        yield Quantity(place, nats, ("B", "T"), f"{words} nats")
        yield Quantity(
            place, nats / torch.tensor(2.0).log(), ("B", "T"), f"{words} bits"
        )


def other_uncertainty(trace: Trace, place: Site) -> Iterator[Quantity]:
    """Yield entropies of what is no distribution over the vocabulary."""
    scores = _scores(trace, place)
    if scores is not None:
        for words, made in _soft(scores):
            if words in ("as probabilities over the tokens", "after softmax twice"):
                nats = torch.special.entr(made).sum(-1)
                said = f"entropy of the prediction {words}"
                yield Quantity(place, nats, ("B", "T"), said)


def _read(trace: Trace, scores: Tensor) -> Tensor | None:  # B T
    """Return the tokens that a pass read, if there are predictions for each."""
    ids = trace.facts.ids.get(Site("wte"))
    return ids if ids is not None and ids.shape == scores.shape[:2] else None


def losses(trace: Trace, place: Site) -> Iterator[Quantity]:
    """Yield ``-log p`` of each next token, in nats and in bits; the last has none."""
    scores = _scores(trace, place)
    ids = None if scores is None else _read(trace, scores)
    if scores is None or ids is None or ids.shape[1] < 2:
        return
    nats = _picked(-scores[:, :-1].log_softmax(-1), ids[:, 1:])
    for unit, made in (("nats", nats), ("bits", nats / torch.tensor(2.0).log())):
        words = f"as loss of the next token in {unit}"
        yield Quantity(place, made, ("B", "T"), words)
        for side, pad in (("first", (1, 0)), ("last", (0, 1))):
            said = f"{words}, 0 for the {side} token"
            yield Quantity(place, F.pad(made, pad), ("B", "Q"), said)


def other_losses(trace: Trace, place: Site) -> Iterator[Quantity]:
    """Yield losses of other tokens, of mixed axes, and with the sign turned."""
    scores = _scores(trace, place)
    ids = None if scores is None else _read(trace, scores)
    if scores is None or ids is None or ids.shape[1] < 2:
        return
    log = scores.log_softmax(-1)
    own = _picked(-log, ids)
    mixed = scores[:, :-1].reshape(len(ids), -1, ids.shape[1] - 1)
    for words, made in (
        ("of the token that is read", own),
        ("of the token that is read", own[:, 1:]),
        ("of the token before", _picked(-log[:, 1:], ids[:, :-1])),
        ("of the next token, negative", _picked(log[:, :-1], ids[:, 1:])),
        (
            "of the next token, with the vocabulary viewed as tokens",
            F.cross_entropy(mixed, ids[:, 1:], reduction="none"),
        ),
    ):
        yield Quantity(place, made, ("B", "T"), f"as loss {words}")


def _picked(values: Tensor, tokens: Tensor) -> Tensor:
    """Return of B T V the value of one token each, B T."""
    return values.gather(-1, tokens[..., None])[..., 0]


def divergences(trace: Trace, place: Site) -> Iterator[Quantity]:
    """Yield the Kullback-Leibler divergence of a lens and the prediction, both ways."""
    lens, final = _scores(trace, place), trace.get(Site("logits"))
    if lens is None or final is None or lens.shape != final.shape:
        return
    ours, theirs = lens.log_softmax(-1), final.log_softmax(-1)
    for words, one, other in (
        ("from the prediction", theirs, ours),
        ("of the prediction", ours, theirs),
    ):
        nats = _divergence(one, other)
        yield Quantity(place, nats, ("B", "T"), f"as divergence {words} in nats")
        bits = nats / torch.tensor(2.0).log()
        yield Quantity(place, bits, ("B", "T"), f"as divergence {words} in bits")


def other_divergences(trace: Trace, place: Site) -> Iterator[Quantity]:
    """Yield what mistaken logarithms, a missing entropy, or no ln_f make of it."""
    lens, final = _scores(trace, place), trace.get(Site("logits"))
    if lens is None or final is None or lens.shape != final.shape:
        return
    both = ((lens, final, "from"), (final, lens, "of"))
    for one, other, word in both:
        target = other.softmax(-1)
        words = f"as divergence {word} the prediction"
        plain = F.kl_div(one.softmax(-1), target, reduction="none").sum(-1)
        yield Quantity(place, plain, ("B", "T"), f"{words}, of p for log p")
        crossed = -(target * one.log_softmax(-1)).sum(-1)
        yield Quantity(place, crossed, ("B", "T"), f"{words}, as cross-entropy")
    if (bare := _scores(trace, place, normed=0)) is not None:
        ours, theirs = bare.log_softmax(-1), final.log_softmax(-1)
        for one, other in ((theirs, ours), (ours, theirs)):
            made = _divergence(one, other)
            yield Quantity(place, made, ("B", "T"), "as divergence without ln_f")


def _divergence(one: Tensor, other: Tensor) -> Tensor:
    """Return ``sum p (log p - log q)`` of log-probabilities, B T."""
    return (one.exp() * (one - other)).sum(-1)


# -- what a part of the stream adds to a logit ------------------------------------


def attributions(trace: Trace, place: Site) -> Iterator[Quantity]:
    """Yield what a part adds to logits: by ln_f's own divisor, for the whole stream.

    Elhage et al. 2021, A Mathematical Framework for Transformer Circuits. Of the token
    that is predicted, and of the one that comes next; with or without the mean, which
    ln_f takes from every part.
    """
    held = _final(trace, place)
    if held is None:
        return
    x, last, norm, unembed = held
    below = divisor(last, norm.eps)
    for words, part in (("", x - x.mean(-1, keepdim=True)), (", not centred", x)):
        yield from _along(trace, place, part / below * norm.weight, unembed, words)


def other_attributions(trace: Trace, place: Site) -> Iterator[Quantity]:
    """Yield what ln_f of a part alone gives, which divides by that part's own size."""
    held = _final(trace, place)
    if held is None or torch.equal(held[0], held[1]):
        return
    x, _, norm, unembed = held
    alone = F.layer_norm(x, x.shape[-1:], norm.weight, None, norm.eps)
    words = ", divided by its own deviation"
    yield from _along(trace, place, alone, unembed, words)
    if norm.bias is not None:
        words = f"{words}, with the bias of ln_f"
        yield from _along(trace, place, alone + norm.bias, unembed, words)


def _final(
    trace: Trace, place: Site
) -> tuple[Tensor, Tensor, LayerNorm, Unembed] | None:
    """Return a part of the stream, the whole stream at its end, ln_f and what follows.

    None for what is no part of it, or has another shape.
    """
    norm, op = (trace.facts.makers.get(Site(p)) for p in ("ln_f", "logits"))
    last = trace.get(Site("resid_post", trace.facts.depth - 1))
    if not isinstance(norm, LayerNorm) or not isinstance(op, Unembed):
        return None
    if last is None or place not in trace or Site("logits") not in trace:
        return None
    x = trace[place]
    if x.shape != last.shape or x.shape[:2] != trace[Site("logits")].shape[:2]:
        return None
    return x, last, norm, op


def _along(
    trace: Trace, place: Site, part: Tensor, op: Unembed, words: str
) -> Iterator[Quantity]:
    """Yield the products with the unembeddings of predicted and of next tokens."""
    best = trace[Site("logits")].argmax(-1)
    ids = _read(trace, part)
    rows = op.weight.detach()
    for kind, parts, tokens in (
        ("predicted", part, best),
        ("next", part[:, :-1], None if ids is None else ids[:, 1:]),
    ):
        if tokens is not None:
            made = (parts.detach() * rows[tokens]).sum(-1)
            said = f"as its share of the {kind} token's logit{words}"
            yield Quantity(place, made, ("B", "T"), said)
