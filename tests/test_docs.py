"""The code and the output that the README shows are those of this version."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(kind):
    """Return the fenced blocks of one language."""
    return re.findall(rf"```{kind}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_a_python_block_of_the_readme_runs(number):
    exec(compile(blocks("python")[number], f"README.md block {number}", "exec"), {})


def test_the_readme_has_python_to_run():
    assert blocks("python")
