"""What people make of attention patterns: entropies, weight on a token, rollouts.

Each formula has right ways to compute it, and wrong ones that are composed: a right
formula of a wrong operand, such as the transposed pattern.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812 - as torch's own documentation has it
from torch import Tensor

from recon.auditing.quantities import Quantity
from recon.ops import Linear
from recon.sites import Site
from recon.trace import Trace

# Words, axes and tensor of what a formula makes of a pattern. Axis Q is that of queries
# some of which a mean must leave out.
Made: TypeAlias = Iterator[tuple[str, str, Tensor]]
Formula: TypeAlias = Callable[[Trace, Site, Tensor], Made]


def entropies(trace: Trace, place: Site, pattern: Tensor, unit: str = "") -> Made:
    """Yield the Shannon entropy of each query's weights: ``-sum p log p``, B H T."""
    nats = -torch.special.xlogy(pattern, pattern).sum(-1)
    words = "entropy of each query"
    if unit != "in bits":
        yield f"{words} in nats", "B H T", nats
    if unit != "in nats":
        yield f"{words} in bits", "B H T", nats / torch.tensor(2.0).log()
    if not unit and pattern.shape[-1] > 1:
        most = torch.tensor(float(pattern.shape[-1])).log()
        yield f"{words} over its largest value", "B H T", nats / most


def other_entropies(trace: Trace, place: Site, pattern: Tensor, unit: str) -> Made:
    """Yield entropies in another unit, if given, and with the sign turned."""
    if unit:
        yield from entropies(trace, place, pattern, unit)
    for words, axes, made in entropies(trace, place, pattern):
        yield f"{words}, negative", axes, -made


def to_previous(trace: Trace, place: Site, pattern: Tensor) -> Made:
    """Yield each query's weight on the token before it; query 0 has none.

    The score of previous-token heads (Olsson et al. 2022, In-context Learning and
    Induction Heads).
    """
    words, band = "weight on the previous token", pattern.diagonal(-1, -2, -1)
    yield words, "B H T", band
    yield words, "B H Q", F.pad(band, (1, 0))


def near_previous(trace: Trace, place: Site, pattern: Tensor) -> Made:
    """Yield a mean over all queries, and the weight on other tokens before."""
    _, (_, _, padded) = to_previous(trace, place, pattern)
    words = "weight on the previous token, counted for query 0, too"
    yield words, "B H T", padded
    if pattern.shape[-1] > 2:
        yield "weight on the last token but one", "B H T", pattern.diagonal(-2, -2, -1)


def to_first(trace: Trace, place: Site, pattern: Tensor) -> Made:
    """Yield each query's weight on token 0, the sink of attention.

    Xiao et al. 2023, Efficient Streaming Language Models with Attention Sinks.
    """
    yield "weight on the first token", "B H T", pattern[..., 0]
    yield "weight on the first token, from all others", "B H T", pattern[..., 1:, 0]


def to_second(trace: Trace, place: Site, pattern: Tensor) -> Made:
    """Yield what one index too many gives for the weight on the first token."""
    if pattern.shape[-1] > 1:
        yield "weight on the second token", "B H T", pattern[..., 1]


def to_itself(trace: Trace, place: Site, pattern: Tensor) -> Made:
    """Yield each query's weight on its own token."""
    yield "weight on the token itself", "B H T", pattern.diagonal(0, -2, -1)


def after_a_copy(trace: Trace, place: Site, pattern: Tensor) -> Made:
    """Yield weight on the token after a token's first copy, in a text that repeats.

    The induction score of Olsson et al. 2022. Of a text of n tokens twice, that is the
    diagonal n-1 below the main one.
    """
    if length := _repeated(trace, pattern):
        yield "induction score", "B H T", pattern.diagonal(1 - length, -2, -1)
        second = pattern[..., length:, :].diagonal(1, -2, -1)
        yield "induction score of the second copy", "B H T", second


