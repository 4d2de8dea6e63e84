"""What a notebook shows: short, escaped, readable on any ground, by any kernel."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from IPython.core.formatters import DisplayFormatter

import recon
from recon.compare import Check
from recon.differences import Difference
from recon.display import Displayed
from tests import made_up
from tests.test_html import HOSTILE, Page


@pytest.fixture(scope="module")
def trace():
    model = recon.load_model("random:tiny").model
    with torch.no_grad(), recon.capture(model) as recorder:
        model(torch.tensor([[1, 2, 3, 4, 5]]))
    return recorder.trace


def shown(thing):
    """Return what IPython, and so every notebook, shows of a thing as HTML."""
    data, _ = DisplayFormatter().format(thing)
    return Page(data["text/html"])


def words(thing):
    page = shown(thing)
    style = "".join(text for text in page.text if text.lstrip().startswith(".recon"))
    return " ".join(" ".join(page.text).replace(style, "").split())


DIFFERENCE = Difference(("A", "B"), (), (), None, None)


def test_a_verification_is_its_verdict_and_the_first_findings():
    said = words(made_up.verification(4, *((n, "z") for n in range(4))))
    assert said.startswith("DIVERGED 5 of 30 checks fail, first h.0.attn.z (certify)")
    assert "h.3.attn.z: 2.5e+05 of the bound" in said


def test_a_long_list_is_cut_and_the_rest_counted():
    page = shown(made_up.audit(5000))
    assert len(page.all("li")) == 6
    assert "and 4995 more" in "".join(page.text)
    assert len(page.all("li")) == len(shown(made_up.audit(5)).all("li")) + 1


@pytest.mark.parametrize(
    ("thing", "start"),
    [
        (made_up.verification(2), "DIVERGED 1 of 16 checks fail"),
        (made_up.audit(2), "FINDINGS 1 error, 1 warning; 1 of 2 tensors"),
        (made_up.audit(2).findings[0], "RC101 wrong-site `blocks.0.hook_resid_post`"),
        (made_up.profile(2), "CLEAN what was captured came back"),
        (made_up.profile(2, "hooks.kept"), "LEAKS 1 thing stayed"),
        (made_up.baseline(3), "ROUNDING rounding that began at"),
        (made_up.baseline(3, 1), "CHANGED h.1.mlp.post changed"),
        (made_up.baseline(3, 1).findings[0], "RB101 site-changed h.1.mlp.post"),
        (DIFFERENCE, "UNVERIFIED nothing was compared A A B B"),
        (Check("h.0.ln_1", "ln_1", "replay", "exact"), "exact h.0.ln_1: exact"),
    ],
)
def test_each_report_and_finding_begins_with_its_verdict_or_rule(thing, start):
    assert words(thing).startswith(start)


def test_a_trace_is_a_table_of_its_sites_in_which_like_blocks_share_a_row(trace):
    page = shown(trace)
    assert len(page.all("tr")) < len(trace) / 2
    said = words(trace)
    assert said.startswith(f"Trace {len(trace)} sites, {trace.nbytes:,} bytes held")
    assert "h.*.attn.q 0-2 1 x 4 x 5 x 12 view" in said
    assert "h.*.attn.scores 0-2 on demand derived" in said
    assert "ln_f 1 x 5 x 48 captured" in said


def test_blocks_that_are_not_alike_have_rows_of_their_own(trace):
    odd = trace.replace("h.1.ln_1", torch.zeros(1, 2, 48))
    assert "h.*.ln_1 0, 2 1 x 5 x 48" in words(odd)
    assert "h.*.ln_1 1 1 x 2 x 48" in words(odd)


def test_a_trace_of_a_pass_that_failed_says_so(trace):
    assert "incomplete: it raised" in words(replace(trace, failure="it raised"))


@pytest.mark.parametrize("text", HOSTILE)
def test_no_foreign_string_becomes_markup(text, trace):
    plain = [tag for tag, _ in shown(made_up.audit(3)).tags]
    spelt = text.replace("{", "{{").replace("}", "}}")
    found = replace(made_up.audit(3, spelt), target=text)
    assert [tag for tag, _ in shown(found).tags] == plain
    for thing in (
        found.findings[0],
        made_up.profile(2, text),
        replace(made_up.baseline(3, 1, spelt + "{}.{}"), file=text),
        replace(DIFFERENCE, names=(text, text)),
        Check("logits", "logits", "replay", "unverified", reason=text),
        replace(trace, failure=text),
    ):
        assert {tag for tag, _ in shown(thing).tags} <= {
            "div", "style", "p", "strong", "ul", "li", "b", "br", "details", "summary",
            "table", "thead", "tbody", "tr", "th", "td",
        }  # fmt: skip


def test_text_has_the_colour_of_the_page_and_a_verdict_brings_its_ground():
    css = "".join(shown(made_up.audit(1)).text)
    coloured = [rule for rule in css.split("}") if "color:" in rule]
    assert coloured
    assert all("background" in rule for rule in coloured)


def test_a_fragment_is_small():
    for thing in (made_up.verification(48, (1, "z")), made_up.audit(5000)):
        assert len(thing._repr_html_()) < 3000


def test_without_what_draws_it_a_notebook_shows_the_repr(monkeypatch):
    monkeypatch.setattr(Displayed, "draws", None)
    data, _ = DisplayFormatter().format(made_up.audit(1))
    assert set(data) == {"text/plain"}


def test_import_recon_draws_nothing_and_loads_neither_torch_nor_templates():
    code = "import sys, recon; print({'torch', 'jinja2'} & set(sys.modules))"
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert told.stdout == "set()\n"
