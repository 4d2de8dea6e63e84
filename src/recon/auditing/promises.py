"""Is what is named as edited, or as clean, of a pass with or without the edit?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from recon.auditing.calls import Call
from recon.auditing.claims import words_of
from recon.auditing.effects import finding
from recon.auditing.findings import Finding
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


def broken(call: Call, judged: Sequence[Judgement]) -> Iterator[Finding]:
    """Yield tensors named as edited that are clean, and named as clean that are not.

    Before the place of an edit both are the same: only if all tensors that promise an
    edit are what the model computes without it does the edit do nothing.
    """
    if call.clean is None or call.situation.train or not call.passes:
        return
    named = {one.name: frozenset(words_of(one.name)) for one in judged}
    edited = [
        o for o in judged if named[o.name] & _EDITED and not named[o.name] & _CLEAN
    ]
    clean = [
        o for o in judged if named[o.name] & _CLEAN and not named[o.name] & _EDITED
    ]
    run = call.situation.name
    if edited and all(_of(call.clean, one.tensor) for one in edited):
        said = (
            f"`{edited[0].name}` promises an edit, and is what the model computes "
            "without one"
        )
        yield finding("wrong-edit", said, places=[o.name for o in edited], run=run)
    changed = [one for one in clean if not _clean(call, one.tensor)]
    if changed:
        said = (
            f"`{changed[0].name}` promises no edit, and is of a pass that computed "
            "something else than the model does by itself"
        )
        yield finding("wrong-edit", said, places=[o.name for o in changed], run=run)


def _of(trace: Trace, tensor: Tensor) -> bool:
    """Whether a tensor is, bit for bit, something of a pass, each row once."""
    found = Catalogue([("", trace)]).exact(tensor, lambda one: not one.form)
    return found is not None and len(set(found.taken)) == len(found.taken)


def _clean(call: Call, tensor: Tensor) -> bool:
    """Whether a tensor may be clean: no pass but the clean one is known to hold it."""
    assert call.clean is not None
    return not any(_of(one, tensor) for one in call.passes) or _of(call.clean, tensor)
