"""What one call did to the model and to its result, and how its captures are stored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from recon.auditing.calls import Call
from recon.auditing.findings import Finding
from recon.auditing.near import allowance, apart
from recon.auditing.passes import (
    first_changed,
    put_from,
    replayed,
    rounded_to,
    rows_changed,
    rows_edited,
    same_bits,
    same_inputs,
)
from recon.auditing.rules import Severity, rule
from recon.sites import Site
from recon.trace import Trace
from recon.watch import Change

_MOST_SHOWN = 3
_WASTE = 2.0


def finding(
    name: str,
    message: str,
    *,
    places: Iterable[str] = (),
    run: str = "",
    severity: Severity | None = None,
    mend: str = "",
    **more: object,
) -> Finding:
    """Return a finding of a rule, with the rule's severity and advice if none fits."""
    of = rule(name)
    return Finding(
        rule=of,
        message=message,
        severity=severity or of.severity,
        places=tuple(places),
        run=run,
        mend=mend or of.mend,
        **more,  # type: ignore[arg-type]
    )


def effects(call: Call, earlier: Sequence[Call]) -> Iterator[Finding]:
    """Yield what a call left behind, and how it changed what the model computes."""
    yield from _left_behind(call)
    if call.broken:
        yield finding("hidden-states-broken", call.broken, run=call.situation.name)
    if call.situation.raises:
        return
    yield from _mode(call)
    if not any(one.clean is not None for one in earlier):
        yield from _not_finite(call)
    if ignored := _mask_ignored(call):
        yield ignored
    else:
        yield from _padding_counted(call)
        yield from _result(call, earlier)


def _left_behind(call: Call) -> Iterator[Finding]:
    by_rule: dict[tuple[str, Severity | None], list[Change]] = defaultdict(list)
    # recon's own hooks tell who clears too much; others' are the better example.
    for one in sorted(call.changes, key=lambda one: "recon." in one.words):
        name = one.rule
        if name == "random-state-changed" and call.situation.train:
            continue  # dropout draws, too
        if call.situation.raises and name == "hooks-left":
            name = "hooks-left-after-error"
        grave = _after_error(call, one)
        if call.situation.train and name == "mode-changed":
            grave = "note"  # everybody calls eval(), mostly on a model in eval mode
        if name == "requires-grad-changed" and "gradient" in one.words:
            grave = grave or "warning"
        if name == "config-changed" and one.words.endswith(" is new"):
            grave = grave or "warning"  # nothing of the model's own reads it
        if one.place == "threads":
            grave = "note"  # it may be a server of the code's own
        by_rule[name, grave].append(one)
    for (name, severity), found in by_rule.items():
        shown = "; ".join(
            f"{one.place or 'the model'}: {one.words}" if one.words else one.place
            for one in found[:_MOST_SHOWN]
        )
        more = len(found) - _MOST_SHOWN
        words = f"{shown}; and {more} more" if more > 0 else shown
        yield finding(
            name,
            f"{rule(name).meaning} {words}",
            places=[one.place for one in found],
            run=call.situation.name,
            severity=severity,
            evidence={"count": len(found)},
        )


def _after_error(call: Call, one: Change) -> Severity | None:
    """Return how grave it is that a change stays when a pass raises; None: as usual.

    Code that lets the error pass and never promised to clean up is worth a note. It is
    wrong if it caught the error, cleaned up in part, or hooked in a context manager.
    """
    promised = call.caught or call.cleaned or one.key in call.managed
    return None if promised or not call.situation.raises else "note"


def _mode(call: Call) -> Iterator[Finding]:
    for trace in call.passes:
        if trace.facts.environment.training and not call.situation.train:
            yield finding(
                "mode-changed",
                "the code ran the model in train mode, with dropout, though it was in "
                "eval mode",
                run=call.situation.name,
                severity="warning",
            )
            return


def _not_finite(call: Call) -> Iterator[Finding]:
    """Say from where on the model by itself computes NaN or infinity."""
    for place, tensor in call.clean.tensors.items() if call.clean is not None else ():
        count = int((~torch.isfinite(tensor)).sum())
        if count and not place.part.endswith("scores"):
            words = (
                f"the model by itself computes values that are NaN or infinite, from "
                f"{place} on ({count:,} of {tensor.numel():,}): captures of them hold "
                "no more than it does, and tell little"
            )
            yield finding(
                "not-finite",
                words,
                run=call.situation.name,
                severity="note",
                mend="Look for the weight or the input that is not finite.",
            )
            return


