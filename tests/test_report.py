"""How reports look, and what their JSON says."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import torch
from rich.console import Console

import recon
from recon.compare import Check, ulps
from recon.errors import UsageError
from recon.models import load_model
from recon.report import columns
from recon.report.json import DOCUMENTS, schema_text, verification_text
from recon.report.terminal import MAX_SHOWN, render
from recon.results import merge

SCHEMAS = Path(__file__).parents[1] / "docs" / "schema"
SELF = [
    ("resid_pre", "chain"),
    ("ln_1", "ln_1"),
    ("attn.qkv", "qkv"),
    ("attn.k", "cache"),
    ("attn.k", "past_key_values"),
    ("attn.pattern", "pattern"),
    ("attn.pattern", "attentions"),
    ("attn.z", "z"),
    ("attn.out", "attn_out"),
    ("attn_out", "attn_out"),
]
CROSS = [
    ("cross.resid_pre", "resid_cross"),
    ("cross.ln", "cross_ln"),
    ("cross.q", "cross_q"),
    ("cross.kv", "cross_kv"),
    ("cross.pattern", "cross_pattern"),
    ("cross.z", "cross_z"),
    ("cross.out", "cross_out"),
]
REST = [
    ("resid_mid", "resid_mid"),
    ("ln_2", "ln_2"),
    ("mlp.pre", "mlp_pre"),
    ("mlp.post", "mlp_post"),
    ("mlp.out", "mlp_out"),
    ("resid_post", "resid_post"),
]
DAMAGE = {"max_abs": 0.00123, "max_ulp": 10240, "index": (0, 4, 17)}


@pytest.fixture(scope="module")
def real():
    """A report of a real run, whose environment the made-up ones borrow."""
    loaded = load_model("random:tiny")
    return recon.verify(loaded.model, torch.arange(9)[None])


def _checks(depth, cross):
    def exact(site, identity, level="replay"):
        return Check(site, identity, level, "exact", 0.0, 0)

    yield exact("logits", "undisturbed", "capture")
    yield from (exact(name, name) for name in ("wte", "wpe", "embed"))
    for block in range(depth):
        yield exact(f"hidden_states.{block}", "hidden_states", "ledger")
        for site, identity in SELF + (CROSS if cross else []) + REST:
            yield exact(f"h.{block}.{site}", identity)
    yield from (exact(name, name) for name in ("ln_f", "logits"))
    yield exact(f"hidden_states.{depth}", "hidden_states", "ledger")


@pytest.fixture
def made_up(real):
    """``made_up(depth, damage={(site, identity): changes}, cross=)``: a report."""

    def make(depth=3, damage=None, cross=False):
        checks = [
            replace(check, **(damage or {}).get((check.site, check.identity), {}))
            for check in _checks(depth, cross)
        ]
        last = f"hidden_states.{depth} is ln_f(h.{depth - 1}.resid_post), at the end"
        return replace(real, depth=depth, checks=tuple(checks), last_state=last)

    return make


def show(report, width=80, *, terminal=True, encoding="utf-8", **options):
    """Render a report as a terminal of some width, or a pipe, would show it."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(
        file=stream,
        width=width,
        force_terminal=terminal,
        color_system="standard" if terminal else None,
        highlight=False,
        legacy_windows=False,
        **options,
    )
    names = {"model": "some/model" * 12, "source": "some words"}
    console.print(render(report, console=console, **names))
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


def bare(text):
    """Take colours away."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def row(text, block):
    """Return the words of one block's row."""
    return next(
        line.split() for line in bare(text).splitlines() if line.split()[:1] == [block]
    )


# -- the table -----------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
@pytest.mark.parametrize("depth", [1, 3, 12, 48])
@pytest.mark.parametrize("cross", [False, True])
def test_no_line_is_wider_than_the_terminal(made_up, width, depth, cross):
    everything = {
        (check.site, check.identity): {"verdict": "diverged", **DAMAGE}
        for check in _checks(depth, cross)
    }
    for damage in ({}, everything):
        text = bare(show(made_up(depth, damage, cross), width))
        assert max(map(len, text.splitlines())) <= width
        assert all(row(text, str(block)) for block in range(depth))


def test_an_exact_block_is_a_row_of_ticks_and_its_twin_says_what_is_wrong(made_up):
    damage = {
        ("h.1.mlp.out", "mlp_out"): {"verdict": "diverged", **DAMAGE},
        ("h.2.attn.z", "z"): {"verdict": "rounding", **DAMAGE, "max_ulp": 3},
        ("h.0.ln_2", "ln_2"): {"verdict": "missing", "reason": "never fired"},
    }
    names, table = columns.cells(columns.place(made_up().checks, 3).blocks, {})
    assert {cell.verdict for line in table for cell in line} == {"exact"}
    text = show(made_up(damage=damage), 120)
    assert set(row(show(made_up(), 120), "1")[1:]) == {"✓"}
    assert row(text, "1")[1 + names.index("mlp_out")] == "DIVERGED"
    assert row(text, "1").count("✓") == len(names) - 1
    assert row(text, "2")[1 + names.index("z") :][:2] == ["3", "ulp"]
    assert row(text, "0")[1 + names.index("ln_2")] == "MISSING"


