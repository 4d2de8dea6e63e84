"""Every command that a page shows exists, with the options that it is shown with."""

import re
import shlex
from pathlib import Path

import pytest

from tests.test_cli_options import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ALWAYS = {"--help"}


def shown(text):
    """Return the command lines of a page: indented, or after a prompt."""
    return re.findall(r"^(?: {4}|\$ )(recon [a-z].*)$", text, flags=re.MULTILINE)


def faults(line):
    """Say what recon does not know of a command line."""
    words = shlex.split(line, comments=True)
    path = " ".join(words[: 3 if words[1] == "baseline" else 2])
    if path not in COMMANDS:
        return [path]
    known = {option.name for option in COMMANDS[path]} | ALWAYS
    asked = {word.partition("=")[0] for word in words if word.startswith("--")}
    return sorted(asked - known)


LINES = [
    pytest.param(line, id=f"{page.name}: {line}")
    for page in PAGES
    for line in shown(page.read_text("utf-8"))
]


def test_the_pages_show_commands():
    assert len(LINES) > 25


@pytest.mark.parametrize("line", LINES)
def test_a_command_that_a_page_shows_exists_with_its_options(line):
    assert faults(line) == []


def test_an_unknown_command_or_option_would_be_found():
    assert faults("recon verfy gpt2") == ["recon verfy"]
    assert faults("recon verify gpt2 --jsn x --seed=1") == ["--jsn"]
    assert faults("recon baseline forget x.json") == ["recon baseline forget"]