def _mask_ignored(call: Call) -> Finding | None:
    """Say if the code took an attention mask and ran the model without it."""
    bare, clean = call.unmasked, call.clean
    if bare is None or clean is None or first_changed(bare, clean) is None:
        return None
    for trace in call.passes:
        if trace.facts.shape == bare.facts.shape and not first_changed(trace, bare):
            return finding(
                "padding-taken",
                "the model ran as if there were no attention_mask: padding was "
                "attended to",
                run=call.situation.name,
            )
    return None


def _padding_counted(call: Call) -> Iterator[Finding]:
    """Say if the text of a row has other positions because of the padding before it."""
    better, mask = call.counted, call.situation.inputs.get("attention_mask")
    if better is None or mask is None:
        return
    shown, last = mask.bool(), Site("ln_f")
    wanted = better.facts.ids[Site("wpe")].expand_as(mask)
    for trace in call.passes:
        ids = trace.facts.ids.get(Site("wpe"))
        if ids is None or trace.facts.shape != mask.shape or last not in trace:
            continue
        late = ((ids != wanted) & shown).any(1).nonzero().flatten().tolist()
        far = apart(better[last][shown], trace[last][shown])
        if late and not far <= allowance(better[last].dtype):
            row, start = late[0], int(shown[late[0]].int().argmax())
            yield finding(
                "padding-counted",
                f"row {row} is padded on the left, and its text begins at position "
                f"{int(ids.expand_as(mask)[row, start])}, not 0: ln_f of the text is "
                f"off by {far:.2g} of its size from what it is without the padding",
                places=[str(Site("wpe"))],
                run=call.situation.name,
                evidence={"rows": len(late), "distance": far},
            )
            return


# -- does the model compute something else? --------------------------------------


def _result(call: Call, earlier: Sequence[Call]) -> Iterator[Finding]:
    clean = call.clean
    if clean is None or call.situation.train:
        return
    before = [(c.situation.name, t) for c in earlier for t in computed_by(c)]
    for number, trace in enumerate(call.passes):
        if trace.facts.environment.training:
            continue
        if not same_inputs(trace, clean):
            yield from _edited(call, trace)
            continue
        mask = call.situation.inputs.get("attention_mask")
        changed = first_changed(trace, clean, mask)
        if changed is None:
            yield from _graph_cut(call, number)
            continue
        here = (*call.passes, *call.partial)
        stale = replayed(trace, clean, before)
        # What another pass of this very call computed is patched in, not replayed.
        if stale and not put_from(trace, clean, changed, here):
            yield finding(
                "replays-earlier-run",
                f"the model's {stale[0]} is that of {stale[1]}",
                places=[str(stale[0])],
                run=call.situation.name,
            )
            return
        yield _changed(call, number, clean, changed)
        return


def _edited(call: Call, trace: Trace) -> Iterator[Finding]:
    """Say what the code edits in a pass on inputs of its own, by that pass's own laws.

    An edit of row 0 only is what output[0] of a tensor makes.
    """
    rows = call.situation.rows
    if trace.facts.shape != call.situation.inputs["input_ids"].shape:
        return
    edit = rows_edited(trace, call.clean)
    if edit is None:
        return
    place, changed = edit
    some = changed == [0] and rows > 1
    words = f"in a pass on other inputs the code edits {place}"
    yield finding(
        "changes-some-rows" if some else "changes-result",
        f"{words}, but only in row 0 of {rows}" if some else words,
        places=[str(place)],
        run=call.situation.name,
        severity=None if some else "note",
        evidence={"rows": len(changed)},
    )


def _graph_cut(call: Call, number: int) -> Iterator[Finding]:
    """Say if a pass whose values are right has lost part of its graph."""
    cut = call.cut[number] if number < len(call.cut) else None
    if cut is None:
        return
    words = f"the result is the same, but no gradient of it reaches {cut.place}"
    if cut.meant:
        words += ": what follows is a leaf, which takes the gradient there"
    yield finding(
        "graph-cut",
        words,
        places=[str(cut.place)],
        run=call.situation.name,
        severity="note" if cut.meant else None,
    )