def near_a_copy(trace: Trace, place: Site, pattern: Tensor) -> Made:
    """Yield weight on the first copy itself, and on the token before it."""
    if length := _repeated(trace, pattern):
        same = pattern.diagonal(-length, -2, -1)
        yield "weight on the first copy of the same token", "B H T", same
        before = pattern.diagonal(-length - 1, -2, -1)
        yield "weight on the token before the first copy", "B H T", before
        whole = pattern.diagonal(1 - length, -2, -1).sum(-1) / pattern.shape[-1]
        yield "induction score, counted for queries that have none", "B H", whole


def _repeated(trace: Trace, pattern: Tensor) -> int:
    """Return how long a text is that stands twice in a pass, else 0; BOS aside."""
    ids = trace.facts.ids.get(Site("wte"))
    if ids is None or ids.ndim != 2 or ids.shape[1] != pattern.shape[-1]:
        return 0
    for text in (ids, ids[:, 1:]):
        half, odd = divmod(text.shape[1], 2)
        if half > 1 and not odd and torch.equal(text[:, :half], text[:, half:]):
            return half
    return 0


def value_weighted(trace: Trace, place: Site, pattern: Tensor) -> Made:
    """Yield weights times how large what they mix is: ``a |v|`` or ``a |v W_O|``.

    Kobayashi et al. 2020, Attention is Not Only a Weight.
    """
    for words, sizes in _sizes(trace, place):
        made = pattern * sizes.unsqueeze(-2)
        yield f"times the norm of {words}", "B H T S", made
        shares = made / made.sum(-1, keepdim=True)
        yield f"times the norm of {words}, in shares", "B H T S", shares


def wrongly_weighted(trace: Trace, place: Site, pattern: Tensor) -> Made:
    """Yield weights times norms of the wrong vectors, or along the wrong axis."""
    for words, sizes in _sizes(trace, place):
        at_query = pattern * sizes.unsqueeze(-1)
        yield f"times the norm of {words} at the query", "B H T S", at_query
        squared = pattern * sizes.square().unsqueeze(-2)
        yield f"times the squared norm of {words}", "B H T S", squared
    for part, word in (("attn.k", "key"), ("attn.q", "query")):
        if _suits(trace, place.at(part), pattern):
            sizes = trace[place.at(part)].norm(dim=-1).unsqueeze(-2)
            yield f"times the norm of each {word}", "B H T S", pattern * sizes


def _sizes(trace: Trace, place: Site) -> Iterator[tuple[str, Tensor]]:
    """Yield the norms (B H S) of values, and of what each head writes of them."""
    value, maker = place.at("attn.v"), trace.facts.makers.get(place.at("attn.out"))
    if not _suits(trace, value, trace[place]):
        return
    yield "each value", trace[value].norm(dim=-1)
    if isinstance(maker, Linear) and maker.weight.dtype == trace[value].dtype:
        weight = maker.weight.detach().unflatten(0, (trace.facts.heads, -1))
        yield "each value's output", (trace[value] @ weight).norm(dim=-1)


def _suits(trace: Trace, place: Site, pattern: Tensor) -> bool:
    return place in trace and trace[place].shape[-2] == pattern.shape[-1]


# -- over all blocks up to one ---------------------------------------------------


def rollouts(trace: Trace, place: Site, pattern: Tensor, *, plain: bool = True) -> Made:
    """Yield ``A_l ... A_1 A_0``, where A is half the mean pattern, half the identity.

    Abnar and Zuidema 2020, Quantifying Attention Flow in Transformers. Without the
    residual (the identity) it is a product of patterns, which some call so, too.
    """
    yield "rollout", "B T S", _product(trace, place, lambda p: p.mean(1))
    most = _product(trace, place, lambda p: p.amax(1))
    yield "rollout of the largest heads", "B T S", most
    if plain:
        yield from bare_rollouts(trace, place, pattern)


def bare_rollouts(trace: Trace, place: Site, pattern: Tensor) -> Made:
    """Yield the product of mean patterns alone."""
    made = _product(trace, place, lambda p: p.mean(1), residual=False)
    yield "rollout without the residual", "B T S", made


