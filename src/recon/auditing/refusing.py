"""Not what the name says: what is it then? Bit for bit, up to rounding, or nearest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from recon import gpt2
from recon.auditing import quantities
from recon.auditing.bench import Bench
from recon.auditing.decoding import decoded
from recon.auditing.exact import Exact
from recon.auditing.handed import other_inputs
from recon.auditing.joined import as_joined, joined, side_by_side
from recon.auditing.judgement import Judgement
from recon.auditing.near import FEWEST, Near, allowance, apart, distance
from recon.auditing.pieces import HAND_ON, other_pass, overwritten
from recon.auditing.quantities import GRADIENT
from recon.auditing.wording import words_of
from recon.listed import listed
from recon.sites import Site
from recon.trace import sources

# As many equal values are no accident, and what is further away than this is not near.
_SOME, _FAR = 0.02, 0.5
_MOST_SHOWN = 4
_AXES = {"B": "row", "T": "token", "H": "head"}
# The rule that is broken where some rows, or some tokens, are not those of the site.
_MISSED = {"B": "dropped-batch", "T": "wrong-tokens"}
# As few wrong values, in whichever rows and tokens, are told one by one.
_FEW = 8
_MOST_ROWS = 32
# A shift by more tokens is no slip of an index.
_FURTHEST = 3
_GO_ON = "Hand each pass the cache of the one before it, and new tokens alone."
# The kinds of parameters, and what their names hold.
_PARAMETERS = {
    "bias": frozenset({"b", "bias", "biases"}),
    "weight": frozenset({"w", "weight", "weights"}),
    "table": frozenset({"w", "weight", "weights", "wte", "wpe"}),
}


def unclaimed(bench: Bench, one: Judgement) -> Judgement:
    """Identify a tensor whose name promises nothing."""
    exact = bench.exact(one.tensor, ())
    if exact is not None:
        sentence = f"`{one.name}` is {exact.words}{exact.tied}"
        found = exact.quantity.label
        late = (("other-run", sentence),) if exact.quantity.run else ()
        if late:
            return replace(one, rule="other-run", sentence=sentence, found=found)
    elif torch.equal(one.tensor, bench.call.situation.inputs["input_ids"]):
        sentence, found = f"`{one.name}` is input_ids", "input_ids"
    elif (sites := joined(bench, one.tensor)) is not None:
        found = side_by_side(sites)
        sentence = f"`{one.name}` is {found}"
    else:
        near = bench.near(one.tensor)
        sentence, found = told_near(one.name, near)
        known = near is not None and near.how != "nearest"
        if one.tensor.numel() < FEWEST and not known:
            sentence, found = f"`{one.name}` holds {_few(one.tensor)}", ""
    if one.claim.beyond is not None:
        words = f"{sentence}; the model has no {one.claim.beyond}"
        return replace(one, rule="wrong-layer", sentence=words, found=found)
    note = ("unclaimed", sentence)
    return replace(one, sentence=sentence, found=found, notes=(note,))


def _few(tensor: Tensor) -> str:
    """Write out one number, or count a few that are too few to tell what they are."""
    if tensor.numel() == 1:
        return f"one number, {float(tensor.flatten()[0]):g}"
    return f"{tensor.numel()} numbers, too few to tell what they are"


def refuse(bench: Bench, one: Judgement) -> Judgement:
    """Say what a tensor is that its name does not fit, and which rule it breaks."""
    wrong = _refused(bench, one)
    kind = wrong.found.rpartition(" ")[2]
    if kind in _PARAMETERS and _PARAMETERS[kind].intersection(words_of(one.name)):
        # Weights that are handed out beside the captures.
        note = ("unclaimed", wrong.sentence)
        return replace(wrong, reading=None, rule="", notes=(note,))
    return wrong


def _refused(bench: Bench, one: Judgement) -> Judgement:
    assert one.reading is not None
    claimed = one.reading.site
    exact = bench.exact(one.tensor, [r.site for r in one.claim.readings])
    if bool((one.tensor == one.tensor.flatten()[0]).all()):
        words = f"`{one.name}` holds one number, {float(one.tensor.flatten()[0]):g}"
        many = one.tensor.numel() > 1
        return replace(
            one, rule="nothing-captured" if many else "wrong-shape", sentence=words
        )
    if not one.tensor.is_floating_point():
        words = f"`{one.name}` holds {one.tensor.dtype}, no activations"
        return replace(one, rule="unexplained", sentence=words)
    if late := overwritten(bench.call, one.name, one.tensor):
        return replace(one, rule="overwritten", sentence=late)
    if exact is not None:
        wrong = _as_exact(one, exact, claimed)
        words = "" if exact.quantity.run else other_pass(bench, exact)
        also = f", in a pass on {words}" if words else ""
        return replace(wrong, sentence=f"{wrong.sentence}{also}")
    masked = claimed.part.endswith("scores") and not bool(one.tensor.isnan().any())
    masked = masked or not _computed_finite(bench, claimed)
    if not bool(torch.isfinite(one.tensor).all()) and not masked:
        count = int((~torch.isfinite(one.tensor)).sum())
        words = f"`{one.name}` holds {count} values that are NaN or infinite"
        return replace(
            one, rule="not-finite", sentence=words, evidence={"not_finite": count}
        )
    wanted = [r.site for r in one.claim.readings]
    likely = {*wanted, *_inputs_of(bench, wanted)}
    near = bench.catalogue.near(
        one.tensor, wanted, lambda q: q.site in likely and not q.form
    )
    return _as_near(bench, one, near, claimed)


def _computed_finite(bench: Bench, place: Site) -> bool:
    held = [t.tensors[place] for t in bench.catalogue.current if place in t.tensors]
    return all(bool(torch.isfinite(one).all()) for one in held)


def _inputs_of(bench: Bench, wanted: Sequence[Site]) -> Iterator[Site]:
    for trace in bench.catalogue.current[:1]:
        for identity in gpt2.identities(trace):
            if identity.site in wanted:
                yield from identity.inputs


def _as_near(
    bench: Bench, one: Judgement, near: Near | None, claimed: Site
) -> Judgement:
    sentence, found = told_near(one.name, near)
    one = replace(one, sentence=sentence, found=found)
    if near is None:
        if (several := as_joined(bench, one) or _as_decoded(bench, one)) is not None:
            return several
        expected = " or ".join(quantities.axes_of(claimed))
        words = f"{sentence}; {claimed} has axes {expected.replace(' or ', ' ')}"
        return replace(one, rule="wrong-shape", sentence=words)
    if near.how == "sum" and (own := _as_close(bench, one, claimed, near)) is not None:
        near = own
        sentence, found = told_near(one.name, near)
        one = replace(one, sentence=sentence, found=found)
    one = replace(one, evidence={"distance": near.distance})
    if near.how in ("nearest", "sum"):
        words = _shifted(bench, one, claimed) or _rows_moved(bench, one, claimed)
        if words:
            said = f"`{one.name}` is {words}"
            return replace(one, rule="wrong-tokens", sentence=said, found=words)
    if near.how == "nearest":
        words, cause = _together(bench, one, claimed)
        if words:
            said = f"`{one.name}` is {words}"
            one = replace(one, sentence=said, found=words, mend=HAND_ON, cause=cause)
            return replace(one, rule="other-run")
        axis, words = _but_for(bench, one, claimed)
        if words:
            said, name = f"`{one.name}` is {words}", _MISSED.get(axis, "unexplained")
            return replace(one, rule=name, sentence=said, found=words)
        words = f"{sentence}{_partly(bench, one, claimed)}"
        return replace(one, rule="unexplained", sentence=words)
    if near.how == "sum":
        return replace(one, rule="wrong-terms")
    if near.how == "scaled":
        return replace(one, rule="wrong-formula")
    (quantity,) = near.quantities
    if quantity.site == claimed and not quantity.form:
        if len(bench.call.passes) > 1:
            return one  # a model that runs in pieces rounds differently all along
        words = f"`{one.name}` is {near.words}, but further off than its rounding goes"
        return replace(one, rule="wrong-formula", sentence=words)
    if quantity.form:
        return replace(one, rule="wrong-formula")
    return replace(one, rule=other_site(quantity.site, claimed))


def _as_decoded(bench: Bench, one: Judgement) -> Judgement | None:
    """Judge what a decoding loop put together; None for another tensor."""
    for place in dict.fromkeys(r.site for r in one.claim.readings if not r.form):
        if (told := decoded(bench, one.tensor, place)) is None:
            continue
        words, odd = told
        said = f"`{one.name}` is {words}" + (f", {odd}" if odd else "")
        one = replace(one, sentence=said, found=words)
        if odd:
            return replace(one, rule="other-run", cause=odd, mend=_GO_ON)
        return replace(one, notes=(("generous-reading", said),))
    return None


def _together(bench: Bench, one: Judgement, claimed: Site) -> tuple[str, str]:
    """Say of which passes' pieces a tensor was put together, and what is odd in one."""
    held = [trace for trace in bench.call.passes if claimed in trace]
    odd = next((w for trace in held if (w := other_inputs(trace, bench.call))), "")
    for axis, name in enumerate(quantities.axes_of(claimed)):
        shapes = [list(trace[claimed].shape) for trace in held]
        alike = len({tuple(s[:axis] + s[axis + 1 :]) for s in shapes}) == 1
        if len(held) < 2 or not alike or name not in _AXES or not odd:
            continue
        whole = torch.cat([trace[claimed] for trace in held], axis).cpu()
        if torch.equal(whole, one.tensor.detach().cpu()):
            count = f"put together from {len(held)} passes, some on {odd}"
            return f"{claimed}, {count}", odd
    return "", ""


