"""What may be found when a baseline is checked, and the report that carries it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NoReturn, TypeAlias

from recon.auditing.rules import Rule
from recon.baseline.document import Baseline
from recon.display import Displayed
from recon.errors import ReconError

Kind: TypeAlias = Literal["rounding", "follows", "weights", "changed", "unproven"]
Verdict: TypeAlias = Literal["equal", "rounding", "changed"]

RULES = (
    Rule(
        "RB101",
        "site-changed",
        "error",
        "A site is not what it was, by more than two correct runs can differ.",
        "Look at what the model computes there; if it is meant, accept it with "
        "recon baseline check --update.",
    ),
    Rule(
        "RB102",
        "site-vanished",
        "error",
        "A site of the baseline is no longer there.",
        "Look for a module that was removed, renamed or no longer runs.",
    ),
    Rule(
        "RB103",
        "site-appeared",
        "error",
        "There is a site that the baseline does not have.",
        "If it is meant, record it with recon baseline check --update.",
    ),
    Rule(
        "RB104",
        "weights-differ",
        "error",
        "The model has other weights; what it computes with them is judged apart.",
        "Load the weights that were recorded, or accept the new ones with --update.",
    ),
    Rule(
        "RB105",
        "not-proven",
        "error",
        "A site moved, and that it is only rounding cannot be proven.",
        "The reason says what is missing; on the machine of the baseline bits compare.",
    ),
    Rule(
        "RB106",
        "identity-fails",
        "error",
        "The run is wrong by itself: an identity between its captures fails.",
        "recon verify shows all of them.",
    ),
    Rule(
        "RB107",
        "hidden-states-moved",
        "error",
        "output_hidden_states gives other entries, or its last entry is another site.",
        "See config.tie_last_hidden_states, and the version of transformers.",
    ),
    Rule(
        "RB108",
        "hooks-moved",
        "error",
        "There are other hooks on the model, or the run left some behind.",
        "Remove the handle of each hook that was added.",
    ),
    Rule(
        "RB109",
        "more-bytes",
        "error",
        "The captures keep more memory alive than the baseline allows.",
        "recon profile shows the bytes by site.",
    ),
    Rule(
        "RB110",
        "more-time",
        "error",
        "Capture takes more time, for that of the bare pass, than is allowed.",
        "Measure on a quiet machine; recon profile shows where it goes.",
    ),
    Rule(
        "RB111",
        "returns-moved",
        "warning",
        "A kind of module returns something else: code that hooks it must be adapted.",
        "Take output[0] only where the output is a tuple.",
    ),
    Rule(
        "RB112",
        "nothing-checked",
        "error",
        "Nothing was compared; that is no pass.",
        "Record the baseline anew.",
    ),
)
_RULE = {name: rule for rule in RULES for name in (rule.code, rule.name)}


def rule(word: str) -> Rule:
    """Return the rule with this code or name."""
    return _RULE[word]


@dataclass(frozen=True)
class Moved:
    """One site that is not bit-equal to the baseline's.

    ``kind`` says how: ``rounding`` began here (all inputs are bit-equal, and the
    difference is within the bounds of both runs), it ``follows`` from what moved before
    (by the same law, which both runs keep), its own ``weights`` differ, it ``changed``,
    or that it is rounding is ``unproven``. ``distance`` estimates the length of the
    difference over that of the tensor; ``ratio`` is the difference of the projections
    over what is allowed, None where the inputs are not bit-equal.
    """

    site: str
    kind: Kind
    distance: float
    ratio: float | None
    why: str


@dataclass(frozen=True)
class Finding(Displayed):
    """One cause, told once: the rule, the first place, and all others."""

    rule: Rule
    message: str
    places: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Finding({self.rule.code} {self.rule.name}, {self.message!r})"


@dataclass(frozen=True)
class BaselineReport(Displayed):
    """What moved since a baseline was recorded, first changed site first.

    It cannot be used as a truth value: call ``check()``, which raises, or read
    ``verdict``. ``notes`` say what is new about the environment; ``wrong`` why this run
    must not become a baseline itself, if so.
    """

    file: str
    then: Baseline
    now: Baseline
    moved: tuple[Moved, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    wrong: str = ""

    @property
    def verdict(self) -> Verdict:
        """``equal`` to the bit, ``rounding``, or ``changed`` if anything was found."""
        if self.findings:
            return "changed"
        return "rounding" if self.moved else "equal"

    @property
    def equal(self) -> int:
        """Number of sites that are bit-equal."""
        shared = sum(name in self.now.sites for name in self.then.sites)
        return shared - len(self.moved)

    def conclusion(self) -> str:
        """Say in one sentence what moved."""
        if self.findings:
            first = self.findings[0]
            more = len(self.findings) - 1
            others = f" (and {more} more findings)" if more else ""
            return f"{first.message}{others}"
        if not self.moved:
            return f"all {self.equal} sites are bit-equal to the baseline"
        first_moved = self.moved[0]
        return (
            f"rounding that began at {first_moved.site} and grew from there: "
            f"{len(self.moved)} sites moved, {self.equal} are bit-equal"
        )

    def check(self) -> BaselineReport:
        """Return the report; raise BaselineError, naming every finding."""
        if self.findings:
            raise BaselineError(self)
        return self

    def __repr__(self) -> str:
        return f"BaselineReport({self.verdict}, {self.file!r}: {self.conclusion()})"

    def __bool__(self) -> NoReturn:
        raise TypeError(
            "a report is neither true nor false: call report.check(), or read "
            "report.verdict"
        )


class BaselineError(ReconError, AssertionError):
    """A run is not what its baseline says; names every finding."""

    def __init__(self, report: BaselineReport) -> None:
        self.report = report
        lines = [f"{f.rule.code} {f.rule.name}: {f.message}" for f in report.findings]
        count = f"{len(lines)} finding{'s' if len(lines) > 1 else ''}"
        super().__init__(f"{report.file}: {count}:\n" + "\n".join(lines))
