"""The workflow and the hook that docs/ci.md shows are sound, and do what it says."""

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from junitparser import JUnitXml

from recon import cli

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "ci.md").read_text("utf-8")
WORKFLOW, HOOK = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)


def tool(*arguments):
    """Run a module; return its exit code and all that it said."""
    command = [sys.executable, "-m", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def workflow_problems(text, place):
    file = place / "recon.yml"
    file.write_text(text, encoding="utf-8")
    schema = ("--builtin-schema", "vendor.github-workflows")
    return tool("check_jsonschema", *schema, file)


def test_the_workflow_is_one_that_github_takes(tmp_path):
    code, said = workflow_problems(WORKFLOW, tmp_path)
    assert code == 0, said


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("    runs-on: ubuntu-latest\n", ""),
        ("timeout-minutes: 20", "timeout: 20"),
        ("security-events: write", "security-events: maybe"),
        (
            "- name: Install\n        run: |",
            "- name: Install\n        ran: |",
        ),
    ],
)
def test_a_workflow_that_github_refuses_is_refused(tmp_path, right, wrong):
    assert right in WORKFLOW
    code, said = workflow_problems(WORKFLOW.replace(right, wrong), tmp_path)
    assert code == 1, said


def checks():
    """Return the recon commands of the workflow, and that of the hook."""
    (job,) = yaml.safe_load(WORKFLOW)["jobs"].values()
    ran = [step["run"] for step in job["steps"] if "run" in step]
    (hook,) = yaml.safe_load(HOOK)["repos"][0]["hooks"]
    return [line for line in [*ran, hook["entry"]] if line.startswith("recon ")]


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """The baseline that the page records, of a smaller model."""
    monkeypatch.chdir(tmp_path)
    Path("baselines").mkdir()
    record = ["record", "baselines/gpt2.json", "--model", "random:tiny"]
    with pytest.raises(SystemExit) as end:
        cli.main(["baseline", *record])
    assert end.value.code == 0


@pytest.mark.parametrize("command", checks())
def test_a_command_of_the_page_passes_and_leaves_the_files_that_later_steps_take(
    command, recorded
):
    with pytest.raises(SystemExit) as end:
        cli.main(shlex.split(command)[1:])
    assert end.value.code == 0
    if "--junit" in command:
        suites = {one.name: one for one in JUnitXml.fromfile("recon-junit.xml")}
        assert suites["sites"].tests > 40
        assert json.loads(Path("recon.sarif").read_text("utf-8"))["runs"]
        assert "sarif_file: recon.sarif" in WORKFLOW
        assert "path: recon-junit.xml" in WORKFLOW


def test_both_commands_of_the_page_are_run():
    assert len(checks()) == 2


def test_the_hook_is_one_that_pre_commit_takes(tmp_path):
    (tmp_path / "right.yaml").write_text(HOOK, encoding="utf-8")
    assert tool("pre_commit", "validate-config", tmp_path / "right.yaml") == (0, "")
    (tmp_path / "wrong.yaml").write_text(HOOK.replace("entry:", "enter:"), "utf-8")
    code, said = tool("pre_commit", "validate-config", tmp_path / "wrong.yaml")
    assert (code, "entry" in said) == (1, True)


def test_the_hook_that_this_repository_offers_is_one_that_pre_commit_takes(tmp_path):
    offered = ROOT / ".pre-commit-hooks.yaml"
    assert tool("pre_commit", "validate-manifest", offered) == (0, "")
    wrong = offered.read_text("utf-8").replace("language: system", "language: none")
    (tmp_path / "wrong.yaml").write_text(wrong, encoding="utf-8")
    assert tool("pre_commit", "validate-manifest", tmp_path / "wrong.yaml")[0] == 1


def test_the_projects_own_hooks_are_ones_that_pre_commit_takes():
    own = ROOT / ".pre-commit-config.yaml"
    assert tool("pre_commit", "validate-config", own) == (0, "")


# -- the plugin watches recon's own tests ---------------------------------------------

LEAVES_ITS_HOOKS = """
from recon.recorder import Recorder

Recorder.__exit__ = lambda self, *error: None
"""


def test_a_recorder_that_leaves_its_hooks_fails_a_test_that_does_not_ask(
    tmp_path, monkeypatch
):
    (tmp_path / "planted.py").write_text(LEAVES_ITS_HOOKS, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.chdir(ROOT)
    test = "tests/test_capturing.py::test_a_site_that_was_not_asked_for_is_not_held"
    code, said = tool("pytest", "-q", "-p", "no:cacheprovider", "-p", "planted", test)
    assert code == 1
    assert "1 passed, 1 error" in said
    assert "- recon leaks -" in said
    assert "forward hook recon.recorder." in said


def test_the_tests_of_hooks_are_watched():
    for name in ("recorder", "capturing"):
        module = importlib.import_module(f"tests.test_{name}")
        assert module.pytestmark.name == "recon_no_leaks"
