"""What a report says of itself at a prompt: one line."""

from dataclasses import replace

import pytest

from recon.compare import Check
from recon.differences import Difference
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


@pytest.mark.parametrize(
    ("thing", "said"),
    [
        (
            made_up.audit(1).findings[0],
            "Finding(RC101 wrong-site, '`blocks.0.hook_resid_post` is something else')",
        ),
        (
            made_up.baseline(3, 1),
            "BaselineReport(changed, 'b.json': h.1.mlp.post changed, by far too much)",
        ),
        (
            made_up.profile(2, "x"),
            "Profile(leaks, 'hooks.py:capture' of 'random:tiny': 1.300 of the bare "
            "pass, 57,344 bytes, 1 findings)",
        ),
        (
            Difference(("A", "B"), (), (), None, None),
            "Difference(unverified: nothing was compared)",
        ),
        (
            Check("h.0.ln_1", "ln_1", "replay", "exact"),
            "Check(exact, h.0.ln_1: exact (ln_1, replay))",
        ),
    ],
)
def test_a_repr_is_one_line_that_says_what_was_found(thing, said):
    assert repr(thing) == said
