"""Every command that a page shows runs there, with the files that the page shows.

The commands of a page run in its order, in one directory. What a page takes for granted
(a file of prompts, a model of one's own) is laid there first; ``gpt2`` is a directory
with a small model, so that nothing is downloaded, and models of made-up weights are
small ones.
"""

import re
import shlex

import numpy as np
import pytest
import torch

import recon
from recon import cli
from tests.test_docs_commands import PAGES, ROOT, shown

RULES = sorted((ROOT / "src" / "recon" / "data" / "rules").glob("*.md"))
# Commands of another environment, by the start of the line: the reason.
NOT_RUN = {
    "compatibility.md: recon baseline check untied.json": "under two transformers",
}
# These have something to show: exit code 1, as their page says.
FINDS = {
    "audit.md: recon audit hooks.py:capture",
    "audit.md: recon audit hooks.py:capture --junit audit.xml --sarif audit.sarif",
    "profile.md: recon profile --target hooks.py:capture",
    "README.md: recon audit hooks.py:capture --model gpt2",
    "start.md: recon audit mine.py:capture --html report.html",
    "tutorial.md: recon audit hooks.py:capture",
}
SMALLER = {"random:gpt2": "random:tiny", "random:gpt2-medium": "random:tiny"}
# Times are not looked at here.
FEWER = {"profile": ["--rounds", "3", "--leak-rounds", "3"]}


def files(text):
    """Yield name and content of each file that a page shows: ``# name`` comes first."""
    for block in re.findall(r"```\w+\n(.*?)```", text, flags=re.DOTALL):
        if (first := re.match(r"# ([\w./]+\.\w+)\n", block)) is not None:
            yield first[1], block


def commands(page):
    """Return what a page shows, each once, with the id that the tables above use."""
    return {f"{page.name}: {line}": line for line in shown(page.read_text("utf-8"))}


def runs(name):
    return not any(name.startswith(start) for start in NOT_RUN)


WALKED = [page for page in [*PAGES, *RULES] if any(map(runs, commands(page)))]


@pytest.fixture(scope="module")
def given(quick_collections, tmp_path_factory):
    """What pages take for granted: models, prompts, ids, runs and captures."""
    home = tmp_path_factory.mktemp("given")
    loaded = recon.load_model("random:tiny")
    for name in ("gpt2", "path/to/model"):
        loaded.model.save_pretrained(home / name)
        loaded.tokenizer.save_pretrained(home / name)
    (home / "prompts.txt").write_text("The name is bound\nA function is called\n")
    ids = torch.tensor([[3, 14, 15, 92, 65, 35]])
    np.save(home / "ids.npy", ids.numpy())
    with torch.no_grad(), recon.capture(loaded.model) as recorder:
        loaded.model(ids)
    for name in ("before", "after", "captures"):
        recorder.trace.save(home / f"{name}.safetensors")
    tutorial = dict(files((ROOT / "docs" / "tutorial.md").read_text("utf-8")))
    (home / "hooks.py").write_text(tutorial["hooks.py"])
    return home


def walked(page, given, folder):
    """Run a page's commands in a directory; return the exit code of each."""
    text = page.read_text("utf-8")
    for name, content in files(text):
        (folder / name).write_text(content, encoding="utf-8")
    for place in given.iterdir():
        if not (folder / place.name).exists():
            (folder / place.name).symlink_to(place)
    for name in re.findall(r"^ {4}mkdir (.+)$", text, flags=re.MULTILINE):
        (folder / name).mkdir()
    return {
        name: exit_code(line) for name, line in commands(page).items() if runs(name)
    }


def exit_code(line):
    words = shlex.split(line, comments=True)[1:]
    with pytest.raises(SystemExit) as end:
        cli.main([SMALLER.get(word, word) for word in words] + FEWER.get(words[0], []))
    return end.value.code or 0


@pytest.mark.parametrize("page", WALKED, ids=lambda page: page.name)
def test_the_commands_of_a_page_run_with_the_files_that_it_shows(
    page, given, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    codes = walked(page, given, tmp_path)
    expected = {name: int(name in FINDS) for name in codes}
    assert codes == expected, capsys.readouterr().err


def test_every_exception_is_of_a_command_that_a_page_shows():
    known = {name for page in [*PAGES, *RULES] for name in commands(page)}
    assert known >= FINDS
    for start in NOT_RUN:
        assert any(name.startswith(start) for name in known)
    used = {word for name in known for word in name.split()}
    assert used >= set(SMALLER)


def test_a_command_that_fails_or_a_file_that_is_not_shown_is_seen(
    given, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "```python\n# there.py\ndef f(model, ids):\n    return {}\n```\n\n"
        "    recon audit nowhere.py:f\n    recon audit there.py:g\n    recon explain\n"
    )
    assert list(walked(page, given, tmp_path).values()) == [2, 2, 0]
    assert (tmp_path / "there.py").read_text().startswith("# there.py\ndef f")
