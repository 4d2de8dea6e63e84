"""What well-known formulas make of sites, computed rightly and wrongly.

The wrong ways are composed of few: another operand (what ln_f was not applied to), an
axis that is not the formula's, the formula twice, another divisor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812 - as torch's own documentation has it
from torch import Tensor

from recon import gpt2
from recon.auditing import pattern_forms
from recon.auditing.forms import apply, divisor, fits, normalized
from recon.auditing.near import apart
from recon.auditing.quantities import Quantity, axes_of
from recon.auditing.quantizing import on_other_scales, within_eight_bits
from recon.auditing.similarity import linear_cka, other_cka
from recon.ops import LayerNorm
from recon.sites import Site
from recon.trace import Trace

Makes: TypeAlias = Callable[[Trace, Site], Iterator[Quantity]]
# Whether a tensor (first) is what a formula makes (second), up to a rounding.
Same: TypeAlias = Callable[[Tensor, Tensor, float], bool]
_SAMPLE = 256
_Named: TypeAlias = Iterator[tuple[str, Tensor]]


def equal(found: Tensor, known: Tensor, allowed: float) -> bool:
    """Whether two tensors differ by no more than rounding."""
    few = max(1, found.numel() // _SAMPLE)
    some = [t.reshape(-1)[::few].double() for t in (found, known)]
    size = float(found.double().square().mean().sqrt())
    # Most of what is compared differs nearly everywhere.
    if float((some[0] - some[1]).abs().max()) > 2 * allowed * max(size, 1e-300):
        return not size and apart(found, known) <= allowed
    return apart(found, known) <= allowed


@dataclass(frozen=True)
class Derivation:
    """A formula: the right ways to compute it of a site, and plausible wrong ones.

    ``parts`` are those it may be of, where a mistaken one is looked for; none: only the
    part that a name promises. ``same`` and ``odd`` compare with the right and the
    wrong.
    """

    right: Makes
    wrong: Makes
    parts: tuple[str, ...] = ()
    same: Same = equal
    odd: Same = equal

    def places(self, trace: Trace, near: Site) -> list[Site]:
        """Return the sites that a formula may be taken of by mistake."""
        parts = self.parts or (near.part,)
        return [place for place in trace.sites if place.part in parts]


# -- predictions -----------------------------------------------------------------


def _scores(trace: Trace, place: Site, *, normed: int = 1) -> Tensor | None:  # B T V
    """Return logits, or those that a lens makes of a state (nostalgebraist 2020)."""
    if place.part == "logits":
        return trace[place] if normed == 1 else None
    op, final = (trace.facts.makers.get(Site(p)) for p in ("logits", "ln_f"))
    x = trace[place]
    if op is None or not isinstance(final, LayerNorm) or not fits(final, [x]):
        return None
    for _ in range(normed):
        x = final(x)
    return apply(op, x).detach() if fits(op, [x]) else None


def _probabilities(trace: Trace, place: Site, *, log: bool) -> Iterator[Quantity]:
    """Yield softmax over the vocabulary, or its logarithm; also of the next token."""
    scores = _scores(trace, place)
    if scores is None:
        return
    made = scores.log_softmax(-1) if log else scores.softmax(-1)
    words = f"as {'log-' * log}probabilities"
    yield Quantity(place, made, ("B", "T", "V"), words)
    ids = trace.facts.ids.get(Site("wte"))
    if ids is not None and ids.shape == made.shape[:2] and ids.shape[1] > 1:
        later = made[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
        yield Quantity(place, later, ("B", "T"), f"{words} of the next token")


def _other_probabilities(trace: Trace, place: Site, *, log: bool) -> Iterator[Quantity]:
    for normed, more in ((1, ""), (0, " without ln_f"), (2, " after ln_f twice")):
        scores = _scores(trace, place, normed=normed)
        if scores is None:
            continue
        for words, made in _soft(scores):
            right = words == f"as {'log-' * log}probabilities"
            if more or not right:
                yield Quantity(place, made, ("B", "T", "V"), words + more)
            ids = trace.facts.ids.get(Site("wte"))
            if right and ids is not None and ids.shape == made.shape[:2]:
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


def _uncertainty(trace: Trace, place: Site) -> Iterator[Quantity]:
    """Yield the Shannon entropy of each prediction, in nats and in bits."""
    scores = _scores(trace, place)
    if scores is not None:
        nats = torch.special.entr(scores.softmax(-1)).sum(-1)
        words = "entropy of the prediction in"
        yield Quantity(place, nats, ("B", "T"), f"{words} nats")
        yield Quantity(
            place, nats / torch.tensor(2.0).log(), ("B", "T"), f"{words} bits"
        )


def _other_uncertainty(trace: Trace, place: Site) -> Iterator[Quantity]:
    scores = _scores(trace, place)
    if scores is not None:
        for words, made in _soft(scores):
            if words in ("as probabilities over the tokens", "after softmax twice"):
                nats = torch.special.entr(made).sum(-1)
                said = f"entropy of the prediction {words}"
                yield Quantity(place, nats, ("B", "T"), said)


# -- LayerNorms ------------------------------------------------------------------


def _entering(trace: Trace, place: Site) -> tuple[Tensor, LayerNorm] | None:
    identity = next((i for i in gpt2.identities(trace) if i.site == place), None)
    if identity is None or not isinstance(identity.op, LayerNorm):
        return None
    (entry,) = identity.inputs
    return (trace[entry], identity.op) if entry in trace else None


def _divisor(trace: Trace, place: Site, *, scale: bool = False) -> Iterator[Quantity]:
    """Yield ``sqrt(var + eps)``; a scale is also what one multiplies by.

    Ba et al. 2016, Layer Normalization.
    """
    if (entry := _entering(trace, place)) is not None:
        usual = divisor(entry[0], entry[1].eps)
        yield Quantity(place, usual, axes_of(place), "divisor")
        if scale:
            yield Quantity(place, 1 / usual, axes_of(place), "divisor, inverted")
            yield Quantity(place, entry[1].weight.detach(), ("D",), "weight")


def _other_divisor(
    trace: Trace, place: Site, *, scale: bool = False
) -> Iterator[Quantity]:
    if (entry := _entering(trace, place)) is None:
        return
    if not scale:
        usual = 1 / divisor(entry[0], entry[1].eps)
        yield Quantity(place, usual, axes_of(place), "divisor, inverted")
    for words, made in _divisors(*entry):
        yield Quantity(place, made, axes_of(place), f"divisor {words}")
        yield Quantity(place, 1 / made, axes_of(place), f"divisor {words}, inverted")


def _deviation(trace: Trace, place: Site) -> Iterator[Quantity]:
    """Yield what may be called the deviation of a LayerNorm's input."""
    yield from _divisor(trace, place, scale=True)
    if (entry := _entering(trace, place)) is not None:
        for words, made in _divisors(*entry):
            if "squared" not in words and "centring" not in words:
                said = f"divisor {words}"
                yield Quantity(place, made, axes_of(place), said)
                yield Quantity(place, 1 / made, axes_of(place), f"{said}, inverted")


