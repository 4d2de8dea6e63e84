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
from recon.auditing import pattern_forms, predictions
from recon.auditing.forms import divisor, normalized
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


# -- LayerNorms ------------------------------------------------------------------


def _entering(trace: Trace, place: Site) -> tuple[Tensor, LayerNorm] | None:
    identity = gpt2.identity_of(trace, place)
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


def _unit(trace: Trace, place: Site) -> Iterator[Quantity]:
    """Yield a site divided by its Euclidean norm, or that of each head."""
    made = F.normalize(trace[place], dim=-1)
    yield Quantity(place, made, axes_of(place), "divided by its norm")


def _other_unit(trace: Trace, place: Site) -> Iterator[Quantity]:
    x = trace[place]
    if x.ndim != 3:
        return
    for words, size in (
        ("over the tokens", x.norm(dim=1, keepdim=True)),
        ("over the rows", x.norm(dim=0, keepdim=True)),
        ("over everything", x.norm()),
        ("squared", x.square().sum(-1, keepdim=True)),
        ("as a sum of sizes", x.abs().sum(-1, keepdim=True)),
        ("as its largest value", x.abs().amax(-1, keepdim=True)),
    ):
        yield Quantity(place, x / size, axes_of(place), f"divided by its norm {words}")


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
        partial(predictions.probabilities, log=False),
        partial(predictions.other_probabilities, log=False),
        _STATES,
    ),
    "as log-probabilities": Derivation(
        partial(predictions.probabilities, log=True),
        partial(predictions.other_probabilities, log=True),
        _STATES,
    ),
    "entropy of the prediction": Derivation(
        predictions.uncertainty, predictions.other_uncertainty, _STATES
    ),
    "as loss of the next token": Derivation(
        predictions.losses, predictions.other_losses, _STATES
    ),
    "as divergence from the prediction": Derivation(
        predictions.divergences, predictions.other_divergences, ("resid_post",)
    ),
    "as its share of a logit": Derivation(
        predictions.attributions, predictions.other_attributions
    ),
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
    "at unit length": Derivation(_unit, _other_unit),
    "linear CKA of all states": Derivation(linear_cka, other_cka),
    "after quantisation": Derivation(
        partial(_as_it_is, words="rounded to 8 bits"),
        partial(_as_it_is, words="with features on another scale or offset"),
        same=within_eight_bits,
        odd=on_other_scales,
    ),
}
