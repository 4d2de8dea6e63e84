"""Reports as HTML: what the page says, and that no foreign string becomes markup."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import recon
from recon import cli
from recon.compare import Check
from recon.report.html import (
    audit_html,
    baseline_html,
    difference_html,
    profile_html,
    verification_html,
)
from recon.report.html.chart import HEIGHT, chart
from recon.report.html.grid import MARKS
from recon.report.html.laws import LAWS
from tests import made_up

HOSTILE = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "\"' onmouseover='alert(1)",
    "{{ 7 * 7 }} {% raw %}",
    "half \ud83d, a\x00b, \u2028, \u202e",
)


class Page(HTMLParser):
    """What a browser would make of a page: its tags, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag, **wanted):
        return [a for t, a in self.tags if t == tag and wanted.items() <= a.items()]

    def cells(self):
        return [a for a in self.all("button") if "data-detail" in a]

    @property
    def details(self):
        (text,) = (t for t in self.text if t.startswith("[{") or t == "[]")
        return json.loads(text)


def verified(report, **more):
    given = {"model": "random:tiny", "source": "a prompt", **more}
    return verification_html(report, **given)


def profiled(report, **more):
    return profile_html(
        report, **{"model": "random:tiny", "source": "a prompt", **more}
    )


def pages():
    yield verified(made_up.verification(3, (1, "z")))
    yield audit_html(made_up.audit(5), again="recon audit x.py:f")
    yield profiled(made_up.profile(3, "hooks.kept[1]"), again="recon profile")
    yield baseline_html(made_up.baseline(3, 1), again="recon baseline check b.json")


@pytest.fixture(scope="module")
def real(make_model, make_ids):
    model = make_model(add_cross_attention=True)
    ids = make_ids()
    return recon.verify(
        model, ids, encoder_hidden_states=torch.randn(3, 5, 32), use_cache=True
    )


def test_the_first_words_are_the_verdict():
    verdicts = ("DIVERGED", "FINDINGS", "LEAKS", "CHANGED")
    for text, verdict in zip(pages(), verdicts, strict=True):
        body = text[text.index("<body>") :]
        words = [word.strip() for word in Page(body).text if word.strip()]
        assert words[:2] == ["✗", verdict]
    # A fault is seen on the map at once; what is said of it is one click away.
    for text in pages():
        assert text.index('id="map"') < text.index('id="what"')
        assert '<a href="#what">' in text
    good = verified(replace(made_up.verification(2), checks=()))
    assert '<a href="#what">' not in good
    assert "no check was made" in good


def test_the_map_has_a_cell_for_each_identity_and_the_damaged_one_stands_out():
    page = Page(verified(made_up.verification(3, (1, "z"))))
    cells = page.cells()
    assert len(cells) == 3 * len(made_up.COLUMNS) + 2
    (bad,) = (cell for cell in cells if "diverged" in cell["class"])
    detail = page.details[int(bad["data-detail"])]
    assert detail["title"] == "h.1 z"
    assert detail["law"] == LAWS["z"]
    assert ["error / bound", "2.5e+05"] in detail["sections"][0]["rows"]
    assert "hook" in detail["advice"]


def test_each_cell_says_its_verdict_without_colour():
    page = Page(verified(made_up.verification(2, (0, "qkv"))))
    shown = "".join(page.text)
    kinds = {cell["class"].split()[-1] for cell in page.cells()}
    assert kinds == {"exact", "rounding", "diverged", "unverified"}
    assert all(MARKS[kind] in shown for kind in kinds)
    assert all(cell["aria-label"] for cell in page.cells())


def test_every_identity_of_a_real_run_has_a_law(real):
    assert {check.identity for check in real.checks} <= LAWS.keys()
    page = Page(verified(real))
    assert all(detail["law"] for detail in page.details)


def test_the_docs_list_the_same_identities():
    text = (Path(__file__).parents[1] / "docs" / "verify.md").read_text("utf-8")
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    named = set(re.findall(r"`(\w+)`", " ".join(rows)))
    unnamed = {name for name in LAWS if not name.startswith(("cross_", "resid_cross"))}
    assert unnamed <= named


def test_a_verification_without_errors_draws_nothing_and_says_so():
    quiet = [c for c in made_up.verification(2).checks if c.verdict == "exact"]
    report = replace(made_up.verification(2), checks=tuple(quiet))
    assert "there is nothing to draw" in verified(report)
    assert "<polyline" not in verified(report)
    assert "<polyline" in verified(made_up.verification(2))


