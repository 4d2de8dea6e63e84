"""Is a tensor the gradient that its name promises? The code's own passes tell.

Nobody knows what a gradient is meant to be the gradient of. So only what is plainly
something else is wrong: that of another site or block, of another pass, or a value.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from recon.auditing.bench import Bench, Match
from recon.auditing.claims import Claim, Reading
from recon.auditing.exact import Exact
from recon.auditing.judgement import Judgement
from recon.auditing.near import Near, allowance, apart
from recon.auditing.quantities import TIMES_VALUE, Quantity
from recon.auditing.refusing import other_site, told_near
from recon.auditing.wording import words_of
from recon.sites import Site

# Words of a name that has several backward passes added up on purpose.
_SUMMED = frozenset(
    {"total", "sum", "summed", "accumulated", "accum", "acc", "cumulative", "both",
     "all", "running", "combined", "together"}
)  # fmt: skip
_ZEROED = (
    "Set .grad to None before each backward pass, or take torch.autograd.grad, which "
    "adds nothing up."
)


def received(place: Site) -> Site:
    """Return where a site's value arrives: an edit by a hook shows there first."""
    if place.part == "resid_post" and place.layer is not None:
        return Site("resid_pre", place.layer + 1)
    return place


# -- does it agree with a reading? ---------------------------------------------------


def match(bench: Bench, claim: Claim, reading: Reading, tensor: Tensor) -> Match | None:
    """Compare a tensor with the gradients at the site of a reading."""
    places = (reading.site, received(reading.site))
    # Zeros are everywhere: only whether they are those of the site is asked.
    sites = [one.site for one in claim.readings]
    exact = None if _constant(tensor) else bench.gradient(tensor, sites)
    if exact is not None:
        same = [exact.quantity, *exact.ties]
        for one in sorted(same, key=lambda one: one.site != reading.site):
            if one.site in places and not one.run and _times(one) == _times(reading):
                return Match(replace(exact, quantity=one))
        if exact.layout.honest and not exact.quantity.run:
            return None
    for place in places:
        for made in bench.gradients.of(place, _times(reading)):
            if found := bench.close(tensor, made, bench.catalogue.current[0]):
                return found
    return _as_reduced(bench, reading, tensor)


def _as_reduced(bench: Bench, reading: Reading, tensor: Tensor) -> Match | None:
    """Compare with means and the like: what one token or head counts for."""
    if not tensor.is_floating_point():
        return None
    slim = tensor.detach().cpu().squeeze()
    # Heads that stood side by side come behind the tokens, and ahead of them here.
    turned = [slim.transpose(-1, -2)] if slim.ndim > 1 else []
    for found in (slim, *turned):
        for place in (reading.site, received(reading.site)):
            for made in bench.gradients.reductions(place, _times(reading), found.shape):
                known = made.tensor.squeeze()
                allowed = max(allowance(found.dtype), allowance(known.dtype))
                if known.shape == found.shape and apart(known, found) <= allowed:
                    return Match(gap=apart(known, found), form=made.form)
    return None


def _times(one: Quantity | Reading) -> bool:
    return one.form.startswith(TIMES_VALUE)


def _constant(tensor: Tensor) -> bool:
    return bool((tensor == tensor.flatten()[0]).all())


# -- what is it then? ----------------------------------------------------------------


def refuse(bench: Bench, one: Judgement) -> Judgement:
    """Say what a tensor is that is not the gradient which its name promises.

    It is wrong if that is known, and unclaimed otherwise.
    """
    assert one.reading is not None
    if _constant(one.tensor):
        words = f"`{one.name}` holds one number, {float(one.tensor.flatten()[0]):g}"
        return _blank(bench, one) or _note(one, words)
    exact = bench.gradient(one.tensor, [r.site for r in one.claim.readings])
    if exact is not None:
        wrong = _another(bench, one, exact)
        return wrong or _note(one, f"`{one.name}` is {exact.words}{exact.tied}")
    value = bench.exact(one.tensor, [r.site for r in one.claim.readings])
    plain = value is not None and value.layout.honest and not value.quantity.form
    if value is not None and plain and not one.claim.soft:
        words = f"`{one.name}` is {value.words}{value.tied}, not {one.reading}"
        return replace(one, rule="wrong-site", sentence=words, found=value.words)
    return _unknown(bench, one)