def _but_for(bench: Bench, one: Judgement, claimed: Site) -> tuple[str, str]:
    """Say at which few rows, tokens or heads a tensor differs from the site.

    Or at which few values, if most of those rows, tokens and heads are right.
    """
    for mine, known in _beside(bench, one, claimed):
        room = allowance(mine.dtype) * float(known.abs().amax())
        differs = (mine - known).abs() > room
        if 0 < int(differs.sum()) <= min(_FEW, differs.numel() // 4):
            places = differs.nonzero().tolist()
            which = listed(places, _MOST_SHOWN)
            several = "s" if len(places) > 1 else ""
            return "", f"{claimed} but for the value{several} at {which}"
        for axis, name in enumerate(quantities.axes_of(claimed)):
            pairs = zip(known.unbind(axis), mine.unbind(axis), strict=True)
            near = [apart(a, b) <= allowance(mine.dtype) for a, b in pairs]
            off = [number for number, close in enumerate(near) if not close]
            if name in _AXES and 0 < len(off) <= len(near) // 2:
                blank = not bool(mine.index_select(axis, torch.tensor(off)).any())
                which = listed(off, _MOST_SHOWN)
                several = "s" if len(off) > 1 else ""
                words = f"{claimed} but for {_AXES[name]}{several} {which}"
                return name, words + (", where zeros stand" if blank else "")
    return "", ""


def _partly(bench: Bench, one: Judgement, claimed: Site) -> str:
    """Say how many values of a tensor are those of the site, if some are."""
    for mine, known in _beside(bench, one, claimed):
        share = float((known == mine).float().mean())
        if share > _SOME:
            return f"; {share:.0%} of its values are those of {claimed}"
    return ""


def _as_close(bench: Bench, one: Judgement, claimed: Site, near: Near) -> Near | None:
    """Return the site itself if a tensor is no further from it than from a sum.

    What goes into a site may well be had from it by taking something away.
    """
    for mine, known in _beside(bench, one, claimed):
        gap = distance(mine, known)
        if gap <= 2 * near.distance:
            own = quantities.Quantity(claimed, known, quantities.axes_of(claimed))
            return Near("nearest", own.label, (own,), gap)
    return None


def _beside(
    bench: Bench, one: Judgement, claimed: Site
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a tensor, and what the site is in each pass in which it has that shape."""
    mine = one.tensor.detach().cpu()
    for trace in bench.catalogue.current:
        known = trace.get(claimed)
        if known is not None and known.shape == mine.shape:
            yield mine, known.cpu()


def _rows_moved(bench: Bench, one: Judgement, claimed: Site) -> str:
    """Say if a tensor is a site with its rows in another order, up to rounding."""
    for mine, known in _beside(bench, one, claimed):
        if quantities.axes_of(claimed)[0] != "B" or not 1 < len(mine) <= _MOST_ROWS:
            continue
        allowed = bench.allowed(mine, known)
        order = [
            next((n for n, row in enumerate(known) if apart(own, row) <= allowed), -1)
            for own in mine
        ]
        if sorted(order) == list(range(len(mine))) != order:
            return f"{claimed} with its rows in the order {order}"
    return ""


def _shifted(bench: Bench, one: Judgement, claimed: Site) -> str:
    """Say by how many tokens a tensor is shifted, if all that is left of it agrees."""
    axes = quantities.axes_of(claimed)
    for mine, known in _beside(bench, one, claimed) if "T" in axes else ():
        axis = axes.index("T")
        tokens = known.shape[axis]
        for by in range(1, min(tokens - 1, _FURTHEST) + 1):
            start, end = (0, tokens - by), (by, tokens - by)
            ahead = known.narrow(axis, *start), mine.narrow(axis, *end)
            behind = known.narrow(axis, *end), mine.narrow(axis, *start)
            for (here, there), word in ((ahead, "late"), (behind, "early")):
                if torch.equal(here, there):
                    return f"{claimed}, {by} token{'s'[: by > 1]} too {word}"
    return ""


def _as_exact(one: Judgement, exact: Exact, claimed: Site) -> Judgement:
    """Say which other quantity a tensor is, bit for bit, and which rule that breaks."""
    # Of what is equal, a dropout in eval mode for one, the likest to the claim is told.
    equal = (exact.quantity, *exact.ties)
    same = [q for q in equal if q.site.part == claimed.part]
    exact = replace(exact, quantity=same[0], ties=equal) if same else exact
    actual = exact.quantity
    sentence = f"`{one.name}` is {exact.words}{exact.tied}, not {one.reading}"
    one = replace(one, sentence=sentence, found=actual.label, exact=True)
    if actual.run:
        return replace(one, rule="other-run")
    if actual.form in ("table", "weight"):
        name = "wrong-tokens" if actual.form == "table" else "wrong-site"
        return replace(one, rule=name)
    if actual.form.startswith(GRADIENT):
        # A name with words that nobody knows may be that of a gradient.
        return replace(one, rule="unexplained" if one.claim.soft else "wrong-site")
    if actual.form or actual.site in sources(claimed):
        return replace(one, rule="wrong-layout")
    return replace(one, rule=other_site(actual.site, claimed))


def other_site(actual: Site, claimed: Site) -> str:
    """Tell another block from another part, seen as people count: states, blocks."""
    if actual.part == claimed.part:
        return "wrong-layer"
    streams = {"resid_pre", "resid_post", "embed"}
    between = actual.part in streams and claimed.part in streams
    return "wrong-layer" if between else "wrong-site"


def told_near(name: str, near: Near | None) -> tuple[str, str]:
    """Return a sentence that says what a tensor is near to, and what that is."""
    if near is None:
        return f"`{name}` has a shape that nothing in the model has", ""
    if near.how == "nearest" and near.distance > _FAR:
        return f"`{name}` is nothing that recon knows, nor near it", ""
    if near.how == "nearest":
        far = f"{near.distance:.2g} of its size away"
        return (
            f"`{name}` is nothing that recon knows; nearest is {near.words}, {far}",
            near.words,
        )
    return f"`{name}` is {near.words} (up to rounding)", near.words