def test_every_finding_of_an_audit_is_told_with_places_evidence_and_a_way_to_mend_it():
    text = "".join(Page(audit_html(made_up.audit(9))).text)
    for finding in made_up.audit(9).findings:
        assert finding.message in text
        assert f"{finding.rule.code} {finding.rule.name}" in text
        assert finding.places[0] in text
    assert "hook the block itself" in text
    assert "0.25" in text
    assert "line 1" in text


def assert_no_more_tags(hurt, well):
    assert {tag for tag, _ in hurt.tags} <= {tag for tag, _ in well.tags}
    assert len(hurt.all("script")) == len(well.all("script"))
    assert not [a for _, a in hurt.tags if any(key.startswith("on") for key in a)]


@pytest.mark.parametrize("foreign", HOSTILE)
def test_no_foreign_string_becomes_markup(foreign):
    plain = Page(audit_html(made_up.audit(4), again="recon"))
    text = audit_html(
        replace(
            made_up.audit(4, name=foreign.replace("{", "{{").replace("}", "}}") + "{}"),
            target=foreign,
            model=foreign,
        ),
        again=foreign,
    )
    text.encode("utf-8")
    assert [tag for tag, _ in Page(text).tags] == [tag for tag, _ in plain.tags]
    asked = Page(verified(made_up.verification(2), model=foreign, source=foreign))
    usual = Page(verified(made_up.verification(2)))
    assert [tag for tag, _ in asked.tags] == [tag for tag, _ in usual.tags]
    name = foreign.replace("{", "{{").replace("}", "}}") + "{}.{}"
    for made in (profiled, baseline_html):
        kind = made_up.profile if made is profiled else made_up.baseline
        hurt, well = (
            Page(made(kind(3, *more, name=name), again=foreign))
            for name in (name, "h.{}.{}")
            for more in [(foreign,) if kind is made_up.profile else (1,)]
        )
        assert_no_more_tags(hurt, well)


def test_the_check_for_markup_would_see_a_string_that_became_one():
    text = audit_html(made_up.audit(2))
    hurt = text.replace("hook the block itself", "<img src=x>", 1)
    assert len(Page(hurt).tags) == len(Page(text).tags) + 1


def test_a_page_needs_no_network():
    for text in pages():
        page = Page(text)
        assert not page.all("link")
        assert not [a for _, a in page.tags if "src" in a]
        links = [a["href"] for _, a in page.tags if "href" in a]
        assert all(link.startswith("#") for link in links)
        assert "url(" not in text
        assert "@import" not in text
        assert "http" not in text


def test_48_blocks_and_5000_findings_fit_on_a_page():
    page = Page(verified(made_up.verification(48)))
    assert len(page.cells()) == 48 * len(made_up.COLUMNS) + 2
    text = audit_html(made_up.audit(5000))
    assert len(Page(text).all("ol")) == 1
    assert text.count('<li class="card') == 5000
    assert len(text) < 10_000_000


# -- a profile, a baseline ---------------------------------------------------------


def test_a_profile_tells_what_stays_the_times_and_the_bytes_of_each_place():
    page = Page(profiled(made_up.profile(3, "hooks.kept[1]")))
    text = " ".join(" ".join(page.text).split())
    assert "LEAKS 1 thing stayed" in text
    assert "3 tensors, 12,288 bytes, held by hooks.kept[1]" in text
    assert "1.250 - 1.350" in text
    assert len(page.cells()) == 3 * len(made_up.COLUMNS)
    views = [cell for cell in page.cells() if "excess" in cell["class"]]
    assert [v["aria-label"] for v in views] == [
        f"h.{n}.attn.z: 4,096 bytes held for 1,024 needed" for n in range(3)
    ]
    advice = page.details[int(views[0]["data-detail"])]["advice"]
    assert "clone it" in advice
    good = profiled(made_up.profile(3))
    assert 'class="good"' in good
    assert "What stayed" not in good


def test_a_checked_baseline_shows_where_the_change_begins_and_how_far_it_is():
    page = Page(baseline_html(made_up.baseline(3, 2)))
    kinds = [cell["class"].split()[-1] for cell in page.cells()]
    start = 1 + len(made_up.COLUMNS) + 2
    assert kinds[: start + 1] == ["equal"] * start + ["rounding"]
    assert kinds.count("changed") == 1
    (bad,) = (cell for cell in page.cells() if "changed" in cell["class"])
    detail = page.details[int(bad["data-detail"])]
    assert detail["title"] == "h.2.mlp.post"
    assert ["moved", "changed"] in detail["sections"][0]["rows"]
    assert page.all("polyline")
    assert "RB101 site-changed" in "".join(page.text)


