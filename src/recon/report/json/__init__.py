"""A report for programs: JSON with a stable schema, described in docs/json.md.

Fields may be added within a ``schema_version``; none changes its meaning or goes.
"""

from __future__ import annotations

from pydantic import BaseModel

from recon.baseline.document import Baseline
from recon.report.json.audit import AuditFields, RulesFields, audit_text, rules_text
from recon.report.json.baseline import BaselineCheckFields, baseline_text
from recon.report.json.fields import text_of
from recon.report.json.listing import (
    InfoFields,
    Sites,
    description_text,
    vocabulary_text,
)
from recon.report.json.profile import ProfileFields, profile_text
from recon.report.json.verification import (
    DifferenceFields,
    Verification,
    difference_text,
    verification_text,
)

__all__ = [
    "DOCUMENTS",
    "audit_text",
    "baseline_text",
    "description_text",
    "difference_text",
    "profile_text",
    "rules_text",
    "schema_text",
    "verification_text",
    "vocabulary_text",
]

DOCUMENTS: dict[str, type[BaseModel]] = {
    "verify": Verification,
    "sites": Sites,
    "diff": DifferenceFields,
    "audit": AuditFields,
    "profile": ProfileFields,
    "explain": RulesFields,
    "baseline": Baseline,
    "baseline-check": BaselineCheckFields,
    "info": InfoFields,
}


def schema_text(name: str) -> str:
    """Return the JSON schema of one command's output, as kept in docs/schema."""
    return text_of(DOCUMENTS[name].model_json_schema())