def _divisors(x: Tensor, op: LayerNorm) -> _Named:
    """Yield what people divide by instead."""
    eps, wide = op.eps, x.shape[-1] > 1
    below = x.var(-1, keepdim=True, correction=int(wide))
    biased = x.var(-1, keepdim=True, correction=0)
    yield "over n-1", (below + eps).sqrt()
    yield "over n-1 and without eps", below.sqrt()
    yield "over n-1 and with eps outside the root", below.sqrt() + eps
    yield "without eps", biased.sqrt()
    yield "with eps outside the root", biased.sqrt() + eps
    yield "squared", biased + eps
    yield "without centring", (x.square().mean(-1, keepdim=True) + eps).sqrt()


def _normalised(trace: Trace, place: Site, *, plain: bool) -> Iterator[Quantity]:
    """Yield ``(x - mean) / sqrt(var + eps)``, and with weight and bias if not plain."""
    if (entry := _entering(trace, place)) is not None:
        words = "before weight and bias"
        made = normalized(entry[0], entry[1].eps)
        yield Quantity(place, made, axes_of(place), words)
        if not plain:
            yield Quantity(place, trace[place], axes_of(place), "with weight and bias")


def _other_normalised(trace: Trace, place: Site, *, plain: bool) -> Iterator[Quantity]:
    if (entry := _entering(trace, place)) is None:
        return
    x, op = entry
    centred, words = x - x.mean(-1, keepdim=True), "before weight and bias"
    bias = torch.zeros_like(op.weight) if op.bias is None else op.bias
    usual = normalized(x, op.eps)
    made = [
        ("without centring", x / divisor(x, op.eps)),
        ("normalised over tokens and width", F.layer_norm(x, x.shape[1:], eps=op.eps)),
        ("with its weight", usual * op.weight),
        ("with its bias", usual + bias),
        *([("with weight and bias", usual * op.weight + bias)] if plain else []),
        *((f"with a divisor {w}", centred / below) for w, below in _divisors(x, op)),
        ("as RMSNorm has it", F.rms_norm(x, x.shape[-1:], eps=op.eps)),
    ]
    for more, tensor in made:
        yield Quantity(place, tensor.detach(), axes_of(place), f"{words}, {more}")