def test_a_baseline_that_rounds_is_good_and_one_that_is_equal_draws_nothing():
    assert 'class="good"' in baseline_html(made_up.baseline(3))
    still = baseline_html(replace(made_up.baseline(3), moved=()))
    assert "EQUAL" in still
    assert "there is nothing to draw" in still


def test_a_site_that_is_gone_and_one_that_is_new_are_told_apart():
    report = made_up.baseline(2)
    sites = dict(report.then.sites)
    sites["h.1.new"] = sites.pop("h.0.ln_1")
    now = report.now.model_copy(update={"sites": sites})
    page = Page(baseline_html(replace(report, now=now, moved=())))
    odd = {c["aria-label"] for c in page.cells() if "equal" not in c["class"]}
    assert odd == {"h.0.ln_1: vanished", "h.1.new: appeared"}


def test_names_that_share_a_block_and_a_place_share_a_cell():
    found = made_up.profile(2, name="h.{0}.head.1.{1}")
    twice = replace(found.memory, sites=found.memory.sites * 2)
    page = Page(profiled(replace(found, memory=twice)))
    assert len(page.cells()) == 2 * len(made_up.COLUMNS)
    assert all(len(detail["sections"]) == 2 for detail in page.details)


# -- the chart -------------------------------------------------------------------


def test_larger_values_are_drawn_higher_and_zero_lies_on_the_floor():
    drawn = chart("t", [("a", 0.0), ("b", 1e-6), ("c", 1e-3)], across="x", up="y")
    a, b, c = drawn.points
    assert a.y > b.y > c.y > 0
    assert a.y < HEIGHT
    assert a.x < b.x < c.x
    assert drawn.y_ticks[-1].label == "0"
    assert "1e-06" in {tick.label for tick in drawn.y_ticks}


def test_nothing_but_zeros_is_no_chart():
    assert chart("t", [("a", 0.0), ("b", 0.0)], across="x", up="y") is None


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("other", [0.0, 1.0])
def test_what_is_not_finite_is_drawn_above_all_else(value, other):
    drawn = chart("t", [("a", other), ("b", value)], across="x", up="y")
    a, b = drawn.points
    assert b.y < a.y
    assert b.label == "b: not finite"
    assert b.y == min(tick.at for tick in drawn.y_ticks if tick.label == "∞")
    assert drawn.unmeasured
    assert not chart("t", [("a", 0.5), ("b", 1.0)], across="x", up="y").unmeasured


def test_a_check_that_could_not_measure_its_error_is_not_drawn_as_none():
    report = made_up.verification(3)
    broken = Check("h.1.ln_2", "ln_2", "replay", "diverged", reason="not finite: 2")
    page = Page(verified(replace(report, checks=(*report.checks, broken))))
    assert "h.1: not finite" in "".join(page.text)
    assert "h.1: 1e-06" in "".join(Page(verified(report)).text)


# -- the command line ------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def test_verify_writes_the_page_with_the_command_that_made_it(tmp_path):
    target = tmp_path / "a b.html"
    arguments = ["verify", "random:tiny", "--level", "ledger", "--html", str(target)]
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 0
    text = target.read_text("utf-8")
    assert "RECONCILED" in text
    assert f"recon verify random:tiny --level ledger --html &#39;{target}&#39;" in text
    assert list(tmp_path.iterdir()) == [target]


def test_diff_writes_the_page(tmp_path):
    target = tmp_path / "diff.html"
    ended = run("diff", "random:tiny@attn=eager", "random:tiny", "--html", target)
    assert ended.exit_code == 0
    text = target.read_text("utf-8")
    assert "ROUNDING" in text or "EQUAL" in text
    assert "h.2.resid_post" in text


def test_audit_writes_the_page(tmp_path):
    code = tmp_path / "hooks.py"
    code.write_text("def capture(model, input_ids):\n    return {'ln_f': input_ids}\n")
    target = tmp_path / "audit.html"
    ended = run(
        "audit", f"{code}:capture", "--model", "random:tiny", "--quick",
        "--html", target,
    )  # fmt: skip
    assert ended.exit_code == 1
    assert "FINDINGS" in target.read_text("utf-8")


