"""What ``recon baseline check`` writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from recon import __version__
from recon.baseline.document import Setting
from recon.report.json.fields import Foreign, Number, document, number
from recon.shapes import Strict

if TYPE_CHECKING:
    from recon.baseline.findings import BaselineReport


class MovedFields(Strict):
    """One site that is not bit-equal to the baseline's."""

    site: str = Field(description="The site.")
    kind: Literal["rounding", "follows", "weights", "changed", "unproven"] = Field(
        description="How it moved: rounding began here, it follows from what moved "
        "before, its weights differ, it changed, or its rounding is not proven."
    )
    distance: Number = Field(
        description='Estimated length of the difference over that of the tensor; "inf" '
        "where they cannot be compared."
    )
    ratio: Number | None = Field(
        description="Difference of the projections over what rounding allows; null "
        "where the inputs moved."
    )
    why: str = Field(description="Why it is of that kind.")


class BaselineFindingFields(Strict):
    """One thing that the gate does not let pass."""

    code: str = Field(description="The rule's code: RB101.")
    name: str = Field(description="The rule's name: site-changed.")
    message: str = Field(description="What was found, in a sentence.")
    places: list[str] = Field(description="Sites, weights or hooks, the first first.")
    mend: str = Field(description="What to do.")


class BaselineCheckFields(Strict):
    """What ``recon baseline check --json`` writes."""

    schema_version: Literal["1"] = Field(description="Version of this schema.")
    verdict: Literal["equal", "rounding", "changed"] = Field(
        description="equal and rounding pass; changed if there is any finding."
    )
    recon: str = Field(description="Version of recon.")
    file: Foreign = Field(description="The baseline, as it was asked for.")
    model: Foreign = Field(description="The model as it was asked for.")
    conclusion: str = Field(description="What moved, in a sentence.")
    then: Setting = Field(description="Where and with what it was recorded.")
    now: Setting = Field(description="Where and with what it was checked.")
    equal: int = Field(description="Sites that are bit-equal.")
    moved: list[MovedFields] = Field(
        description="Other sites, in order of computation."
    )
    findings: list[BaselineFindingFields] = Field(
        description="First changed site first; what concerns no site comes last."
    )
    notes: list[str] = Field(description="What else is new, and lets the gate pass.")


def baseline_text(report: BaselineReport) -> str:
    """Return a check of a baseline as JSON."""
    return document(
        BaselineCheckFields(
            schema_version="1",
            verdict=report.verdict,
            recon=__version__,
            file=report.file,
            model=report.now.model.name,
            conclusion=report.conclusion(),
            then=report.then.environment,
            now=report.now.environment,
            equal=report.equal,
            moved=[
                MovedFields(
                    site=one.site,
                    kind=one.kind,
                    distance=number(one.distance) or 0.0,
                    ratio=number(one.ratio),
                    why=one.why,
                )
                for one in report.moved
            ],
            findings=[
                BaselineFindingFields(
                    code=one.rule.code,
                    name=one.rule.name,
                    message=one.message,
                    places=list(one.places),
                    mend=one.rule.mend,
                )
                for one in report.findings
            ],
            notes=list(report.notes),
        )
    )
