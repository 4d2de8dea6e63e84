"""What a notebook shows of a report, a trace or a finding: a few lines of HTML.

A fragment has no page around it and must be readable on any: text has the page's own
colour, and what is coloured brings its ground along.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import singledispatch
from itertools import groupby

from recon.auditing.findings import AuditReport, Finding
from recon.baseline.findings import BaselineReport
from recon.baseline.findings import Finding as BaselineFinding
from recon.compare import Check
from recon.differences import Difference
from recon.profiling.results import Profile
from recon.report.audit import verdict_words as audit_words
from recon.report.foreign import visible
from recon.report.html.laws import law
from recon.report.html.page import Rows, render
from recon.report.profile import verdict_words as profile_words
from recon.report.rules import gravest_first
from recon.report.words import arithmetic, installed, verdict_words
from recon.results import Report
from recon.sites import Site
from recon.trace import Trace

# A notebook is read from top to bottom: of a long list the rest is counted.
MOST_LISTED = 5


@dataclass(frozen=True)
class Fragment:
    """A verdict and its words, then facts, then a list or a table; each may be empty.

    ``kind`` is good, bad, odd or plain, and decides the colour behind the verdict.
    """

    verdict: str
    kind: str
    words: str
    facts: Rows = ()
    items: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    table: tuple[tuple[str, ...], ...] = ()


def fragment(thing: object) -> str:
    """Return what a notebook shows of a report, a trace or a finding, as HTML."""
    shown = _fragment(thing)
    listed = tuple(map(visible, shown.items[:MOST_LISTED]))
    return render(
        "fragment",
        it=shown,
        words=visible(shown.words),
        facts=[(name, visible(said)) for name, said in shown.facts],
        items=listed,
        more=len(shown.items) - len(listed),
    )


@singledispatch
def _fragment(thing: object) -> Fragment:
    raise TypeError(f"{type(thing).__name__} has no fragment")


def _of(good: bool) -> str:
    return "good" if good else "bad"


@_fragment.register
def _(thing: Report) -> Fragment:
    verdict, words = verdict_words(thing)
    return Fragment(
        verdict,
        _of(thing.verdict == "reconciled"),
        words,
        facts=[
            ("run", arithmetic(thing.environment)),
            ("environment", installed(thing.environment)),
        ],
        items=tuple(check.describe() for check in thing.failures),
    )


@_fragment.register
def _(thing: AuditReport) -> Fragment:
    verdict, words = audit_words(thing)
    return Fragment(
        verdict,
        _of(thing.verdict == "clean"),
        words,
        facts=[("audited", f"{thing.target}, on {thing.model}")],
        items=tuple(
            f"{one.severity} {one.rule.code} {one.rule.name}: {one.message}"
            for one in gravest_first(thing.findings)
        ),
    )


@_fragment.register
def _(thing: BaselineReport) -> Fragment:
    return Fragment(
        thing.verdict.upper(),
        _of(thing.verdict != "changed"),
        thing.conclusion(),
        facts=[("baseline", thing.file)],
        items=tuple(
            f"{one.rule.code} {one.rule.name}: {one.message}" for one in thing.findings
        ),
    )


@_fragment.register
def _(thing: Difference) -> Fragment:
    return Fragment(
        thing.verdict.upper(),
        _of(thing.verdict in ("equal", "rounding")),
        thing.conclusion(),
        facts=list(zip("AB", thing.names, strict=True)),
    )


@_fragment.register
def _(thing: Profile) -> Fragment:
    verdict, words = profile_words(thing)
    cost, kept = thing.overhead, thing.memory.held
    return Fragment(
        verdict,
        _of(thing.verdict == "clean"),
        words,
        facts=[
            ("profiled", f"{thing.target}, of {thing.model}"),
            (
                "time",
                f"{cost.ratio:.3f} of the bare pass [{cost.low:.3f}, {cost.high:.3f}]",
            ),
            ("kept", f"{kept:,} bytes in {len(thing.memory.sites)} captures"),
        ],
        items=thing.findings,
    )


@_fragment.register
def _(thing: Check) -> Fragment:
    kind = _of(thing.passed) if thing.verdict != "unverified" else "odd"
    facts = [("law", said)] if (said := law(thing.identity)) else []
    return Fragment(thing.verdict, kind, thing.describe(), facts=facts)


@_fragment.register
def _(thing: Finding) -> Fragment:
    kind = {"error": "bad", "warning": "odd", "note": "plain"}[thing.severity]
    return Fragment(
        f"{thing.rule.code} {thing.rule.name}",
        kind,
        thing.message,
        facts=[
            ("severity", thing.severity),
            ("to mend it", thing.mend or thing.rule.mend),
        ],
        items=thing.places,
    )


@_fragment.register
def _(thing: BaselineFinding) -> Fragment:
    return Fragment(
        f"{thing.rule.code} {thing.rule.name}",
        "bad",
        thing.message,
        facts=[("to mend it", thing.rule.mend)],
        items=thing.places,
    )


# -- a trace -----------------------------------------------------------------------


@_fragment.register
def _(thing: Trace) -> Fragment:
    state = "" if thing.complete else f"; incomplete: {thing.failure}"
    return Fragment(
        "Trace",
        "plain" if thing.complete else "bad",
        f"{len(thing)} sites, {thing.nbytes:,} bytes held{state}",
        facts=[("run", arithmetic(thing.facts.environment))],
        heads=("site", "blocks", "shape", ""),
        table=tuple(_rows(thing)),
    )


def _rows(trace: Trace) -> Iterable[tuple[str, ...]]:
    """Yield a row for each place in a block, shared by the blocks that are alike."""
    alike: dict[tuple[str, str, str], list[int | None]] = {}
    for place in trace.sites:
        name = place.part if place.layer is None else f"h.*.{place.part}"
        origin = trace.origin(place) or ""
        row = name, _shape(trace, place, origin), origin
        alike.setdefault(row, []).append(place.layer)
    for (name, shape, whence), layers in alike.items():
        yield name, _ranges([one for one in layers if one is not None]), shape, whence


def _shape(trace: Trace, place: Site, origin: str) -> str:
    """Say a tensor's shape, unless it would have to be computed for that."""
    if origin == "derived":
        return "on demand"
    return " x ".join(map(str, trace[place].shape))


def _ranges(numbers: Iterable[int]) -> str:
    """Say numbers shortly: 0-3, 5."""
    runs = groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0])
    spans = [[number for _, number in run] for _, run in runs]
    return ", ".join(
        str(span[0]) if len(span) == 1 else f"{span[0]}-{span[-1]}" for span in spans
    )