def test_profile_writes_the_page(tmp_path):
    target = tmp_path / "profile.html"
    rounds = ("--rounds", 2, "--leak-rounds", 3)
    ended = run("profile", "random:tiny", *rounds, "--html", target)
    assert ended.exit_code == 0
    text = target.read_text("utf-8")
    assert "CLEAN" in text
    assert 'aria-label="h.1.attn.z: ' in text


def test_a_check_of_a_baseline_writes_the_page(tmp_path):
    file, target = tmp_path / "b.json", tmp_path / "b.html"
    assert run("baseline", "record", file, "--model", "random:tiny").exit_code == 0
    ended = run("baseline", "check", file, "--seed", 1, "--html", target)
    assert ended.exit_code == 1
    text = target.read_text("utf-8")
    assert "CHANGED" in text
    assert "RB104" in text
    assert 'aria-label="h.1.attn.z: ' in text


@pytest.mark.parametrize(
    "command", [("verify",), ("diff", "bundled", "bundled"), ("profile",)]
)
def test_a_place_that_cannot_be_written_is_refused_before_any_work(
    command, tmp_path, capsys
):
    for place in (tmp_path, tmp_path / "none" / "x.html"):
        with pytest.raises(SystemExit) as end:
            cli.main([*command, "--html", str(place)])
        assert end.value.code == 2
        assert "--html" in capsys.readouterr().err


def test_two_reports_in_one_place_are_refused(tmp_path, capsys):
    place = str(tmp_path / "x")
    with pytest.raises(SystemExit) as end:
        cli.main(["verify", "--html", place, "--json", place])
    assert end.value.code == 2
    assert "both write to" in capsys.readouterr().err


def test_a_difference_of_runs_that_part_is_told(make_model, make_ids):
    from recon.verification import record

    first = record(make_model(), make_ids())
    other = record(make_model(seed=1), make_ids())
    text = difference_html(recon.diff(first, other, names=("<a>", "b")))
    assert "DIVERGED" in text
    assert "&lt;a&gt;" in text


@pytest.fixture
def wrong_at_one_place(make_model, make_ids):
    """Two runs, of which the second was edited where block 1 puts its MLP in."""
    from recon.verification import record

    model, ids = make_model(), make_ids()
    first = record(model, ids)
    with model.transformer.h[1].mlp.register_forward_hook(lambda m, a, out: out * 1.01):
        return recon.diff(first, record(model, ids))


def test_the_map_of_a_difference_marks_what_is_wrong_and_what_only_differs(
    wrong_at_one_place,
):
    page = Page(difference_html(wrong_at_one_place))
    kinds = {c["data-label"].split(":")[0]: c["class"].split()[1] for c in page.cells()}
    assert kinds["h.1.mlp_out"] == "equal"
    assert kinds["h.1.resid_post"] == "diverged"
    assert kinds["h.2.ln_1"] == kinds["logits"] == "apart"
    assert len(kinds) == len(wrong_at_one_place.sites)


def test_a_cell_of_a_difference_opens_both_runs_checks_there(wrong_at_one_place):
    details = Page(difference_html(wrong_at_one_place)).details
    (wrong,) = [d for d in details if d["title"] == "h.1.resid_post"]
    assert wrong["law"] == LAWS["resid_post"]
    headings = [section["heading"] for section in wrong["sections"]]
    assert headings == [
        "h.1.resid_post, between the runs",
        "A: certify",
        "B: certify",
    ]
    said = [dict(section["rows"]) for section in wrong["sections"]]
    assert float(said[0]["largest difference"]) > 0
    assert [run["verdict"] for run in said[1:]] == ["rounding", "diverged"]
    assert "worst element" in said[2]


def test_two_runs_that_are_right_differ_by_rounding_on_the_map(make_model, make_ids):
    from recon.verification import record

    ids = make_ids()
    other = make_model(attention="sdpa")
    found = recon.diff(record(make_model(), ids), record(other, ids))
    kinds = {c["class"].split()[1] for c in Page(difference_html(found)).cells()}
    assert found.verdict in ("rounding", "equal")
    assert kinds <= {"equal", "rounding"}


def test_a_place_that_is_its_own_site_in_another_form_is_not_said_to_be_another():
    found = made_up.audit(1)
    same = replace(found.findings[0], found=found.findings[0].sites)
    text = audit_html(replace(found, findings=(same,)))
    assert "should be h.0.resid_post</li>" in text
    assert "should be h.0.resid_post, is h.0.mlp_out</li>" in audit_html(found)
