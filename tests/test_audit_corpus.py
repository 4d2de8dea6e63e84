"""How much of the corpus the audit finds and names, and how often it cries wolf.

The two rates are printed: pytest -s tests/test_audit_corpus.py -k rate
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

import pytest
from transformers import GPT2LMHeadModel, GPT2Model

import recon
from recon.auditing.rules import rule
from tests.corpus import EDITS, RIGHT, WRONG, Case, Edit, Fault, Right, Wrong, formulas
from tests.corpus.containing import contained

FAMILIES = {
    "A": "A  the wrong thing selected",
    "B": "B  layout or formula",
    "C": "C  aliasing and storage",
    "D": "D  lifecycle",
    "E": "E  execution mode",
    "n": "in no catalogue",
}
Audited = Callable[[Case], Any]


@pytest.fixture(scope="session")
def audited(make_model) -> Audited:
    """``audited(case)``: the report, made once for all tests that read it."""

    # The tests of a file run in one worker, so that the rates find each case here.
    @cache
    def audited(case: Case) -> Any:
        kind = GPT2LMHeadModel if case.headed else GPT2Model
        # Room for two prompts in one cache, and for what generate adds.
        model = make_model(kind, **{"n_positions": 64, **case.model})
        if case.prepare is not None:
            case.prepare(model)
        with contained():
            return recon.audit(case.fresh(), model)

    return audited


def name_of(case: Case) -> str:
    return case.name


def told(report: Any) -> str:
    """Spell out the findings, for a failing test."""
    lines = [
        f"{f.severity} {f.rule.code} {f.rule.name}: {f.message} "
        f"[places {f.places}; sites {f.sites}; found {f.found}]"
        for f in report.findings
    ]
    return "\n".join(lines) or "no findings"


def named(fault: Fault, report: Any) -> bool:
    return any(fault.named_by(finding) for finding in report.findings)


def percent(part: int, whole: int) -> str:
    return f"{part} of {whole}, {part / whole:.1%}"


def test_the_corpus_is_large_enough_and_each_case_has_its_own_name():
    assert len(RIGHT) >= 45
    assert len(EDITS) >= 8
    assert sum(len(case.faults) == 1 for case in WRONG) >= 80
    assert sum(len(case.faults) > 1 for case in WRONG) >= 6
    names = Counter(case.name for case in [*RIGHT, *EDITS, *WRONG])
    assert names.most_common(1)[0][1] == 1


def test_every_rule_that_the_corpus_speaks_of_exists():
    codes = {code for case in WRONG for fault in case.faults for code in fault.rules}
    codes |= {code for case in RIGHT for code in case.notes}
    codes |= {code for case in EDITS for code in case.effects}
    assert {rule(code).code for code in codes} == codes


@pytest.mark.parametrize("case", RIGHT, ids=name_of)
def test_a_correct_capture_gets_nothing_above_a_note(case: Right, audited: Audited):
    report = audited(case)
    assert all(finding.severity == "note" for finding in report.findings), told(report)
    assert report.verdict == "clean"


@pytest.mark.parametrize("case", [c for c in RIGHT if c.notes], ids=name_of)
def test_what_is_worth_knowing_of_a_correct_capture_is_noted(
    case: Right, audited: Audited
):
    report = audited(case)
    noted = {finding.rule.code for finding in report.findings}
    assert case.notes <= noted, told(report)


@pytest.mark.parametrize(
    "case",
    [c for c in RIGHT if c.function.__module__ == formulas.__name__],
    ids=name_of,
)
def test_what_a_formula_makes_is_right_and_not_merely_unknown(
    case: Right, audited: Audited
):
    told_of = {one.name: one.status for one in audited(case).tensors}
    assert set(told_of.values()) == {"right"}, told_of


@pytest.mark.parametrize("case", EDITS, ids=name_of)
def test_an_edit_that_is_put_back_is_an_effect_and_no_wrong_capture(
    case: Edit, audited: Audited
):
    report = audited(case)
    wrong_claims = [
        finding
        for finding in report.findings
        if finding.rule.code.startswith("RC1") and finding.severity == "error"
    ]
    assert not wrong_claims, told(report)
    assert case.effects <= {finding.rule.code for finding in report.findings}, told(
        report
    )


@pytest.mark.parametrize("case", [c for c in EDITS if c.found], ids=name_of)
def test_a_capture_beside_an_edit_is_told_to_be_of_before_or_after(
    case: Edit, audited: Audited
):
    report = audited(case)
    found = [
        one
        for finding in report.findings
        if finding.rule.code == "RC123"
        for one in finding.found
    ]
    assert [one for one in found if fnmatchcase(one, case.found)] == found, told(report)
    assert found


@pytest.mark.parametrize("case", WRONG, ids=name_of)
def test_every_fault_is_found_and_named_where_it_is(case: Wrong, audited: Audited):
    report = audited(case)
    unnamed = [fault for fault in case.faults if not named(fault, report)]
    assert not unnamed, f"{case.title}\nnot named: {unnamed}\n{told(report)}"
    assert report.verdict == "findings"


def table(reports: list[tuple[Wrong, Any]]) -> str:
    """Lay out what was found, named and missed, by family of the catalogue."""
    counts: dict[str, Counter[str]] = {}
    for case, report in reports:
        combined = len(case.faults) > 1
        family = "two faults in one" if combined else FAMILIES[case.row[0]]
        row = counts.setdefault(family, Counter())
        row["faults"] += len(case.faults)
        row["named"] += sum(named(fault, report) for fault in case.faults)
        row["found"] += len(case.faults) * (report.verdict == "findings")
    lines = [f"{'':28} faults  found  named  missed"]
    total: Counter[str] = Counter()
    for family, row in [*sorted(counts.items()), ("all", total)]:
        missed = row["faults"] - row["found"]
        lines.append(
            f"{family:28} {row['faults']:6} {row['found']:6} {row['named']:6} "
            f"{missed:7}"
        )
        if row is not total:
            total.update(row)
    return "\n".join(lines)


def test_the_rate_of_faults_found_and_named(audited: Audited):
    reports = [(case, audited(case)) for case in WRONG]
    print(f"\n{table(reports)}")
    faults = [(fault, report) for case, report in reports for fault in case.faults]
    right_names = sum(named(fault, report) for fault, report in faults)
    print(f"named: {percent(right_names, len(faults))}")
    missed = [c.name for c, report in reports if report.verdict != "findings"]
    assert not missed
    assert right_names >= 0.95 * len(faults)


def test_the_rate_of_correct_captures_that_stay_clean(audited: Audited):
    clean = [case for case in RIGHT if audited(case).verdict == "clean"]
    print(f"\ncorrect captures left alone: {percent(len(clean), len(RIGHT))}")
    assert clean == RIGHT
