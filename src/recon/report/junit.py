"""JUnit XML, for the machines that collect the results of tests.

A testcase for each tensor or site, and one for each finding. A tensor fails if a
finding that counts names it, and is skipped if its name promises nothing: then nothing
was checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from recon.report.audit import abbreviated
from recon.report.foreign import visible, visible_lines
from recon.report.rules import gravest_first

if TYPE_CHECKING:
    from recon.auditing.findings import AuditReport, Finding, Judged
    from recon.baseline import findings as baseline
    from recon.baseline.findings import BaselineReport

_HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n'


@dataclass(frozen=True)
class Failure:
    """Why a case failed, and all that is known of it."""

    kind: str
    message: str
    details: str


@dataclass(frozen=True)
class Case:
    """One testcase: it fails with failures; ``skipped`` says why nothing was checked.

    ``line`` is that of the place in the file, 0 if it has none.
    """

    name: str
    output: str = ""
    failures: Sequence[Failure] = ()
    skipped: str | None = None
    line: int = 0


@dataclass(frozen=True)
class About:
    """What all cases of a document are about."""

    title: str
    target: str
    file: str = ""
    seconds: float | None = None


def document(about: About, suites: Mapping[str, Sequence[Case]]) -> str:
    """Return cases as XML, in ASCII with references for all other characters."""
    root = Element("testsuites", name=about.title)
    parts = []
    for name, cases in suites.items():
        parts.append(SubElement(root, "testsuite", name=name))
        for case in cases:
            _add(parts[-1], about, case)
    _count(root, parts, about.seconds)
    indent(root)
    text: bytes = tostring(root, encoding="us-ascii")
    return f"{_HEAD}{text.decode('ascii')}\n"


def _add(suite: Element, about: About, case: Case) -> None:
    shown = SubElement(
        suite, "testcase", classname=visible(about.target), name=visible(case.name)
    )
    if about.file:
        shown.set("file", visible(about.file))
    if case.line:
        shown.set("line", str(case.line))
    for failure in case.failures:
        part = SubElement(
            shown, "failure", type=failure.kind, message=visible(failure.message)
        )
        part.text = failure.details
    if case.skipped is not None and not case.failures:
        SubElement(shown, "skipped", message=visible(case.skipped))
    elif not case.failures:
        SubElement(shown, "system-out").text = case.output


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


# -- audits --------------------------------------------------------------------


def junit_text(report: AuditReport) -> str:
    """Return an audit: a case for each tensor, and one for each finding."""
    about = About("recon audit", report.target, report.file, report.seconds)
    return document(
        about,
        {
            "tensors": [_tensor(report, tensor) for tensor in report.tensors],
            "findings": list(_findings(report)),
        },
    )


def _tensor(report: AuditReport, tensor: Judged) -> Case:
    against = [f for f in report.counting if tensor.name in f.places]
    skipped = None
    if tensor.status != "right":
        why = "ignored: " if tensor.status == "wrong" else ""
        skipped = why + tensor.sentence
    return Case(
        tensor.name,
        output=visible(tensor.sentence),
        failures=[_failure(finding) for finding in against],
        skipped=skipped,
        line=report.line,
    )


def _findings(report: AuditReport) -> Iterator[Case]:
    counting = {id(finding) for finding in report.counting}
    for finding in gravest_first(report.findings):
        yield Case(
            f"{finding.rule.code} {finding.rule.name}: {finding.message}",
            output=_details(finding),
            failures=[_failure(finding)] if id(finding) in counting else [],
            line=report.line,
        )


def _failure(finding: Finding) -> Failure:
    kind = f"{finding.severity} {finding.rule.code} {finding.rule.name}"
    return Failure(kind, finding.message, _details(finding))


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


# -- baselines -----------------------------------------------------------------


def baseline_junit_text(report: BaselineReport, lines: Mapping[str, int]) -> str:
    """Return a check of a baseline: a case for each site, and one for each finding.

    ``lines`` says where in the baseline's file each site stands.
    """
    about = About("recon baseline check", report.file, report.file)
    names = dict.fromkeys([*report.then.sites, *report.now.sites])
    return document(
        about,
        {
            "sites": [_site(report, name, lines.get(name, 0)) for name in names],
            "findings": [_found(one, lines) for one in report.findings],
        },
    )


def _site(report: BaselineReport, name: str, line: int) -> Case:
    moved = next((one for one in report.moved if one.site == name), None)
    words = "bit-equal" if moved is None else f"{moved.kind}: {moved.why}"
    against = [_reason(one) for one in report.findings if name in one.places]
    return Case(name, output=words, failures=against, line=line)


def _found(finding: baseline.Finding, lines: Mapping[str, int]) -> Case:
    words = f"{finding.rule.code} {finding.rule.name}: {finding.message}"
    places = (lines[name] for name in finding.places if name in lines)
    return Case(words, failures=[_reason(finding)], line=next(places, 0))


def _reason(finding: baseline.Finding) -> Failure:
    kind = f"{finding.rule.severity} {finding.rule.code} {finding.rule.name}"
    at = abbreviated(finding.places, "places")
    details = f"at: {at}\nmend: {finding.rule.mend}"
    return Failure(kind, finding.message, details)
