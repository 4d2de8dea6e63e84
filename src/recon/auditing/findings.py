"""What an audit found, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NoReturn, TypeAlias

from recon.auditing.rules import Rule, Severity
from recon.display import Displayed
from recon.errors import ReconError
from recon.facts import Environment

Status: TypeAlias = Literal["right", "wrong", "unclaimed"]


@dataclass(frozen=True)
class Finding(Displayed):
    """One cause, told once: the rule, the places where it shows, and the evidence.

    ``places`` are the names of the tensors (or modules) concerned, as the code names
    them; ``sites`` what those names promise, ``found`` what the tensors really are,
    each parallel to ``places`` or empty. ``run`` names the run in which it showed;
    ``traceback`` is that of the audited code, where it raised. ``evidence`` holds
    figures by name, for programs.
    """

    rule: Rule
    message: str
    severity: Severity
    places: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()
    found: tuple[str, ...] = ()
    run: str = ""
    mend: str = ""
    traceback: str = ""
    evidence: Mapping[str, float | int | str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Finding({self.rule.code} {self.rule.name}, {self.message!r})"


@dataclass(frozen=True)
class Judged:
    """One returned tensor: what its name promises, and what it is, in a sentence.

    ``by`` says what a capture that recon did not see taken was judged by: ``certify``,
    the captures that the model makes it of, or the model's own ``run``; else empty.
    """

    name: str
    status: Status
    claim: str
    sentence: str
    shape: tuple[int, ...]
    dtype: str
    by: Literal["", "certify", "run"] = ""


@dataclass(frozen=True)
class AuditReport(Displayed):
    """What an audit found: findings, cause first, and every tensor of the first run.

    It cannot be used as a truth value: call ``check()``, which raises, or read
    ``verdict``. ``runs`` names what was run; ``ignored`` counts findings that were left
    out on request.
    """

    target: str
    model: str
    environment: Environment
    findings: tuple[Finding, ...]
    tensors: tuple[Judged, ...]
    runs: tuple[str, ...]
    strict: bool = False
    ignored: int = 0
    seconds: float | None = None
    file: str = ""
    line: int = 0

    @property
    def counting(self) -> tuple[Finding, ...]:
        """The findings that make the verdict; notes count only if ``strict``."""
        return tuple(f for f in self.findings if self.strict or f.severity != "note")

    @property
    def verdict(self) -> Literal["clean", "findings"]:
        """``clean`` if nothing above a note was found."""
        return "findings" if self.counting else "clean"

    def check(self) -> AuditReport:
        """Return the report; raise AuditError, naming every finding that counts."""
        if self.counting:
            raise AuditError(self.counting)
        return self

    def __repr__(self) -> str:
        found = ", ".join(dict.fromkeys(f.rule.code for f in self.findings))
        codes = f" ({found})" if found else ""
        return (
            f"AuditReport({self.verdict}, {len(self.findings)} findings{codes}, "
            f"{len(self.tensors)} tensors of {self.target!r})"
        )

    def __bool__(self) -> NoReturn:
        raise TypeError(
            "a report is neither true nor false: call report.check(), or read "
            "report.verdict"
        )


class AuditError(ReconError, AssertionError):
    """An audit found something; names every finding."""

    def __init__(self, findings: tuple[Finding, ...]) -> None:
        self.findings = findings
        lines = [f"{f.rule.code} {f.rule.name}: {f.message}" for f in findings]
        super().__init__(f"{len(lines)} findings:\n" + "\n".join(lines))
