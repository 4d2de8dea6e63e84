"""Is what is named as edited, or as clean, of a pass with or without the edit?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

from torch import Tensor

from recon.auditing.calls import Call
from recon.auditing.handed import other_inputs
from recon.auditing.identify import Catalogue
from recon.auditing.judgement import Judgement
from recon.auditing.passes import alike
from recon.auditing.wording import words_of
from recon.sites import Site
from recon.trace import Trace

_EDITED = frozenset(
    {"ablated", "ablate", "knockout", "zeroed", "steered", "corrupted", "corrupt",
     "noised", "noisy", "perturbed", "intervened", "edited", "modified", "suppressed"}
)  # fmt: skip
_CLEAN = frozenset(
    {"clean", "original", "baseline", "unedited", "unsteered", "unablated", "unpatched"}
)


def held_to(call: Call, judged: Sequence[Judgement]) -> list[Judgement]:
    """Return judgements in which a name that breaks such a promise is wrong.

    Before the place of an edit both are the same: only if all tensors that promise an
    edit are what the model computes without it does the edit do nothing.
    """
    if call.clean is None or call.situation.train or not call.passes:
        return list(judged)
    named = {one.name: frozenset(words_of(one.name)) for one in judged}
    edited = {n for n, words in named.items() if words & _EDITED and not words & _CLEAN}
    clean = {n for n, words in named.items() if words & _CLEAN and not words & _EDITED}
    alone = _Alone(call, call.clean)
    idle = all(alone.exactly(one.tensor) for one in judged if one.name in edited)
    said = []
    for one in judged:
        if one.name in edited and idle:
            one = _broken(one, "an edit, and is what the model computes without one")
        elif one.name in clean and not alone.possibly(one.tensor):
            one = _broken(one, "no edit, and is not what the model computes by itself")
        said.append(one)
    return said


def _broken(one: Judgement, words: str) -> Judgement:
    if one.rule:
        return one
    said = f"`{one.name}` promises {words}"
    return replace(one, rule="wrong-edit", sentence=said, cause=words)


class _Alone:
    """What the model computes on the inputs of a call by itself, to compare with."""

    def __init__(self, call: Call, clean: Trace) -> None:
        self._call, self._clean = call, clean

    @cached_property
    def _catalogues(self) -> list[tuple[Trace, Catalogue]]:
        traces = (self._clean, *self._call.passes)
        return [(trace, Catalogue([("", trace)])) for trace in traces]

    def exactly(self, tensor: Tensor) -> bool:
        """Whether a tensor is of the model's own pass, bit for bit."""
        return _place(self._catalogues[0][1], tensor) is not None

    def possibly(self, tensor: Tensor) -> bool:
        """Whether no pass that computed something else is known to hold a tensor."""
        for trace, catalogue in self._catalogues:
            if (place := _place(catalogue, tensor)) is not None:
                return self._agrees(trace, place)
        return True

    def _agrees(self, trace: Trace, place: Site) -> bool:
        """Compare up to rounding: a pass without a cache, say, has other bits."""
        if trace is self._clean:
            return True
        known, made = self._clean.get(place), trace[place]
        if known is None or known.shape != made.shape:
            return not other_inputs(trace, self._call)
        return alike(made, known)


def _place(catalogue: Catalogue, tensor: Tensor) -> Site | None:
    """Return the site that a tensor is, or is a piece of, each row taken once."""
    found = catalogue.exact(tensor, lambda one: not one.form)
    if found is None or len(set(found.taken)) < len(found.taken):
        return None
    return found.quantity.site
