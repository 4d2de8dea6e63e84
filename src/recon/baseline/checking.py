"""``recon.record_baseline``, ``check_baseline`` and ``accept_baseline``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from recon import gpt2
from recon.baseline import files, fingerprints
from recon.baseline.document import Asked, Baseline, Weight
from recon.baseline.findings import BaselineReport, Finding, Moved, rule
from recon.baseline.judging import moved_sites
from recon.baseline.recording import Observed, observe
from recon.compare import PASSES, Check
from recon.errors import ReconciliationError, UnknownSiteError, UsageError
from recon.sites import site

_ROUNDS = 15


@dataclass(frozen=True)
class Allowances:
    """How much more than the baseline's a run may take, as shares of it.

    None does not look. Bytes are the same on every machine; times are not, so that
    nothing is measured unless it is asked for.
    """

    bytes: float | None = 0.1
    overhead: float | None = None


def record_baseline(
    file: str | Path,
    model: nn.Module,
    input_ids: Tensor | None = None,
    *,
    asked: Asked | None = None,
    source: str = "the given inputs",
    overhead: bool = False,
    **inputs: Tensor,
) -> Baseline:
    """Run the model and write the fingerprint of the run to ``file``, atomically.

    Inputs are integers, B T each; they are kept in the file, so that a check runs the
    same. The model must be in eval mode, and is left as it was. With ``overhead`` the
    time of capture is measured, too.

    Raises ReconciliationError, and writes nothing, if the run is wrong by itself: a
    baseline of it would vouch for a fault. Raises UsageError for a file that cannot be
    written and for inputs that cannot be kept.
    """
    gpt2.require_names(model, inputs, ("asked", "source", "overhead"))
    if input_ids is not None:
        inputs = {"input_ids": input_ids, **inputs}
    rounds = _ROUNDS if overhead else 0
    found = observe(model, inputs, asked=asked, source=source, rounds=rounds)
    _require_right(found)
    files.write(found.baseline, Path(file))
    return found.baseline


def check_baseline(
    file: str | Path,
    model: nn.Module,
    input_ids: Tensor | None = None,
    *,
    asked: Asked | None = None,
    allowances: Allowances | None = None,
    **inputs: Tensor,
) -> BaselineReport:
    """Run the model on the inputs in ``file`` and say what moved since.

    Inputs that are given must be those of the file. The model is left as it was.
    Raises UsageError for a file that is damaged or foreign and for other inputs;
    findings are in the report.
    """
    gpt2.require_names(model, inputs, ("asked", "allowances"))
    then = files.read(Path(file))
    if input_ids is not None:
        inputs = {"input_ids": input_ids, **inputs}
    stored = {name: torch.tensor(rows) for name, rows in then.inputs.items()}
    _require_same(stored, inputs, str(file))
    device = next(model.parameters()).device
    here = {name: ids.to(device) for name, ids in stored.items()}
    allowances = allowances or Allowances()
    timed = allowances.overhead is not None
    if timed and then.overhead is None:
        raise UsageError(
            f"{file} was recorded without its overhead, so that none can be allowed "
            "for; record it anew with --overhead"
        )
    found = observe(
        model,
        here,
        asked=asked or then.model,
        source=then.source,
        rounds=_ROUNDS if timed else 0,
    )
    if not timed and then.overhead is not None:
        # What is not measured stays as it was, should the run be accepted.
        kept = found.baseline.model_copy(update={"overhead": then.overhead})
        found = Observed(kept, found.report)
    return compare(str(file), then, found, allowances)


def accept_baseline(report: BaselineReport) -> None:
    """Replace the file of a report by what the run was, atomically.

    Raises UsageError if the run is wrong by itself, or nothing was compared.
    """
    if report.wrong:
        raise UsageError(
            f"{report.file} stays as it was, since this run is wrong by itself: "
            f"{report.wrong}"
        )
    files.write(report.now, Path(report.file))


def _require_right(found: Observed) -> None:
    wrong = [c for c in found.report.failures if c.verdict != "unverified"]
    nothing = "" if wrong else _wrong(found)
    if wrong or nothing:
        raise ReconciliationError(wrong, [nothing] if nothing else [])


def _wrong(found: Observed) -> str:
    """Say why a run vouches for nothing, or nothing."""
    if not found.report.checks:
        return "no check was made"
    if not found.baseline.sites:
        return "no site was captured"
    wrong = (c for c in found.report.failures if c.verdict != "unverified")
    return next((check.describe() for check in wrong), "")


def _require_same(
    stored: Mapping[str, Tensor], given: Mapping[str, Tensor], file: str
) -> None:
    if not given:
        return
    other = sorted({*stored} ^ {*given})
    other += [
        name
        for name in stored
        if name in given and not torch.equal(stored[name], given[name].cpu().long())
    ]
    if other:
        raise UsageError(
            f"{file} was recorded with other inputs ({other[0]} differs); leave them "
            "out to run on the recorded ones, or record it anew"
        )


# -- what was found ------------------------------------------------------------


def compare(
    file: str, then: Baseline, found: Observed, allowances: Allowances
) -> BaselineReport:
    """Compare a run with a baseline; findings come in order of computation."""
    now, failures = found.baseline, found.report.failures
    moved = tuple(moved_sites(then, now, failures))
    placed = [
        *_nothing(then, found),
        *_weights(then, now, moved),
        *_moved(moved),
        *_came_and_went(then, now),
        *_failing(then, moved, failures),
        *_states(then, now),
    ]
    # A weight stands before the site that is made with it.
    ordered = [one for _, one in sorted(placed, key=lambda pair: pair[0])]
    ordered += [
        *_returns(then, now),
        *_hooks(then, now),
        *_bytes(then, now, allowances),
        *_overhead(then, now, allowances),
    ]
    return BaselineReport(
        file=file,
        then=then,
        now=now,
        moved=moved,
        findings=tuple(ordered),
        notes=tuple(_notes(then, now, moved, allowances)),
        wrong=_wrong(found),
    )


_Place = tuple[float, ...]


def _place(name: str) -> _Place:
    """Sort by order of computation; what is no site comes after all."""
    kind, _, entry = name.partition(".")
    if kind == "hidden_states" and entry.isdigit():
        return (2.0, 0.0, 1e6 + int(entry))
    try:
        return site(name).depth
    except UnknownSiteError:
        return (3.0,)


def _finding(word: str, message: str, places: Iterable[str] = ()) -> Finding:
    return Finding(rule(word), message, tuple(places))


def _nothing(then: Baseline, found: Observed) -> Iterator[tuple[_Place, Finding]]:
    if not found.report.checks or not {*then.sites} & {*found.baseline.sites}:
        words = "no site of the baseline is in this run: nothing was compared"
        yield (-1.0,), _finding("nothing-checked", words)


def _weights(
    then: Baseline, now: Baseline, moved: tuple[Moved, ...]
) -> Iterator[tuple[_Place, Finding]]:
    """Tell all weights that differ as one finding, at the first site made with one."""
    words = {
        name: said
        for name in {**then.weights, **now.weights}
        if (said := _weight(then.weights.get(name), now.weights.get(name)))
    }
    if not words:
        return
    users = [
        s for s, one in {**now.sites, **then.sites}.items() if {*one.weights} & {*words}
    ]
    places = sorted(users, key=_place)
    first = next(iter(words))
    total = len({**then.weights, **now.weights})
    count = f"{len(words)} of {total} weights differ{'s' if len(words) == 1 else ''}"
    others = f", and {len(words) - 1} more" if len(words) > 1 else ""
    where = f"; first used at {places[0]}" if places else ""
    message = f"{count}: {first} {words[first]}{others}{where}"
    yield _before(places), _finding("weights-differ", message, words)


def _before(places: list[str]) -> _Place:
    """Sort before the first of some sites."""
    if not places:
        return (-0.5,)
    *first, last = _place(places[0])
    return (*first, last - 0.5)


def _weight(before: Weight | None, after: Weight | None) -> str:
    """Say how a weight differs, or nothing."""
    if before is None or after is None:
        return "is new" if before is None else "is gone"
    if before.dtype != after.dtype:
        return f"is {after.dtype}, was {before.dtype}"
    if before.shape != after.shape:
        return f"has shape {tuple(after.shape)}, had {tuple(before.shape)}"
    if before.sha256 == after.sha256:
        return ""
    count = 1
    for size in before.shape:
        count *= size
    length = before.rms * count**0.5
    far = fingerprints.distance(before.projection, after.projection, length)
    return f"is off by about {far:.1g} of its size"


def _moved(moved: tuple[Moved, ...]) -> Iterator[tuple[_Place, Finding]]:
    """Tell sites that changed, or moved without proof; what is alike is told once."""
    for kind, word in (("changed", "site-changed"), ("unproven", "not-proven")):
        alike: dict[str, list[str]] = {}
        for one in moved:
            if one.kind == kind:
                alike.setdefault(one.why, []).append(one.site)
        for why, sites in alike.items():
            yield _place(sites[0]), _finding(word, f"{_several(sites)}: {why}", sites)


def _several(names: list[str]) -> str:
    more = len(names) - 1
    return f"{names[0]}{f' and {more} more sites' if more else ''}"


def _came_and_went(then: Baseline, now: Baseline) -> Iterator[tuple[_Place, Finding]]:
    for word, here, there in (
        ("site-vanished", then, now),
        ("site-appeared", now, then),
    ):
        gone = [
            name
            for name in here.sites
            if name not in there.sites and not _kernels_own(name, then, now)
        ]
        if gone:
            did = "no longer there" if here is then else "new"
            yield _place(gone[0]), _finding(word, f"{_several(gone)}: {did}", gone)


def _kernels_own(name: str, then: Baseline, now: Baseline) -> bool:
    """Whether a site is shown by one attention implementation only."""
    other = then.environment.attention != now.environment.attention
    return other and name.endswith("pattern")


def _failing(
    then: Baseline, moved: tuple[Moved, ...], failures: Iterable[Check]
) -> Iterator[tuple[_Place, Finding]]:
    """Tell the identities that fail where nothing was told yet."""
    told = {one.site for one in moved if one.kind in ("changed", "unproven")}
    for check in failures:
        before = then.sites.get(check.site)
        place = _place(check.site)
        if check.site in told:
            continue
        if check.verdict != "unverified":
            yield place, _finding("identity-fails", check.describe(), [check.site])
        elif before is None or before.holds in PASSES:
            yield place, _finding("not-proven", check.describe(), [check.site])


def _states(then: Baseline, now: Baseline) -> Iterator[tuple[_Place, Finding]]:
    before, after = then.hidden_states, now.hidden_states
    last = f"hidden_states.{max(after.count - 1, 0)}"
    place = _place(last)
    if before.count != after.count:
        words = f"hidden_states has {after.count} entries, had {before.count}"
        yield place, _finding("hidden-states-moved", words, ["hidden_states"])
    if before.last != after.last:
        words = (
            f"{last}, the last entry, is {after.last}, was {before.last} "
            "(config.tie_last_hidden_states)"
        )
        yield place, _finding("hidden-states-moved", words, [last])
    if before.one != after.one:
        words = (
            f"output_hidden_states=1 gives {_entries(after.one, after.count)}, gave "
            f"{_entries(before.one, before.count)}"
        )
        yield place, _finding("hidden-states-moved", words, ["hidden_states"])


def _entries(shown: list[int], count: int) -> str:
    if len(shown) == count:
        return "every entry"
    return f"entries {shown}" if shown else "no entry"


def _returns(then: Baseline, now: Baseline) -> Iterator[Finding]:
    """Tell what modules return; a kernel that shows no pattern has less to give."""
    kernel = then.environment.attention != now.environment.attention
    for kind, before in then.returns.items():
        after = now.returns.get(kind)
        if after is None or before == after:
            continue
        if kernel and _proper(before) == _proper(after):
            continue
        words = f"{kind} returns {after}, returned {before}"
        yield _finding("returns-moved", words, [kind])


def _proper(returned: str) -> str:
    """Leave out what comes last in a tuple and may be a pattern."""
    return re.sub(r"(, (None|Tensor))+\)$", ")", returned)


def _hooks(then: Baseline, now: Baseline) -> Iterator[Finding]:
    came = [one for one in now.hooks.before if one not in then.hooks.before]
    went = [one for one in then.hooks.before if one not in now.hooks.before]
    for hooks, words in (
        (came, "on the model that was not there"),
        (went, "that was on the model is gone"),
        (now.hooks.left, "was left behind by the run"),
    ):
        if hooks:
            more = f" and {len(hooks) - 1} more" if len(hooks) > 1 else ""
            yield _finding("hooks-moved", f"{hooks[0]}{more} {words}", hooks)


def _bytes(then: Baseline, now: Baseline, allowances: Allowances) -> Iterator[Finding]:
    before, after = then.kept_bytes, now.kept_bytes
    if allowances.bytes is not None and after > before * (1 + allowances.bytes):
        words = (
            f"captures keep {after:,} bytes alive, {_times(after, before)} of the "
            f"baseline's {before:,}; allowed is {1 + allowances.bytes:.2f}"
        )
        yield _finding("more-bytes", words)


def _overhead(
    then: Baseline, now: Baseline, allowances: Allowances
) -> Iterator[Finding]:
    """Compare the near ends of both intervals: noise alone is no finding."""
    if allowances.overhead is None or then.overhead is None or now.overhead is None:
        return
    if now.overhead.low > then.overhead.high * (1 + allowances.overhead):
        words = (
            f"a captured pass takes {now.overhead.ratio:.2f} times the bare one "
            f"({now.overhead.low:.2f} to {now.overhead.high:.2f}), it took "
            f"{then.overhead.ratio:.2f} ({then.overhead.low:.2f} to "
            f"{then.overhead.high:.2f}); allowed is "
            f"{1 + allowances.overhead:.2f} times that"
        )
        yield _finding("more-time", words)


def _times(after: float, before: float) -> str:
    return f"{after / before:.2f} times" if before else "more than any number of times"


# -- what to know --------------------------------------------------------------


def _notes(
    then: Baseline, now: Baseline, moved: tuple[Moved, ...], allowances: Allowances
) -> Iterator[str]:
    before, after = then.environment.model_dump(), now.environment.model_dump()
    for name, value in before.items():
        if value != after[name]:
            yield f"{name} is {after[name]}, was {value}"
    if then.hidden_states.hooks != now.hidden_states.hooks:
        yield (
            f"a request for hidden states leaves {now.hidden_states.hooks} hooks of "
            f"transformers' own, it left {then.hidden_states.hooks}"
        )
    changed = {one.site for one in moved if one.kind == "changed"}
    for name, one in then.sites.items():
        other = now.sites.get(name)
        if other is not None and other.law != one.law and name not in changed:
            yield f"{name}: {other.law}, was {one.law}; that made no difference here"
    if allowances.bytes is not None and now.kept_bytes < then.kept_bytes:
        yield (
            f"captures keep {now.kept_bytes:,} bytes alive, fewer than the baseline's "
            f"{then.kept_bytes:,}"
        )
