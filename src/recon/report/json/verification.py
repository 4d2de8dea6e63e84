"""What ``recon verify`` and ``recon diff`` write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from recon import __version__
from recon.report.json.fields import (
    CheckFields,
    EnvironmentFields,
    Inputs,
    Number,
    check_fields,
    document,
    environment_fields,
    number,
)
from recon.shapes import Strict

if TYPE_CHECKING:
    from recon.differences import Difference
    from recon.results import Report


class HiddenStates(Strict):
    """The tuple of hidden states that the ledger rebuilds."""

    expected: int = Field(description="Entries: one for each block, and the last.")
    reconciled: int = Field(description="Entries whose check holds.")
    last: str = Field(description="What the last entry is, in a sentence.")


class Timing(Strict):
    """Wall-clock times after one warm-up pass; null where nothing was timed."""

    seconds: float | None = Field(description="Captured pass and all checks.")
    bare_seconds: float | None = Field(description="The same pass without capture.")
    ratio: float | None = Field(description="seconds over bare_seconds.")


class Verification(Strict):
    """What ``recon verify --json`` writes."""

    schema_version: Literal["1"] = Field(description="Version of this schema.")
    verdict: Literal["reconciled", "diverged"] = Field(
        description="reconciled only if there are checks and all pass."
    )
    recon: str = Field(description="Version of recon.")
    model: str = Field(description="The model as it was asked for.")
    inputs: Inputs
    environment: EnvironmentFields
    levels: list[str] = Field(description="Levels of proof that were asked for.")
    hidden_states: HiddenStates
    notes: list[str] = Field(description="What to know about the model or the run.")
    timing: Timing
    checks: list[CheckFields] = Field(description="Every check, shallowest first.")


class ApartFields(Strict):
    """One site in two runs."""

    site: str = Field(description="The site.")
    equal: bool = Field(description="Whether the two tensors are bit-equal.")
    max_abs: Number = Field(description="Largest absolute difference.")
    relative: Number = Field(
        description="Root mean square of the difference over that of the first run."
    )


class DifferenceFields(Strict):
    """What ``recon diff --json`` writes."""

    schema_version: Literal["1"] = Field(description="Version of this schema.")
    verdict: Literal["equal", "rounding", "diverged", "unverified"] = Field(
        description="equal and rounding are right; the others are findings."
    )
    recon: str = Field(description="Version of recon.")
    names: list[str] = Field(description="The two runs as they were asked for.")
    conclusion: str = Field(description="What the difference is, in a sentence.")
    first: str | None = Field(description="First site that differs, or null.")
    sites: list[ApartFields] = Field(description="In order of computation.")
    certified: list[list[CheckFields] | None] = Field(
        description="Each run's own checks at level certify; null without weights."
    )


def verification_text(report: Report, *, model: str, source: str) -> str:
    """Return a report as JSON."""
    rows, tokens = (*report.shape, None, None)[:2]
    return document(
        Verification(
            schema_version="1",
            verdict=report.verdict,
            recon=__version__,
            model=model,
            inputs=Inputs(source=source, batch=rows, tokens=tokens),
            environment=environment_fields(report),
            levels=list(report.levels),
            hidden_states=_states(report),
            notes=list(report.notes),
            timing=_timing(report),
            checks=[check_fields(check) for check in report.checks],
        )
    )


def difference_text(found: Difference) -> str:
    """Return the difference of two runs as JSON."""
    reports = (found.first_report, found.second_report)
    return document(
        DifferenceFields(
            schema_version="1",
            verdict=found.verdict,
            recon=__version__,
            names=list(found.names),
            conclusion=found.conclusion(),
            first=None if found.first is None else str(found.first.site),
            sites=[
                ApartFields(
                    site=str(apart.site),
                    equal=apart.equal,
                    max_abs=number(apart.max_abs) or 0.0,
                    relative=number(apart.relative) or 0.0,
                )
                for apart in found.sites
            ],
            certified=[
                None
                if report is None
                else [check_fields(check) for check in report.checks]
                for report in reports
            ],
        )
    )


def _states(report: Report) -> HiddenStates:
    checks = [check for check in report.checks if check.identity == "hidden_states"]
    return HiddenStates(
        expected=report.depth + 1,
        reconciled=sum(check.passed for check in checks),
        last=report.last_state,
    )


def _timing(report: Report) -> Timing:
    took, bare = report.seconds, report.bare_seconds
    ratio = took / bare if took is not None and bare else None
    return Timing(seconds=took, bare_seconds=bare, ratio=ratio)