def _another(bench: Bench, one: Judgement, exact: Exact) -> Judgement | None:
    """Say which other gradient a tensor is, bit for bit, and which rule that breaks."""
    assert one.reading is not None
    claimed = one.reading.site
    equal = (exact.quantity, *exact.ties)
    same = [q for q in equal if q.site.part == claimed.part]
    actual = same[0] if same else exact.quantity
    exact = replace(exact, quantity=actual, ties=equal)
    rule = _rule(bench, one.reading, actual)
    if not rule:
        return None
    words = f"`{one.name}` is {exact.words}{exact.tied}, not {one.reading}"
    return replace(one, rule=rule, sentence=words, found=actual.label, exact=True)


def _rule(bench: Bench, reading: Reading, actual: Quantity) -> str:
    """Return the rule that is broken; empty if it may be meant.

    Where no gradient reached the site, the graph was cut there, and what follows may
    stand for it.
    """
    if actual.run:
        return "other-run"
    if actual.site in (reading.site, received(reading.site)):
        return "wrong-formula"
    known = reading.site in bench.gradients.reached
    alike = actual.site.part == reading.site.part
    return other_site(actual.site, reading.site) if known or alike else ""


def _blank(bench: Bench, one: Judgement) -> Judgement | None:
    """Say that a gradient is all zeros where one that is not arrived at its site."""
    assert one.reading is not None
    known = [q.tensor for q in bench.gradients.of(one.reading.site, False)]
    lost = [t for t in known if t.numel() == one.tensor.numel() > 1 and bool(t.any())]
    if not lost or bool(one.tensor.any()):
        return None
    words = f"`{one.name}` holds zeros, and a gradient reached {one.reading.site}"
    return replace(one, rule="nothing-captured", sentence=words)


def _unknown(bench: Bench, one: Judgement) -> Judgement:
    """Say what a tensor is, or is near to; up to rounding that may be wrong, too."""
    assert one.reading is not None
    near = bench.near(one.tensor) if one.tensor.is_floating_point() else None
    sentence, found = told_near(one.name, near)
    rule = _near_rule(bench, one.reading, near)
    if rule:
        words = f"{sentence}, not {one.reading}"
        return replace(one, rule=rule, sentence=words, found=found)
    return _note(one, sentence)


def _near_rule(bench: Bench, reading: Reading, near: Near | None) -> str:
    if near is None or near.how != "same":
        return ""
    (actual,) = near.quantities
    whole = actual.passes and _times(actual) == _times(reading)
    return _rule(bench, reading, actual) if whole else ""


def _note(one: Judgement, sentence: str) -> Judgement:
    note = ("unclaimed", sentence)
    return replace(one, reading=None, sentence=sentence, notes=(note,))


# -- several backward passes ---------------------------------------------------------


def accumulated(judged: Sequence[Judgement]) -> list[Judgement]:
    """Tell gradients to which those of earlier backward passes were added.

    They are wrong where what was to be added is returned by itself, too: the author
    took each for one pass.
    """
    by_site: dict[Site, list[Judgement]] = defaultdict(list)
    for one in judged:
        if one.passes and one.right and one.reading is not None:
            by_site[one.reading.site].append(one)
    wrong = {one.name: one for some in by_site.values() for one in _added_up(some)}
    return [wrong.get(one.name, one) for one in judged]


def _added_up(some: Sequence[Judgement]) -> Iterator[Judgement]:
    for one in some:
        parts = [part for part in some if set(part.passes) < set(one.passes)]
        if parts and not _SUMMED & set(words_of(one.name)):
            words = f"{one.sentence}, and `{parts[0].name}` is of fewer"
            yield replace(one, rule="wrong-terms", sentence=words, mend=_ZEROED)
        elif len(set(one.passes)) > 1:
            note = ("generous-reading", one.sentence)
            yield replace(one, notes=(*one.notes, note))
