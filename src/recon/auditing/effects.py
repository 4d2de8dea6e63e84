"""What one call did to the model and to its result, and how its captures are stored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from recon.auditing.calls import Call
from recon.auditing.findings import Finding
from recon.auditing.near import allowance, apart
from recon.auditing.rules import Severity, rule
from recon.sites import Site
from recon.trace import Trace

_MOST_SHOWN = 3
_WASTE = 2.0


def finding(
    name: str,
    message: str,
    *,
    places: Iterable[str] = (),
    run: str = "",
    severity: Severity | None = None,
    **more: object,
) -> Finding:
    """Return a finding of a rule, with the rule's severity and advice."""
    of = rule(name)
    return Finding(
        rule=of,
        message=message,
        severity=severity or of.severity,
        places=tuple(places),
        run=run,
        mend=of.mend,
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
    if ignored := _mask_ignored(call):
        yield ignored
    else:
        yield from _result(call, earlier)


def _left_behind(call: Call) -> Iterator[Finding]:
    by_rule: dict[str, list[tuple[str, str]]] = defaultdict(list)
    # recon's own hooks tell who clears too much; others' are the better example.
    for one in sorted(call.changes, key=lambda one: "recon." in one.words):
        name = one.rule
        if name == "random-state-changed" and call.situation.train:
            continue  # dropout draws, too
        if call.situation.raises and name == "hooks-left":
            name = "hooks-left-after-error"
        by_rule[name].append((one.place, one.words))
    for name, found in by_rule.items():
        shown = "; ".join(
            f"{place or 'the model'}: {words}" if words else place
            for place, words in found[:_MOST_SHOWN]
        )
        more = len(found) - _MOST_SHOWN
        words = f"{shown}; and {more} more" if more > 0 else shown
        yield finding(
            name,
            f"{rule(name).meaning} {words}",
            places=[place for place, _ in found],
            run=call.situation.name,
            evidence={"count": len(found)},
        )


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


def _mask_ignored(call: Call) -> Finding | None:
    """Say if the code took an attention mask and ran the model without it."""
    bare, clean = call.unmasked, call.clean
    if bare is None or clean is None or _first_changed(bare, clean) is None:
        return None
    for trace in call.passes:
        if trace.facts.shape == bare.facts.shape and not _first_changed(trace, bare):
            return finding(
                "padding-taken",
                "the model ran as if there were no attention_mask: padding was "
                "attended to",
                run=call.situation.name,
            )
    return None


# -- does the model compute something else? --------------------------------------


def _result(call: Call, earlier: Sequence[Call]) -> Iterator[Finding]:
    clean = call.clean
    if clean is None or call.situation.train:
        return
    for number, trace in enumerate(call.passes):
        if trace.facts.environment.training or not _same_inputs(trace, clean):
            continue
        if stale := _replayed(trace, clean, earlier):
            yield finding(
                "replays-earlier-run",
                f"the model's {stale[0]} is that of {stale[1]}, bit for bit",
                places=[str(stale[0])],
                run=call.situation.name,
            )
            return
        changed = _first_changed(trace, clean)
        if changed is None:
            continue
        alias = call.aliases[number] if number < len(call.aliases) else trace
        yield _changed(call, trace, clean, alias, changed)
        return


def _same_inputs(trace: Trace, clean: Trace) -> bool:
    ours, theirs = trace.facts.ids, clean.facts.ids
    return all(
        place in theirs and torch.equal(ours[place], theirs[place]) for place in ours
    )


def _replayed(
    trace: Trace, clean: Trace, earlier: Sequence[Call]
) -> tuple[Site, str] | None:
    last = list(trace.tensors)[-1]
    mine = trace.tensors[last]
    if last in clean.tensors and _alike(mine, clean.tensors[last]):
        return None
    for other in earlier:
        held = None if other.clean is None else other.clean.tensors.get(last)
        if held is not None and held.shape == mine.shape and torch.equal(held, mine):
            return last, other.situation.name
    return None


def _alike(found: Tensor, known: Tensor) -> bool:
    if found.shape != known.shape or found.dtype != known.dtype:
        return False
    return torch.equal(found, known) or apart(known, found) <= allowance(known.dtype)


def _first_changed(trace: Trace, clean: Trace) -> Site | None:
    for place, tensor in trace.tensors.items():
        known = clean.tensors.get(place)
        # Generation asks for the logits of the last token only.
        fewer = known is not None and known.shape != tensor.shape
        if place.part == "logits" and fewer:
            continue
        if known is not None and not _alike(tensor, known):
            return place
    return None


def _changed(
    call: Call, trace: Trace, clean: Trace, alias: Trace, place: Site
) -> Finding:
    found, known = trace.tensors[place], clean.tensors[place]
    rows = _rows_changed(found, known)
    total = call.situation.rows
    far = apart(known, found) if found.shape == known.shape else float("inf")
    evidence = {"size": far, "rows": len(rows)}
    if rows and len(rows) < total:
        which = ", ".join(map(str, rows))
        return finding(
            "changes-some-rows",
            f"the model computes something else from {place} on, but only in row "
            f"{which} of {total}",
            places=[str(place)],
            run=call.situation.name,
            evidence=evidence,
        )
    edited = [
        s for s, t in alias.tensors.items() if not torch.equal(t, trace.tensors[s])
    ]
    how = f"edited in place at {edited[0]}" if edited else "replaced by the code"
    return finding(
        "changes-result",
        f"the model computes something else from {place} on ({how}), off by "
        f"{far:.2g} of its size",
        places=[str(place)],
        run=call.situation.name,
        # An edit that a hook returns is meant; one in place may be an accident.
        severity="warning" if edited else "note",
        evidence=evidence,
    )


def _rows_changed(found: Tensor, known: Tensor) -> list[int]:
    if found.shape != known.shape:
        return []
    apart_rows = (found != known).flatten(1).any(1)
    return [int(n) for n in apart_rows.nonzero().flatten()]


# -- how are the captures stored? --------------------------------------------------


def storage(call: Call) -> Iterator[Finding]:
    """Yield what is worth knowing about the memory behind the captures."""
    tensors, run = call.returned.tensors, call.situation.name
    graph = [name for name, t in tensors.items() if t.grad_fn is not None]
    if graph:
        words = f"{len(graph)} captures keep the autograd graph alive"
        yield finding("graph-kept", words, places=graph, run=run)
    inference = [name for name, t in tensors.items() if t.is_inference()]
    if inference:
        words = f"{len(inference)} captures were made under inference_mode"
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