def test_a_returned_tensor_that_differs_shows_in_the_column_that_it_repeats(made_up):
    report = made_up(
        damage={("h.1.attn.k", "past_key_values"): {"verdict": "diverged"}}
    )
    names, table = columns.cells(columns.place(report.checks, 3).blocks, {})
    bad = [
        (block, name)
        for block, line in enumerate(table)
        for name, cell in zip(names, line, strict=True)
        if not cell.passed
    ]
    assert bad == [(1, "cache")]


def test_where_columns_share_their_place_the_worst_check_is_shown(made_up):
    damage = {("h.1.mlp.post", "mlp_post"): {"verdict": "diverged", **DAMAGE}}
    for width in (60, 80, 120):
        text = show(made_up(damage=damage), width)
        assert row(text, "1").count("DIVERGED") == 1
        assert "DIVERGED" not in row(text, "0") + row(text, "2")


def test_cross_attention_has_columns_only_where_there_is_any(made_up):
    assert "cross" in bare(show(made_up(cross=True), 80))
    assert "cross" not in bare(show(made_up(cross=False), 80))


def test_embeddings_stand_above_the_blocks_and_ln_f_and_logits_below(made_up):
    lines = bare(show(made_up())).splitlines()
    starts = [line.split()[0] for line in lines if line.strip()]
    assert starts.index("embeddings") < starts.index("0") < starts.index("2")
    assert starts.index("2") + 1 == starts.index("head")
    head = lines[[line[:4] for line in lines].index("head")]
    assert "ln_f ✓ exact" in head
    assert "logits ✓ exact" in head
    assert "hidden_states.3 ✓ exact" in head


def test_a_check_of_no_known_place_is_still_a_finding(made_up):
    report = made_up()
    lost = Check("fifth wheel", "fired", "capture", "missing", reason="never ran")
    text = show(replace(report, checks=(lost, *report.checks)))
    assert "fifth wheel: never ran (fired, capture)" in text
    assert "DIVERGED" in text.splitlines()[-1]


# -- the words -----------------------------------------------------------------


def test_the_last_hidden_state_is_said_explicitly(real):
    text = " ".join(bare(show(real)).split())
    assert "hidden states 4 of 4 rebuilt from embeddings and updates" in text
    assert real.last_state in text


def test_a_wrong_hidden_state_is_not_counted_as_rebuilt(made_up):
    wrong = {("hidden_states.1", "hidden_states"): {"verdict": "diverged", **DAMAGE}}
    text = bare(show(made_up(damage=wrong)))
    assert "3 of 4 rebuilt from embeddings and updates" in text
    assert "every one exact" not in text


def test_only_so_many_findings_are_listed_and_the_rest_counted(made_up):
    damage = {
        (f"h.{block}.ln_1", "ln_1"): {"verdict": "diverged", **DAMAGE}
        for block in range(MAX_SHOWN + 5)
    }
    text = bare(show(made_up(MAX_SHOWN + 5, damage), 120))
    assert text.count("ln_1: off by 0.00123 at [0, 4, 17]") == MAX_SHOWN
    assert "and 5 more" in text
    assert f"{MAX_SHOWN + 5} of " in text.splitlines()[-1]


def test_the_verdict_comes_last_and_is_never_dropped(made_up, real):
    assert bare(show(made_up())).splitlines()[-1].startswith("RECONCILED: all ")
    one = {("ln_f", "ln_f"): {"verdict": "unverified", "reason": "no memory"}}
    assert "1 of 58 checks fail, first ln_f" in bare(show(made_up(damage=one)))
    nothing = bare(show(replace(real, checks=())))
    assert nothing.splitlines()[-1].startswith("DIVERGED: no check was made")


def test_rounding_is_no_failure_but_is_not_called_exact(made_up):
    some = {("h.1.ln_1", "ln_1"): {"verdict": "rounding", **DAMAGE}}
    last = bare(show(made_up(damage=some))).splitlines()[-1]
    assert last.startswith("RECONCILED")
    assert "1 up to rounding" in last


def test_notes_left_out_rows_and_times_are_said(made_up, real):
    report = made_up(damage={("h.0.attn.z", "z"): {"excluded": 7}})
    report = replace(report, notes=("one", "two"), seconds=0.3, bare_seconds=0.1)
    text = bare(show(report))
    assert "7 rows may attend to no key" in text
    assert "note           one" in text
    assert "3.0 times the bare forward pass (0.1 s)" in " ".join(text.split())
    assert "times the bare" not in show(replace(real, seconds=None))


def test_brackets_in_names_are_text_and_no_markup(made_up):
    text = show(replace(made_up(), notes=("a [red]hook[/red] [x]",)))
    assert "a [red]hook[/red] [x]" in text


