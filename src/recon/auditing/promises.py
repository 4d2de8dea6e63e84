"""Is what is named as edited, as clean, as of other inputs, as row 2, just that?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise

from torch import Tensor

from recon.auditing.calls import Call
from recon.auditing.handed import ANOTHER_ORDER, other_inputs
from recon.auditing.identify import Catalogue
from recon.auditing.judgement import Judgement
from recon.auditing.passes import alike
from recon.auditing.quantities import axes_of
from recon.auditing.sides import BEFORE
from recon.auditing.wording import CLEAN, words_of
from recon.sites import Site
from recon.trace import Trace

_EDITED = frozenset(
    {"ablated", "ablate", "knockout", "zeroed", "steered", "corrupted", "corrupt",
     "noised", "noisy", "perturbed", "intervened", "edited", "modified", "suppressed"}
)  # fmt: skip
_CLEAN = frozenset({"baseline", *CLEAN})
_PATCHED = _EDITED | {"patched", "intervention"}
_EARLY = frozenset({"before", "pre", "unpatched", *_CLEAN})
# Said of a group of captures, or of a prompt: it ran on other tokens.
_OTHER = frozenset(
    {"reversed", "shuffled", "permuted", "scrambled", "swapped", "counterfactual"}
)
# Said of much else, too, so only of a prompt.
_OTHER_PROMPT = _OTHER | {"rolled", "flipped", "changed", "other", "altered"}
_OTHER_TOKENS = _OTHER | {"rolled", "flipped"}  # other tokens may be of one prompt
_COUNTED = {"rows": "B", "tokens": "T", "heads": "H", "neurons": "M"}
_ROWS = frozenset({"row", "rows", "batch"})
_PROMPT = frozenset(
    {"prompt", "prompts", "text", "texts", "ids", "input", "inputs", "sentence",
     "sequence"}
)  # fmt: skip
_TOKENS = frozenset({"token", "tokens"})


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
    idle = all(alone.computes(one) for one in judged if one.name in edited)
    said = []
    for one in judged:
        if one.name in edited and idle:
            one = _broken(one, "an edit, and is what the model computes without one")
        elif one.name in clean and not alone.possibly(one.tensor):
            one = _broken(one, "no edit, and is not what the model computes by itself")
        elif BEFORE in one.found and _patched(named[one.name]):
            one = _broken(one, "an edit, and is what was there before it")
        elif _of_others(one.name) and alone.owns(one.tensor):
            one = _broken(
                one, "other inputs, and is what the model makes of those given"
            )
        said.append(one)
    return said


def _patched(words: frozenset[str]) -> bool:
    return bool(words & _PATCHED) and not words & _EARLY


def numbered(judged: Sequence[Judgement]) -> list[Judgement]:
    """Return judgements in which the row, token or head of another number is wrong.

    All numbers of a call may count from 1.
    """
    said = list(judged)
    for counted, axis in _COUNTED.items():
        away = {
            at: one.claim.counted[counted] - one.held[axis]
            for at, one in enumerate(judged)
            if counted in one.claim.counted and axis in one.held
        }
        start = 1 if set(away.values()) == {1} else 0
        for at, off in away.items():
            if off != start and not said[at].rule:
                kind = counted.removesuffix("s")
                words = (
                    f"not {kind} {said[at].claim.counted[counted]}, as its name says"
                )
                sentence = f"{said[at].sentence}: {words}"
                said[at] = replace(said[at], rule="wrong-tokens", sentence=sentence)
        said = [_along(one, counted, axis) for one in said]
    return said


def _along(one: Judgement, counted: str, axis: str) -> Judgement:
    """Refuse what a name's number was taken from along another axis than it says."""
    number, kind = one.claim.counted.get(counted), counted.removesuffix("s")
    if number is None or one.reading is None or one.rule or axis in one.held:
        return one
    # Tokens of row 1 may be called tokens_1.
    if axis not in axes_of(one.reading.site) or counted in words_of(one.name):
        return one
    for other, of in _COUNTED.items():
        unsaid = other not in one.claim.counted and (other != "rows" or number)
        if unsaid and one.held.get(of) == number:
            words = (
                f"a {other.removesuffix('s')}, not {kind} {number}, as its name says"
            )
            sentence = f"{one.sentence}: {words}"
            return replace(one, rule="wrong-tokens", sentence=sentence)
    return one


def _of_others(name: str) -> bool:
    """Whether a name says that the tokens were others than those given."""
    if _ROWS.intersection(words_of(name)):
        return False  # of which a batch of one has no other order
    groups = re.split(r"[./]", name)[:-1]
    if any(_OTHER.intersection(words_of(group)) for group in groups):
        return True
    pairs = [{*pair} for pair in pairwise(words_of(name))]
    return any(
        (pair & _OTHER_PROMPT and pair & _PROMPT)
        or (pair & _OTHER_TOKENS and pair & _TOKENS)
        for pair in pairs
    )


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

    def computes(self, one: Judgement) -> bool:
        """Whether a tensor is of the model's own pass, also if that ran in pieces."""
        known = None if one.reading is None else self._clean.get(one.reading.site)
        if known is None or len(self._call.passes) == 1:
            return self.exactly(one.tensor)
        mine = one.tensor.detach().to(known.device)
        return alike(mine, known) or self.exactly(one.tensor)

    def owns(self, tensor: Tensor) -> bool:
        """Whether a tensor is of the model's own pass, and of none on other inputs."""
        if _place(self._catalogues[0][1], tensor) in (None, Site("wpe")):
            return False
        others = [(other_inputs(t, self._call), c) for t, c in self._catalogues]
        if any(words == ANOTHER_ORDER for words, _ in others):
            return False  # rows that were put back may well be those of our own pass
        return not any(_place(c, tensor) for words, c in others if words)

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