# -- of any stream ---------------------------------------------------------------


def _less(trace: Trace, place: Site, axes: tuple[int, ...], words: str) -> Quantity:
    x = trace[place]
    made = x - (x.mean(axes, keepdim=True) if axes else x.mean())
    return Quantity(place, made, axes_of(place), f"less its mean over {words}")


_SAMPLES = (((0, 1), "rows and tokens"), ((1,), "the tokens"), ((0,), "the rows"))


def _centred(trace: Trace, place: Site) -> Iterator[Quantity]:
    """Yield a site less its mean over the samples, or over the width."""
    yield from _columns(trace, place)
    yield from _width(trace, place)


def _columns(trace: Trace, place: Site) -> Iterator[Quantity]:
    """Yield a site whose features have mean 0 over the samples.

    As linear CKA and CCA want it (Kornblith et al. 2019, Similarity of Neural Network
    Representations Revisited).
    """
    if trace[place].ndim == 3:
        for axes, words in _SAMPLES:
            yield _less(trace, place, axes, words)


def _width(trace: Trace, place: Site) -> Iterator[Quantity]:
    if trace[place].ndim == 3:
        yield _less(trace, place, (-1,), "the width")


def _not_columns(trace: Trace, place: Site) -> Iterator[Quantity]:
    yield from _width(trace, place)
    if trace[place].ndim == 3:
        yield _less(trace, place, (), "everything")


def _none(trace: Trace, place: Site) -> Iterator[Quantity]:
    yield from ()


def _as_it_is(trace: Trace, place: Site, *, words: str) -> Iterator[Quantity]:
    yield Quantity(place, trace[place], axes_of(place), words)


# -- all of them -----------------------------------------------------------------

_STATES = ("embed", "resid_post", "logits")
_NORMS = ("ln_1", "ln_2", "ln_f")
DERIVATIONS: Mapping[str, Derivation] = {
    **{
        form: Derivation(
            partial(pattern_forms.made, form=form),
            partial(pattern_forms.made_wrongly, form=form),
            ("attn.pattern",),
        )
        for form in pattern_forms.FORMULAS
    },
    "as probabilities": Derivation(
        partial(_probabilities, log=False),
        partial(_other_probabilities, log=False),
        _STATES,
    ),
    "as log-probabilities": Derivation(
        partial(_probabilities, log=True),
        partial(_other_probabilities, log=True),
        _STATES,
    ),
    "entropy of the prediction": Derivation(_uncertainty, _other_uncertainty, _STATES),
    "divisor of the LayerNorm": Derivation(_divisor, _other_divisor, _NORMS),
    "scale of the LayerNorm": Derivation(
        partial(_divisor, scale=True), partial(_other_divisor, scale=True), _NORMS
    ),
    "deviation of what enters": Derivation(_deviation, _none, _NORMS),
    "normalised": Derivation(
        partial(_normalised, plain=False),
        partial(_other_normalised, plain=False),
        _NORMS,
    ),
    "normalised before weight and bias": Derivation(
        partial(_normalised, plain=True), partial(_other_normalised, plain=True), _NORMS
    ),
    "centred": Derivation(_centred, _none),
    "centred over the samples": Derivation(_columns, _not_columns),
    "linear CKA of all states": Derivation(linear_cka, other_cka),
    "after quantisation": Derivation(
        partial(_as_it_is, words="rounded to 8 bits"),
        partial(_as_it_is, words="with features on another scale or offset"),
        same=within_eight_bits,
        odd=on_other_scales,
    ),
}