# -- terminals and pipes -------------------------------------------------------


def test_a_pipe_gets_words_without_colours_or_boxes(made_up):
    text = show(made_up(), 100, terminal=False)
    assert text.isascii()
    assert "\x1b" not in text
    assert set(row(text, "1")[1:]) == {"exact"}


def test_a_terminal_gets_colours_unless_no_color_is_set(made_up, monkeypatch):
    assert "\x1b[32m" in show(made_up())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", show(made_up()))


def test_a_terminal_without_unicode_gets_ascii(made_up):
    text = bare(show(made_up(), encoding="ascii"))
    assert text.isascii()
    assert set(row(text, "1")[1:]) == {"ok"}


# -- JSON ----------------------------------------------------------------------


def as_json(report):
    def refuse(token):
        raise AssertionError(f"{token} is no JSON")

    text = verification_text(report, model="m", source="s")
    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_schema_in_docs_is_current(name):
    # To renew it: python -c "from recon.report.json import schema_text as s;
    # print(s('verify'), end='')" > docs/schema/verify.json
    assert (SCHEMAS / f"{name}.json").read_text("utf-8") == schema_text(name)


def test_json_has_every_fact_of_a_check(made_up):
    damage = {("h.1.ln_1", "ln_1"): {"verdict": "diverged", **DAMAGE, "excluded": 2}}
    document = as_json(made_up(damage=damage))
    jsonschema.validate(document, json.loads(schema_text("verify")))
    assert document["verdict"] == "diverged"
    assert next(c for c in document["checks"] if c["verdict"] == "diverged") == {
        "site": "h.1.ln_1",
        "identity": "ln_1",
        "level": "replay",
        "verdict": "diverged",
        "max_abs": 0.00123,
        "max_ulp": 10240,
        "index": [0, 4, 17],
        "reason": "",
        "excluded": 2,
        "allowed": None,
        "bound_ratio": None,
        "sharpness": None,
    }


def test_an_infinite_error_is_spelt_out_since_json_has_no_such_number(made_up):
    infinite = {"verdict": "diverged", "max_abs": float("inf")}
    document = as_json(made_up(damage={("ln_f", "ln_f"): infinite}))
    jsonschema.validate(document, json.loads(schema_text("verify")))
    assert [c["max_abs"] for c in document["checks"] if c["site"] == "ln_f"] == ["inf"]


def test_the_schema_refuses_what_does_not_follow_it(made_up):
    document = as_json(made_up())
    for wrong in ({"verdict": "fine"}, {"extra": 1}, {"schema_version": "2"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(
                {**document, **wrong}, json.loads(schema_text("verify"))
            )


def test_every_field_of_the_schema_is_described_in_docs():
    page = (SCHEMAS.parent / "json.md").read_text("utf-8")
    for name in DOCUMENTS:
        schema = json.loads(schema_text(name))
        for part in (schema, *schema.get("$defs", {}).values()):
            for field in part["properties"]:
                assert f"`{field}`" in page, field


# -- several reports into one --------------------------------------------------


def test_merging_keeps_the_worst_check_of_each_place(made_up):
    site = ("h.1.ln_1", "ln_1")
    small = {site: {"verdict": "diverged", **DAMAGE, "max_abs": 0.1}}
    large = {site: {"verdict": "diverged", **DAMAGE, "max_abs": 0.2}}
    absent = {site: {"verdict": "missing", "reason": "never fired"}}
    reports = [made_up(damage=damage) for damage in (absent, small, large, {})]
    merged = merge(reports)
    assert [check.max_abs for check in merged.failures] == [0.2]
    assert [c.site for c in merged.checks] == [c.site for c in reports[0].checks]
    assert merge([made_up(), made_up()]).verdict == "reconciled"


def test_merging_adds_rows_and_times_up_and_keeps_every_note(made_up):
    one = replace(made_up(), shape=(8, 5), notes=("a", "b"), seconds=1.0)
    two = replace(made_up(), shape=(2, 9), notes=("b", "c"), seconds=2.0)
    merged = merge([one, two])
    assert merged.shape == (10, 9)
    assert merged.notes == ("a", "b", "c")
    assert merged.seconds == 3.0


def test_merging_puts_a_check_that_only_a_later_batch_has_in_its_place(made_up):
    lost = Check("h.0", "fired", "capture", "missing", reason="never ran")
    later = replace(made_up(), checks=(lost, *made_up().checks))
    assert merge([made_up(), later]).failures == (lost,)
    assert merge([made_up(), later]).checks.index(lost) <= 1


def test_reports_of_different_runs_are_not_merged(made_up):
    with pytest.raises(UsageError, match="one model"):
        merge([made_up(3), made_up(4)])
    with pytest.raises(UsageError, match="one model"):
        merge([])


def test_ulps_of_far_apart_float64_saturate():
    far = ulps(torch.tensor([2.0, 1.0]).double(), torch.tensor([-2.0, 1.0]).double())
    assert far.tolist() == [2**63 - 1, 0]
