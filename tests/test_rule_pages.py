"""The code on the pages of the rules: the first breaks a rule, the second keeps it."""

import re

import pytest
import torch

from recon.auditing.rules import RULES, rule
from recon.auditing.session import audit
from recon.report.rules import page

# beartype picks what it checks with Python's random generator, whose state is audited.
pytestmark = pytest.mark.usefixtures("without_type_checks")
CODES = [each.code for each in RULES]


def functions(code):
    """Return the wrong and the mended function of a page."""
    for block in re.findall(r"```python\n(.*?)```", page(rule(code)), flags=re.DOTALL):
        spaces = {}
        exec(compile(block, f"{code}.md", "exec"), spaces)
        yield spaces["capture"]


def findings(code, function, make_model):
    model = make_model(attention="sdpa")
    timeout = 2 if code == "RC406" else None  # there is no need to wait for long
    report = audit(function, model, inputs=None, claims={}, timeout=timeout)
    return {found.rule.code: found.severity for found in report.findings}


@pytest.mark.parametrize("code", CODES)
def test_the_first_function_of_a_page_breaks_its_rule(code, make_model):
    wrong, _ = functions(code)
    assert code in findings(code, wrong, make_model)


@pytest.mark.parametrize("code", CODES)
def test_the_second_function_of_a_page_is_mended(code, make_model):
    _, mended = functions(code)
    found = findings(code, mended, make_model)
    assert code not in found
    assert "error" not in found.values()


def test_a_page_has_been_run_on_a_model_in_which_the_faults_can_show(make_model):
    model = make_model(attention="sdpa")
    assert len(model.transformer.h) > 2
    assert torch.count_nonzero(model.transformer.h[1].mlp.c_proj.bias)
