"""What a report says of itself at a prompt: one line."""

from dataclasses import replace

from tests import made_up


def test_the_repr_of_a_report_fits_on_a_line_and_names_what_fails():
    bad = repr(made_up.verification(48, (1, "z"), (3, "z")))
    assert bad == (
        "Report(diverged, 338 checks, 3 fail, first h.1.attn.z; levels certify)"
    )
    assert "fail" not in repr(replace(made_up.verification(2), checks=()))


def test_the_repr_of_an_audit_names_the_rules_that_were_broken():
    found = made_up.audit(2)
    codes = ", ".join(finding.rule.code for finding in found.findings)
    assert repr(found) == (
        f"AuditReport(findings, 2 findings ({codes}), 2 tensors of 'hooks.py:capture')"
    )
