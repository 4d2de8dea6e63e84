"""The code and the output that the README shows are those of this version."""

import re
import shlex
from pathlib import Path

import pytest

import recon
from recon import cli
from recon.target import load_function

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def blocks(kind):
    """Return the fenced blocks of one language."""
    return re.findall(rf"```{kind}\n(.*?)```", README, flags=re.DOTALL)


def steady(output):
    """Leave out what a machine decides: versions, threads and times."""
    return [
        line.rstrip()
        for line in output.splitlines()
        if not line.startswith(("environment ", "time "))
    ]


def test_the_readme_has_code_and_output_to_check():
    assert blocks("python")
    assert blocks("console")


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_a_python_block_of_the_readme_runs(number):
    exec(compile(blocks("python")[number], f"README.md block {number}", "exec"), {})


@pytest.mark.parametrize("block", blocks("console"))
def test_the_output_in_the_readme_is_what_the_command_prints(
    block, capsys, monkeypatch
):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    command, _, shown = block.partition("\n")
    assert command.startswith("$ recon ")
    with pytest.raises(SystemExit) as end:
        cli.main(shlex.split(command)[2:])
    assert end.value.code == 0
    assert steady(shown) == steady(capsys.readouterr().out)


def test_output_of_another_model_would_not_be_taken_for_that_in_the_readme():
    shown = blocks("console")[0]
    assert steady(shown) != steady(shown.replace(" blocks)", " bricks)"))
    assert steady("time  1 s\nenvironment  x\na  ") == ["a"]


def paths_named_in(page):
    """Return the files and folders that a page's tables name in backticks."""
    rows = [line for line in page.splitlines() if line.startswith("|")]
    return re.findall(r"`((?:src|tests|property_tests|docs)/[\w./]*)`", "\n".join(rows))


def test_every_place_that_contributing_sends_to_exists():
    root = Path(__file__).parents[1]
    named = paths_named_in((root / "CONTRIBUTING.md").read_text("utf-8"))
    assert len(named) > 20
    assert [path for path in named if not (root / path).exists()] == []


def test_a_place_that_does_not_exist_would_be_found():
    assert paths_named_in("| a | `src/nowhere.py` |") == ["src/nowhere.py"]


# -- the tutorial ------------------------------------------------------------------

TUTORIAL = (Path(__file__).parents[1] / "docs" / "tutorial.md").read_text("utf-8")


def tutorial_codes(name, tmp_path, page=TUTORIAL):
    """Audit one of the files of a page; return the codes of what counts."""
    text = next(
        code
        for code in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
        if code.startswith(f"# {name}\n")
    )
    (tmp_path / name).write_text(text, encoding="utf-8")
    with load_function(f"{tmp_path / name}:capture") as found:
        model = recon.load_model("random:tiny").model
        report = recon.audit(found.function, model)
    return {finding.rule.code for finding in report.counting}


def test_the_tutorials_wrong_function_has_the_findings_that_the_text_explains(tmp_path):
    explained = set(re.findall(r"\[(RC\d+)\]", TUTORIAL))
    assert {"RC104", "RC201"} <= tutorial_codes("hooks.py", tmp_path) <= explained


def test_the_tutorials_mended_function_is_clean(tmp_path):
    assert tutorial_codes("mended.py", tmp_path) == set()


def test_the_first_page_tells_the_finding_that_its_function_has(tmp_path):
    start = (Path(__file__).parents[1] / "docs" / "start.md").read_text("utf-8")
    assert tutorial_codes("mine.py", tmp_path, start) == {"RC102"}
    assert "RC102, wrong-layer" in start


# -- other libraries ---------------------------------------------------------------


def rows_of_libraries(page):
    """Return version and number of tensors by library, as a page's table has them.

    ``make peers`` compares README's with what is installed and with an audit.
    """
    found = re.findall(
        r"^\| ([\w-]+) (\d[\d.]*) \|(?: `[^|]*\|)? (\d+) \|", page, flags=re.MULTILINE
    )
    return {name.replace("-", "").lower(): (version, n) for name, version, n in found}


def test_the_readme_and_the_page_on_other_libraries_say_the_same():
    peers = (Path(__file__).parents[1] / "docs" / "peers.md").read_text("utf-8")
    told = rows_of_libraries(README)
    assert len(told) == 4
    assert told.items() <= rows_of_libraries(peers).items()


def test_another_version_or_number_would_be_seen():
    row = "| captum 0.9.0 | 30 | 30 | 0 | 0 | clean |\n"
    assert rows_of_libraries(row) == {"captum": ("0.9.0", "30")}
    assert rows_of_libraries(row.replace("0.9.0", "0.9.1")) != rows_of_libraries(row)
