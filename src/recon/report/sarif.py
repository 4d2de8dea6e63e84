"""An audit as SARIF 2.1.0, which editors and code hosts show beside the code."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from recon import __version__
from recon.report.audit import abbreviated, tally
from recon.report.foreign import encodable, plain, visible
from recon.report.rules import gravest_first, page

if TYPE_CHECKING:
    from recon.auditing.findings import AuditReport, Finding
    from recon.auditing.rules import Rule

SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/"
    "sarif-schema-2.1.0.json"
)


def sarif_text(report: AuditReport) -> str:
    """Return an audit as SARIF: one result a finding, at the audited function."""
    findings = gravest_first(report.findings)
    rules = list({finding.rule.code: finding.rule for finding in findings}.values())
    run = {
        "tool": {
            "driver": {
                "name": "recon",
                "version": __version__,
                "rules": [_rule(rule) for rule in rules],
            }
        },
        "invocations": [{"executionSuccessful": True}],
        "results": [_result(report, finding, rules) for finding in findings],
        "columnKind": "unicodeCodePoints",
        "properties": {
            "target": encodable(report.target),
            "model": encodable(report.model),
            "verdict": report.verdict,
            "counted": tally(report),
        },
    }
    document = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def _rule(rule: Rule) -> dict[str, Any]:
    text = page(rule)
    return {
        "id": rule.code,
        "name": rule.name,
        "shortDescription": {"text": rule.meaning},
        "help": {"text": text, "markdown": text},
        "defaultConfiguration": {"level": rule.severity},
    }


def _result(
    report: AuditReport, finding: Finding, rules: Sequence[Rule]
) -> dict[str, Any]:
    location = _location(report, finding)
    properties: dict[str, Any] = {
        "run": encodable(finding.run),
        "evidence": {
            encodable(name): plain(value) for name, value in finding.evidence.items()
        },
    }
    if finding.traceback:
        properties["traceback"] = encodable(finding.traceback)
    return {
        "ruleId": finding.rule.code,
        "ruleIndex": rules.index(finding.rule),
        "level": finding.severity,
        "message": {"text": _literal(_message(finding))},
        "locations": [location] if location else [],
        "properties": properties,
    }


def _message(finding: Finding) -> str:
    parts = [visible(finding.message)]
    if finding.places:
        parts.append(f"At {abbreviated(finding.places, 'places')}")
    parts.append(visible(finding.mend or finding.rule.mend))
    return " ".join(part if part.endswith(".") else f"{part}." for part in parts)


def _literal(text: str) -> str:
    """Keep names in a message from being read as its placeholders and links."""
    text = re.sub(r"\{(\d+)\}", r"{{\1}}", text)
    return text.replace("[", "\\[") if "](" in text else text


def _location(report: AuditReport, finding: Finding) -> dict[str, Any]:
    """Say where: the function in its file, and in it the names that are concerned."""
    location: dict[str, Any] = {}
    if report.file:
        location["physicalLocation"] = _physical(report.file, report.line)
    named = [_logical(report, place, site) for place, site in _pairs(finding)]
    if named:
        location["logicalLocations"] = named
    return location


def _physical(file: str, line: int) -> dict[str, Any]:
    physical: dict[str, Any] = {"artifactLocation": {"uri": _uri(file)}}
    if line:
        physical["region"] = {"startLine": line}
    return physical


def _uri(file: str) -> str:
    path = Path(file)
    return path.as_uri() if path.is_absolute() else quote(_bytes(path.as_posix()))


def _bytes(path: str) -> bytes:
    # A file's name may hold bytes that are no UTF-8.
    return path.encode("utf-8", "surrogateescape")


def _pairs(finding: Finding) -> list[tuple[str, str]]:
    """Pair each place with the site that it promises, each pair once."""
    sites = finding.sites or [""] * len(finding.places)
    return list(dict.fromkeys(zip(finding.places, sites, strict=True)))


def _logical(report: AuditReport, place: str, site: str) -> dict[str, Any]:
    logical: dict[str, Any] = {
        "name": encodable(place),
        "fullyQualifiedName": encodable(f"{report.target}:{place}"),
    }
    if site:
        logical["properties"] = {"site": encodable(site)}
    return logical
