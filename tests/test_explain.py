"""The rules of audits and baselines, their pages, and ``recon explain``."""

import json
import re
from pathlib import Path

import jsonschema
import pytest

from recon import cli
from recon.auditing.rules import RULES as AUDIT
from recon.auditing.rules import rule as found
from recon.report.json import schema_text
from recon.report.rules import EVERY, PAGES, page

ROOT = Path(__file__).parents[1]
CODES = [each.code for each in EVERY]
OF_CODE = [each.code for each in AUDIT]


def rule(word):
    return found(word, EVERY)


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    """No settings of the caller's shell."""
    for name in ("RECON_TRACEBACK", "COLUMNS", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(capsys):
    """Run ``recon explain`` and return its exit code, stdout and stderr."""

    def command(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main(["explain", *(str(argument) for argument in arguments)])
        return end.value.code, *capsys.readouterr()

    return command


# -- the pages -----------------------------------------------------------------


def unmatched(pages, codes):
    """Name the pages without a rule and the rules without a page."""
    return sorted(set(pages) ^ set(codes))


def test_every_rule_has_a_page_and_every_page_a_rule():
    assert unmatched([path.stem for path in PAGES.iterdir()], CODES) == []
    assert {path.suffix for path in PAGES.iterdir()} == {".md"}


def test_a_page_or_a_rule_too_many_would_be_found():
    assert unmatched(["RC101", "RC999"], ["RC101", "RC102"]) == ["RC102", "RC999"]


@pytest.mark.parametrize("code", CODES)
def test_a_page_says_what_the_rule_says(code):
    text = page(rule(code))
    assert text.startswith(f"# {code} {rule(code).name}\n")
    assert f"*{rule(code).severity}*: {rule(code).meaning}" in " ".join(text.split())


@pytest.mark.parametrize("code", OF_CODE)
def test_a_page_of_an_audit_has_two_functions_and_says_how_and_when(code):
    text = page(rule(code))
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        spaces = {}
        exec(compile(block, f"{code}.md", "exec"), spaces)
        assert callable(spaces["capture"])
    assert blocks[0] != blocks[1]
    assert "**How recon tells.**" in text
    assert "**When to ignore it.**" in text


@pytest.mark.parametrize("code", [code for code in CODES if code not in OF_CODE])
def test_a_page_of_a_baseline_says_how_recon_tells_and_what_to_do(code):
    text = " ".join(page(rule(code)).split())
    assert "**How recon tells.**" in text
    assert f"**What to do.** {rule(code).mend}" in text
    assert "**When to accept it.**" in text


@pytest.mark.parametrize("code", CODES)
def test_a_page_is_no_wider_than_96_columns(code):
    assert max(map(len, page(rule(code)).splitlines())) <= 96


def test_other_rules_and_pages_that_a_page_names_exist():
    for path in PAGES.iterdir():
        text = path.read_text("utf-8")
        assert set(re.findall(r"R[BC]\d+", text)) <= set(CODES), path.name
        for name in re.findall(r"docs/[\w.]+\.md", text):
            assert (ROOT / name).is_file(), path.name


def test_the_list_in_the_docs_is_that_of_the_code():
    text = (ROOT / "docs" / "rules.md").read_text("utf-8")
    listed = [line for line in text.splitlines() if line.startswith("| [R")]
    assert listed == [
        f"| [{each.code}](../src/recon/data/rules/{each.code}.md) {each.name} "
        f"| {each.severity} | {each.meaning} |"
        for each in EVERY
    ]
    for each in EVERY:
        assert (ROOT / "docs" / f"../src/recon/data/rules/{each.code}.md").is_file()


# -- the command ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "code"),
    [
        *(("RC101", "RC101"), ("rc101", "RC101"), ("wrong-site", "RC101")),
        *(("RB107", "RB107"), ("rb107", "RB107"), ("hidden-states-moved", "RB107")),
    ],
)
def test_a_rule_is_found_by_code_and_by_name(run, word, code):
    assert run(word) == (0, page(rule(code)), "")


def test_on_a_terminal_the_page_is_laid_out(run, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    code, out, _ = run("RC101")
    assert code == 0
    assert "\x1b[" in out
    assert "RC101 wrong-site" in out
    assert "```" not in out


def test_without_a_rule_all_are_listed(run):
    code, out, err = run()
    assert (code, err) == (0, "")
    shown = [
        line.split()[:3] for line in out.splitlines() if re.match(r"R[BC]\d", line)
    ]
    assert shown == [[each.code, each.name, each.severity] for each in EVERY]


@pytest.mark.parametrize("word", ["RC999", "wrong", "", "[red]x[/red]\x1b[2J"])
def test_an_unknown_rule_is_one_line_and_exit_code_2(run, word):
    code, out, err = run(word)
    assert (code, out) == (2, "")
    assert err.startswith("recon: unknown rule ")
    assert len(err.splitlines()) == 1
    assert "\x1b" not in err


@pytest.mark.parametrize(
    ("words", "codes"), [(["RC204"], ["RC204"]), (["RB101"], ["RB101"]), ([], CODES)]
)
def test_json_is_all_of_stdout_and_follows_the_schema(run, words, codes):
    code, out, err = run(*words, "--json", "-")
    assert (code, err) == (0, "")
    document = json.loads(out)
    jsonschema.validate(document, json.loads(schema_text("explain")))
    assert [each["code"] for each in document["rules"]] == codes


def test_json_goes_to_a_file_besides_the_page(run, tmp_path):
    path = tmp_path / "rule.json"
    code, out, _ = run("RC204", "--json", path)
    assert (code, out) == (0, page(rule("RC204")))
    assert json.loads(path.read_text())["rules"][0]["mend"] == rule("RC204").mend