def other_rollouts(trace: Trace, place: Site, pattern: Tensor) -> Made:
    """Yield rollouts in the wrong order, of transposed patterns, or begun too late."""
    for residual in (True, False):
        product = partial(_product, trace, place, residual=residual)
        more = "" if residual else " without the residual"
        backwards = product(lambda p: p.mean(1), turned=True)
        yield f"rollout{more}, multiplied in reverse order", "B T S", backwards
        across = product(lambda p: p.mean(1).transpose(-1, -2))
        yield f"rollout{more} of transposed patterns", "B T S", across
        if (place.layer or 0) > 0:
            late = product(lambda p: p.mean(1), start=1)
            yield f"rollout{more}, from block 1 on", "B T S", late


def _product(
    trace: Trace,
    place: Site,
    fuse: Callable[[Tensor], Tensor],
    *,
    residual: bool = True,
    turned: bool = False,
    start: int = 0,
) -> Tensor:
    """Multiply the fused patterns of all blocks up to one, later ones on the left."""
    pattern = trace[place]
    identity = torch.eye(pattern.shape[-1], dtype=pattern.dtype, device=pattern.device)
    result = identity
    for layer in range(start, (place.layer or 0) + 1):
        fused = fuse(trace[Site("attn.pattern", layer)])
        if residual:
            fused = fused + identity
            fused = fused / fused.sum(-1, keepdim=True)
        result = result @ fused if turned else fused @ result
    return result


# -- all of them -----------------------------------------------------------------

# Right and wrong formulas of a pattern, by what a name promises.
FORMULAS: Mapping[str, tuple[Formula, tuple[Formula, ...]]] = {
    "entropy of each query": (entropies, (partial(other_entropies, unit=""),)),
    "entropy of each query in nats": (
        partial(entropies, unit="in nats"), (partial(other_entropies, unit="in bits"),)
    ),
    "entropy of each query in bits": (
        partial(entropies, unit="in bits"), (partial(other_entropies, unit="in nats"),)
    ),
    "weight on the previous token": (to_previous, (near_previous, to_first, to_itself)),
    "weight on the first token": (to_first, (to_second, to_previous, to_itself)),
    "weight on the token itself": (to_itself, (to_previous, to_first)),
    "induction score": (after_a_copy, (near_a_copy, to_previous, to_itself)),
    "times the norm of each value": (value_weighted, (wrongly_weighted,)),
    "rollout": (rollouts, (other_rollouts,)),
    "rollout with the residual": (
        partial(rollouts, plain=False), (bare_rollouts, other_rollouts)
    ),
}  # fmt: skip


def made(trace: Trace, place: Site, form: str) -> Iterator[Quantity]:
    """Yield what the right formula makes of a pattern."""
    if _usable(trace, place):
        yield from _quantities(place, FORMULAS[form][0](trace, place, trace[place]))


def made_wrongly(trace: Trace, place: Site, form: str) -> Iterator[Quantity]:
    """Yield what wrong formulas make of a pattern, and the right one of others."""
    if not _usable(trace, place):
        return
    right, wrong = FORMULAS[form]
    for formula in wrong:
        yield from _quantities(place, formula(trace, place, trace[place]))
    if form.startswith("rollout"):
        return
    usual = [one for _, _, one in right(trace, place, trace[place])]
    for words, other in _operands(trace[place]):
        for one in _quantities(place, right(trace, place, other)):
            # A diagonal, for one, is that of the transposed pattern, too.
            if not any(torch.equal(one.tensor, known) for known in usual):
                yield Quantity(place, one.tensor, one.axes, f"{one.form}, {words}")


def _usable(trace: Trace, place: Site) -> bool:
    """Whether a pattern and all before it are those of queries that are all keys."""
    before = [Site("attn.pattern", n) for n in range((place.layer or 0) + 1)]
    if not all(one in trace for one in before):
        return False
    return all(trace[one].shape[-1] == trace[one].shape[-2] for one in before)


def _operands(pattern: Tensor) -> Iterator[tuple[str, Tensor]]:
    yield "over the queries", pattern.transpose(-1, -2)
    yield "of softmax of the weights", pattern.softmax(-1)
    yield "of softmax over the queries", pattern.softmax(-2)


def _quantities(place: Site, some: Made) -> Iterator[Quantity]:
    for words, axes, tensor in some:
        yield Quantity(place, tensor, tuple(axes.split()), words)
