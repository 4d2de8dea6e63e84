"""What ``recon audit`` and ``recon explain`` write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from recon import __version__
from recon.report.foreign import encodable, plain
from recon.report.json.fields import (
    Foreign,
    RunFields,
    document,
    dtype,
    run_fields,
)
from recon.report.rules import gravest_first, page
from recon.shapes import Strict

if TYPE_CHECKING:
    from recon.auditing.findings import AuditReport, Finding, Judged
    from recon.auditing.rules import Rule


class FindingFields(Strict):
    """One cause, told once, and the places where it shows."""

    code: str = Field(description="The rule's code: RC101.")
    name: str = Field(description="The rule's name: wrong-site.")
    severity: Literal["error", "warning", "note"] = Field(
        description="How grave it is here, which may differ from the rule's usual."
    )
    counts: bool = Field(description="Whether it makes the verdict.")
    message: Foreign = Field(description="What is wrong, in a sentence.")
    places: list[Foreign] = Field(
        description="Names of the tensors or modules, as the code names them."
    )
    sites: list[Foreign] = Field(
        description="What those names promise, in the order of places; or empty."
    )
    found: list[Foreign] = Field(
        description="What the tensors really are, in the order of places; or empty."
    )
    run: Foreign = Field(description="The run in which it showed, or empty.")
    evidence: dict[str, int | float | str] = Field(
        description='Figures by name; "inf", "-inf" and "nan" are spelt out.'
    )
    mend: Foreign = Field(description="A way to mend it.")
    traceback: Foreign = Field(description="Of the audited code, where it raised.")


class JudgedFields(Strict):
    """One tensor that the code returned in the first run."""

    name: Foreign = Field(description="Its name, as the code has it.")
    status: Literal["right", "wrong", "unclaimed"] = Field(
        description="unclaimed: its name promises nothing that recon can read."
    )
    claim: Foreign = Field(description="The site that its name promises, or empty.")
    sentence: Foreign = Field(description="What it is.")
    shape: list[int] = Field(description="Its shape.")
    dtype: str = Field(description="Its dtype, float32 for one.")
    by: Literal["", "certify", "run"] = Field(
        description="What a capture was judged by where recon did not see it taken: "
        "certify, by the captures that the model makes it of, with a proven bound; "
        "run, by the model's own run. Else empty."
    )


class AuditFields(Strict):
    """What ``recon audit --json`` writes."""

    schema_version: Literal["1"] = Field(description="Version of this schema.")
    verdict: Literal["clean", "findings"] = Field(
        description="clean if no finding counts."
    )
    recon: str = Field(description="Version of recon.")
    target: Foreign = Field(description="What was audited, as it was asked for.")
    file: Foreign = Field(description="The file that it is in, or empty.")
    line: int = Field(description="The line of the function in file; 0: not known.")
    model: Foreign = Field(description="The model as it was asked for.")
    environment: RunFields
    strict: bool = Field(description="Whether notes count, too.")
    ignored: int = Field(description="Findings left out on request.")
    seconds: float | None = Field(description="How long the audit took, or null.")
    runs: list[Foreign] = Field(description="The runs that were made.")
    findings: list[FindingFields] = Field(description="Gravest first, then by cause.")
    tensors: list[JudgedFields] = Field(description="Every tensor of the first run.")


class RuleFields(Strict):
    """One rule of an audit or of a baseline."""

    code: str = Field(description="Its code, which is stable: RC101.")
    name: str = Field(description="Its name: wrong-site.")
    severity: Literal["error", "warning", "note"] = Field(
        description="How grave a finding of it usually is."
    )
    meaning: str = Field(description="What a finding of it means.")
    mend: str = Field(description="How it is usually mended.")
    page: str = Field(description="Its page, in Markdown.")


class RulesFields(Strict):
    """What ``recon explain --json`` writes."""

    schema_version: Literal["1"] = Field(description="Version of this schema.")
    recon: str = Field(description="Version of recon.")
    rules: list[RuleFields] = Field(
        description="Those of audits first, each in the order of their codes."
    )


def audit_text(report: AuditReport) -> str:
    """Return an audit as JSON."""
    return document(
        AuditFields(
            schema_version="1",
            verdict=report.verdict,
            recon=__version__,
            target=report.target,
            file=report.file,
            line=report.line,
            model=report.model,
            environment=RunFields(**run_fields(report.environment)),
            strict=report.strict,
            ignored=report.ignored,
            seconds=report.seconds,
            runs=list(report.runs),
            findings=list(_findings(report)),
            tensors=[_judged(tensor) for tensor in report.tensors],
        )
    )


def rules_text(rules: Iterable[Rule]) -> str:
    """Return rules, with their pages, as JSON."""
    return document(
        RulesFields(
            schema_version="1",
            recon=__version__,
            rules=[RuleFields(**vars(rule), page=page(rule)) for rule in rules],
        )
    )


def _findings(report: AuditReport) -> Iterator[FindingFields]:
    counting = {id(finding) for finding in report.counting}
    for finding in gravest_first(report.findings):
        yield FindingFields(
            code=finding.rule.code,
            name=finding.rule.name,
            severity=finding.severity,
            counts=id(finding) in counting,
            message=finding.message,
            places=list(finding.places),
            sites=list(finding.sites),
            found=list(finding.found),
            run=finding.run,
            evidence=_evidence(finding),
            mend=finding.mend or finding.rule.mend,
            traceback=finding.traceback,
        )


def _evidence(finding: Finding) -> dict[str, int | float | str]:
    return {encodable(name): plain(value) for name, value in finding.evidence.items()}


def _judged(tensor: Judged) -> JudgedFields:
    return JudgedFields(
        name=tensor.name,
        status=tensor.status,
        claim=tensor.claim,
        sentence=tensor.sentence,
        shape=list(tensor.shape),
        dtype=dtype(tensor.dtype),
        by=tensor.by,
    )
