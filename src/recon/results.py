"""What a verification found, as data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NoReturn

from recon.compare import Check
from recon.display import Displayed
from recon.errors import ReconciliationError, UsageError
from recon.facts import Environment
from recon.trace import Trace


@dataclass(frozen=True)
class Report(Displayed):
    """What a verification found: the checks, shallowest first, and what to know.

    It cannot be used as a truth value: call ``check()``, which raises, or read
    ``verdict``. No check at all is a failure.
    """

    environment: Environment
    levels: tuple[str, ...]
    shape: tuple[int, ...]
    depth: int
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()
    last_state: str = ""
    seconds: float | None = None
    bare_seconds: float | None = None

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that do not hold, shallowest first."""
        return tuple(check for check in self.checks if not check.passed)

    @property
    def verdict(self) -> Literal["reconciled", "diverged"]:
        """``reconciled`` if there are checks and all of them hold."""
        return "reconciled" if self.checks and not self.failures else "diverged"

    def check(self) -> Report:
        """Return the report; raise ReconciliationError, naming every failing site."""
        if not self.checks:
            raise ReconciliationError((), ["no check was made"])
        if self.failures:
            raise ReconciliationError(self.failures)
        return self

    def __repr__(self) -> str:
        count, first = len(self.failures), ""
        if self.failures:
            first = f", {count} fail, first {self.failures[0].site}"
        return (
            f"Report({self.verdict}, {len(self.checks)} checks{first}; "
            f"levels {', '.join(self.levels)})"
        )

    def __bool__(self) -> NoReturn:
        raise TypeError(
            "a report is neither true nor false: call report.check(), or read "
            "report.verdict"
        )


def report(
    trace: Trace,
    levels: Sequence[str],
    checks: Iterable[Check],
    notes: Iterable[str] = (),
) -> Report:
    """Put the checks of one pass together with what it ran on."""
    return Report(
        environment=trace.facts.environment,
        levels=tuple(levels),
        shape=trace.facts.shape,
        depth=trace.facts.depth,
        checks=tuple(checks),
        notes=tuple(dict.fromkeys([*notes, *trace.facts.notes])),
        last_state=_last_state(trace),
    )


def _last_state(trace: Trace) -> str:
    """Say what the last hidden state is, which is where most comparisons go wrong."""
    depth = trace.facts.depth
    last = f"h.{depth - 1}.resid_post"
    if trace.facts.tied_last:
        return (
            f"hidden_states.{depth} is ln_f({last}), after the final LayerNorm: "
            f"{last} itself is in no entry"
        )
    return (
        f"hidden_states.{depth} is {last} itself, before ln_f "
        "(config.tie_last_hidden_states is False)"
    )


def merge(reports: Sequence[Report]) -> Report:
    """Join the reports of several batches on one model into one.

    Of each site, identity and level it keeps the worst check, and counts all rows that
    were left out. ``shape`` is all rows by the longest; times are added up.
    """
    if not reports or len({(r.environment, r.levels, r.depth) for r in reports}) > 1:
        raise UsageError("merge takes reports of one model, run in one way")
    if len(reports) == 1:
        return reports[0]
    worst: dict[tuple[str, str, str], Check] = {}
    place: dict[tuple[str, str, str], int] = {}
    for report in reports:
        for index, check in enumerate(report.checks):
            key = check.site, check.identity, check.level
            place[key] = min(index, place.get(key, index))
            held = worst.get(key)
            rows = check.excluded + (held.excluded if held else 0)
            graver = max(held or check, check, key=lambda one: one.severity)
            worst[key] = replace(graver, excluded=rows)
    return replace(
        reports[0],
        shape=_all_rows([report.shape for report in reports]),
        checks=tuple(worst[key] for key in sorted(worst, key=lambda k: place[k])),
        notes=tuple(dict.fromkeys(note for r in reports for note in r.notes)),
        seconds=_sum(r.seconds for r in reports),
        bare_seconds=_sum(r.bare_seconds for r in reports),
    )


def _all_rows(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    known = [shape for shape in shapes if shape]
    return (sum(s[0] for s in known), max(s[1] for s in known)) if known else ()


def _sum(times: Iterable[float | None]) -> float | None:
    known = list(times)
    return None if None in known else sum(t for t in known if t is not None)
