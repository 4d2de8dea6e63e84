"""An audit as JUnit XML, for the machines that collect the results of tests.

A testcase for each tensor and one for each finding. A tensor fails if a finding that
counts names it, and is skipped if its name promises nothing: then nothing was checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from recon.report.audit import abbreviated
from recon.report.foreign import visible, visible_lines
from recon.report.rules import gravest_first

if TYPE_CHECKING:
    from recon.auditing.findings import AuditReport, Finding, Judged

_HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n'


def junit_text(report: AuditReport) -> str:
    """Return an audit as XML, in ASCII with references for all other characters."""
    root = Element("testsuites", name="recon audit")
    tensors = SubElement(root, "testsuite", name="tensors")
    findings = SubElement(root, "testsuite", name="findings")
    for tensor in report.tensors:
        _tensor(_case(tensors, report, tensor.name), tensor, report.counting)
    counting = {id(finding) for finding in report.counting}
    for finding in gravest_first(report.findings):
        words = f"{finding.rule.code} {finding.rule.name}: {finding.message}"
        case = _case(findings, report, words)
        if id(finding) in counting:
            _failure(case, finding)
        else:
            SubElement(case, "system-out").text = _details(finding)
    _count(root, [tensors, findings], report.seconds)
    indent(root)
    text: bytes = tostring(root, encoding="us-ascii")
    return f"{_HEAD}{text.decode('ascii')}\n"


def _case(suite: Element, report: AuditReport, name: str) -> Element:
    case = SubElement(
        suite, "testcase", classname=visible(report.target), name=visible(name)
    )
    if report.file:
        case.set("file", visible(report.file))
    if report.line:
        case.set("line", str(report.line))
    return case


def _tensor(case: Element, tensor: Judged, counting: Sequence[Finding]) -> None:
    against = [finding for finding in counting if tensor.name in finding.places]
    for finding in against:
        _failure(case, finding)
    if not against and tensor.status != "right":
        why = "ignored: " if tensor.status == "wrong" else ""
        SubElement(case, "skipped", message=visible(why + tensor.sentence))
    else:
        SubElement(case, "system-out").text = visible(tensor.sentence)


def _failure(case: Element, finding: Finding) -> None:
    kind = f"{finding.severity} {finding.rule.code} {finding.rule.name}"
    failure = SubElement(case, "failure", type=kind, message=visible(finding.message))
    failure.text = _details(finding)


def _details(finding: Finding) -> str:
    rows = (
        ("at", abbreviated(finding.places, "places")),
        ("promised", abbreviated(finding.sites, "sites")),
        ("found", abbreviated(finding.found, "tensors")),
        ("run", visible(finding.run)),
        ("mend", visible(finding.mend or finding.rule.mend)),
        ("more", f"recon explain {finding.rule.code}"),
    )
    lines = [f"{label}: {words}" for label, words in rows if words]
    return "\n".join([*lines, *visible_lines(finding.traceback)])


def _count(root: Element, suites: Sequence[Element], seconds: float | None) -> None:
    """Write how many cases there are and how they came out; each counts once."""
    for part in (root, *suites):
        cases = list(part.iter("testcase"))
        part.set("tests", str(len(cases)))
        part.set("failures", str(_having(cases, "failure")))
        part.set("errors", "0")
        part.set("skipped", str(_having(cases, "skipped")))
    if seconds is not None:
        root.set("time", f"{seconds:.3f}")


def _having(cases: Sequence[Element], outcome: str) -> int:
    return sum(case.find(outcome) is not None for case in cases)