def computed_by(call: Call) -> Iterator[Trace]:
    """Yield all that the model computed in a call, and what it would have by itself."""
    yield from call.passes
    if call.clean is not None:
        yield call.clean


def _changed(call: Call, number: int, clean: Trace, place: Site) -> Finding:
    trace = call.passes[number]
    found, known = trace.tensors[place], clean.tensors[place]
    rows = rows_changed(trace, clean, place)
    total = call.situation.rows
    far = apart(known, found) if found.shape == known.shape else float("inf")
    evidence = {"size": far, "rows": len(rows)}
    how, meant = _how(call, number, clean, place)
    if trace.facts.environment.autocast != clean.facts.environment.autocast:
        how, meant = "the code runs the model under another autocast", True
    mask = call.situation.inputs.get("attention_mask")
    if mask is not None and rows and rows == _padded(mask):
        return finding(
            "padding-taken",
            f"the model computes something else from {place} on, in the padded rows "
            "only",
            places=[str(place)],
            run=call.situation.name,
        )
    # output[0] of a tensor is row 0; whole tensors may have rows that stay the same.
    if rows and len(rows) < total and (rows == [0] or not meant):
        which = ", ".join(map(str, rows))
        return finding(
            "changes-some-rows",
            f"the model computes something else from {place} on, but only in row "
            f"{which} of {total}",
            places=[str(place)],
            run=call.situation.name,
            evidence=evidence,
        )
    return finding(
        "changes-result",
        f"the model computes something else from {place} on ({how}), off by "
        f"{far:.2g} of its size",
        places=[str(place)],
        run=call.situation.name,
        severity="note" if meant else "warning",
        evidence=evidence,
    )


def _padded(mask: Tensor) -> list[int]:
    return [row for row, seen in enumerate(mask.bool().all(1).tolist()) if not seen]


def _how(call: Call, number: int, clean: Trace, place: Site) -> tuple[str, bool]:
    """Say how a site came to be changed, and whether that was likely meant.

    An edit that a hook returns is meant; one in place may be an accident, and a
    rounding nearly always is.
    """
    trace = call.passes[number]
    if (first := next(_in_place(call, number), None)) is not None:
        return f"edited in place at {first}", False
    narrow = rounded_to(trace.tensors[place], clean.tensors[place])
    if narrow is not None:
        return f"rounded to {str(narrow).removeprefix('torch.')} by the code", False
    return "replaced by the code", True


def _in_place(call: Call, number: int) -> Iterator[Site]:
    """Yield what was edited in place in a pass: after it was recorded, or before."""
    trace = call.passes[number]
    alias = call.aliases[number] if number < len(call.aliases) else trace
    for place, tensor in alias.tensors.items():
        if not same_bits(tensor, trace.tensors[place]):
            yield place
    edits = call.edits[number] if number < len(call.edits) else ()
    yield from (one.place for one in edits if one.before is None)


# -- how are the captures stored? --------------------------------------------------


def storage(call: Call) -> Iterator[Finding]:
    """Yield what is worth knowing about the memory behind the captures."""
    tensors, run = call.returned.tensors, call.situation.name
    graph = [name for name, t in tensors.items() if t.grad_fn is not None]
    if graph:
        words = f"the autograd graph is kept alive by {len(graph)} of the captures"
        yield finding("graph-kept", words, places=graph, run=run)
    inference = [name for name, t in tensors.items() if t.is_inference()]
    if inference:
        words = f"{len(inference)} of the captures were made under inference_mode"
        yield finding("inference-tensor", words, places=inference, run=run)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
                for t in tensors.values()}  # fmt: skip
    held, needed = sum(storages.values()), sum(t.nbytes for t in tensors.values())
    if needed and held > _WASTE * needed:
        words = f"the captures hold {held:,} bytes and need {needed:,}"
        evidence = {"held": held, "needed": needed}
        yield finding("memory-held", words, run=run, evidence=evidence)
    for name, kind in call.returned.live.items():
        words = f"`{name}` is a {kind}, which later passes extend"
        yield finding("live-object", words, places=[name], run=run)
