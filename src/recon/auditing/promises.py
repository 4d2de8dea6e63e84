"""Is what is named as edited, or as clean, of a pass with or without the edit?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from recon.auditing.calls import Call
from recon.auditing.claims import words_of
from recon.auditing.identify import Catalogue
from recon.auditing.judgement import Judgement
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
    promising = [one for one in judged if one.name in edited]
    idle = all(_of(call.clean, one.tensor) for one in promising)
    return [
        _broken(one, "an edit, and is what the model computes without one")
        if one.name in edited and idle
        else _broken(one, "no edit, and the model by itself computes something else")
        if one.name in clean and not _clean(call, one.tensor)
        else one
        for one in judged
    ]


def _broken(one: Judgement, words: str) -> Judgement:
    if one.rule:
        return one
    said = f"`{one.name}` promises {words}"
    return replace(one, rule="wrong-edit", sentence=said, cause=words)


def _of(trace: Trace, tensor: Tensor) -> bool:
    """Whether a tensor is, bit for bit, something of a pass, each row once."""
    found = Catalogue([("", trace)]).exact(tensor, lambda one: not one.form)
    return found is not None and len(set(found.taken)) == len(found.taken)


def _clean(call: Call, tensor: Tensor) -> bool:
    """Whether a tensor may be clean: no pass but the clean one is known to hold it."""
    assert call.clean is not None
    return not any(_of(one, tensor) for one in call.passes) or _of(call.clean, tensor)
