"""Every error that recon raises on purpose; each carries its facts as attributes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recon.compare import Check


class ReconError(Exception):
    """Base of all errors of recon; the message is one line a user can act on."""


class UsageError(ReconError):
    """The request cannot be carried out as it stands (exit code 2 on the CLI)."""


class UnknownSiteError(UsageError, KeyError):
    """A name that is no site, in any of the accepted vocabularies."""

    def __init__(self, name: str, known: Iterable[str] = ()) -> None:
        # A name may stand for a site in two vocabularies.
        near = get_close_matches(name, list(dict.fromkeys(known)), n=3, cutoff=0.6)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        self.name, self.near = name, near
        self.text = f"unknown site {name!r}{hint} (recon sites lists all of them)"
        super().__init__(self.text)

    def __str__(self) -> str:
        # KeyError would print the repr of the message.
        return self.text


class UnsupportedError(UsageError):
    """A model or option that recon does not check; named, never half-checked."""


class CaptureError(ReconError):
    """A capture that did not yield what was asked for."""


class BudgetError(CaptureError):
    """Keeping one more tensor would exceed the memory budget."""

    def __init__(self, place: str, held: int, wanted: int, budget: int) -> None:
        self.place, self.held, self.wanted, self.budget = place, held, wanted, budget
        super().__init__(
            f"{place}: keeping {wanted:,} more bytes would exceed the budget of "
            f"{budget:,} ({held:,} held); narrow sites= or positions=, or raise budget="
        )


class LeakError(ReconError, AssertionError):
    """Memory or hooks of a capture stayed; says what, and who holds it."""

    def __init__(self, findings: Sequence[str]) -> None:
        self.findings = tuple(findings)
        super().__init__(f"{len(findings)} leaks:\n" + "\n".join(findings))


class ReconciliationError(ReconError, AssertionError):
    """Captures and model do not agree; names every failing site."""

    def __init__(self, failures: Sequence[Check], problems: Sequence[str] = ()) -> None:
        self.failures, self.problems = tuple(failures), tuple(problems)
        lines = [*self.problems, *(check.describe() for check in failures)]
        super().__init__(f"{len(lines)} not reconciled:\n" + "\n".join(lines))
