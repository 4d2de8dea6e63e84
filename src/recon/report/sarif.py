"""SARIF 2.1.0, which editors and code hosts show beside the code."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    from recon.baseline.findings import BaselineReport

SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/"
    "sarif-schema-2.1.0.json"
)


@dataclass(frozen=True)
class Result:
    """One finding: its rule, what it says, and where: a line, and names in the file.

    ``names`` pairs each name with the site that it stands for, or an empty string.
    """

    rule: Rule
    level: str
    message: str
    line: int
    names: Sequence[tuple[str, str]]
    properties: Mapping[str, Any]


@dataclass(frozen=True)
class About:
    """What all results are about: the target, in its file, and more for programs."""

    target: str
    file: str
    properties: Mapping[str, Any]


def document(about: About, results: Sequence[Result], pages: Mapping[str, str]) -> str:
    """Return results as SARIF; ``pages`` explains each rule, by code."""
    rules = list({result.rule.code: result.rule for result in results}.values())
    run = {
        "tool": {
            "driver": {
                "name": "recon",
                "version": __version__,
                "rules": [_rule(rule, pages[rule.code]) for rule in rules],
            }
        },
        "invocations": [{"executionSuccessful": True}],
        "results": [_result(about, result, rules) for result in results],
        "columnKind": "unicodeCodePoints",
        "properties": dict(about.properties),
    }
    document = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def _rule(rule: Rule, text: str) -> dict[str, Any]:
    return {
        "id": rule.code,
        "name": rule.name,
        "shortDescription": {"text": rule.meaning},
        "help": {"text": text, "markdown": text},
        "defaultConfiguration": {"level": rule.severity},
    }


def _result(about: About, result: Result, rules: Sequence[Rule]) -> dict[str, Any]:
    location = _location(about, result)
    return {
        "ruleId": result.rule.code,
        "ruleIndex": rules.index(result.rule),
        "level": result.level,
        "message": {"text": _literal(result.message)},
        "locations": [location] if location else [],
        "properties": dict(result.properties),
    }


def _literal(text: str) -> str:
    """Keep names in a message from being read as its placeholders and links."""
    text = re.sub(r"\{(\d+)\}", r"{{\1}}", text)
    return text.replace("[", "\\[") if "](" in text else text


def _sentences(*parts: str) -> str:
    return " ".join(p if p.endswith(".") else f"{p}." for p in parts if p)


def _location(about: About, result: Result) -> dict[str, Any]:
    """Say where: the line in its file, and in it the names that are concerned."""
    location: dict[str, Any] = {}
    if about.file:
        location["physicalLocation"] = _physical(about.file, result.line)
    named = [_logical(about, name, site) for name, site in result.names]
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


def _logical(about: About, place: str, site: str) -> dict[str, Any]:
    logical: dict[str, Any] = {
        "name": encodable(place),
        "fullyQualifiedName": encodable(f"{about.target}:{place}"),
    }
    if site:
        logical["properties"] = {"site": encodable(site)}
    return logical


# -- audits --------------------------------------------------------------------


def sarif_text(report: AuditReport) -> str:
    """Return an audit as SARIF: one result a finding, at the audited function."""
    findings = gravest_first(report.findings)
    about = About(
        target=report.target,
        file=report.file,
        properties={
            "target": encodable(report.target),
            "model": encodable(report.model),
            "verdict": report.verdict,
            "counted": tally(report),
        },
    )
    pages = {finding.rule.code: page(finding.rule) for finding in findings}
    return document(about, [_of_audit(report, f) for f in findings], pages)


def _of_audit(report: AuditReport, finding: Finding) -> Result:
    properties: dict[str, Any] = {
        "run": encodable(finding.run),
        "evidence": {
            encodable(name): plain(value) for name, value in finding.evidence.items()
        },
    }
    if finding.traceback:
        properties["traceback"] = encodable(finding.traceback)
    places = abbreviated(finding.places, "places") if finding.places else ""
    return Result(
        rule=finding.rule,
        level=finding.severity,
        message=_sentences(
            visible(finding.message),
            f"At {places}" if places else "",
            visible(finding.mend or finding.rule.mend),
        ),
        line=report.line,
        names=_pairs(finding),
        properties=properties,
    )


def _pairs(finding: Finding) -> list[tuple[str, str]]:
    """Pair each place with the site that it promises, each pair once."""
    sites = finding.sites or [""] * len(finding.places)
    return list(dict.fromkeys(zip(finding.places, sites, strict=True)))


# -- baselines -----------------------------------------------------------------


def baseline_sarif_text(report: BaselineReport, lines: Mapping[str, int]) -> str:
    """Return a check of a baseline as SARIF, each result at its line in the file."""
    about = About(
        target=report.file,
        file=report.file,
        properties={
            "target": encodable(report.file),
            "model": encodable(report.now.model.name),
            "verdict": report.verdict,
        },
    )
    results = [
        Result(
            rule=one.rule,
            level=one.rule.severity,
            message=_sentences(visible(one.message), one.rule.mend),
            line=next((lines[p] for p in one.places if p in lines), 1),
            names=[(place, "") for place in one.places],
            properties={"places": len(one.places)},
        )
        for one in report.findings
    ]
    pages = {f.rule.code: f"{f.rule.meaning}\n\n{f.rule.mend}" for f in report.findings}
    return document(about, results, pages)
