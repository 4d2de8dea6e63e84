"""What a shell may complete: commands, options, kinds, models, sites and rules."""

import os
import shutil
import subprocess
import sys

import pytest

from recon import cli, models
from recon.auditing.rules import RULES
from recon.cli import completing
from recon.report.rules import EVERY
from recon.sites import all_sites, select

BEGUN = {
    "a command": ("recon ver", "verify"),
    "an option": ("recon verify --inp", "--input-ids"),
    "a kind of plot": ("recon plot corr", "correlations"),
    "a model": ("recon verify bun", "bundled"),
    "a model of random weights": ("recon audit f.py:f --model ran", "random:tiny"),
    "a model whose sites are listed": ("recon sites bun", "bundled"),
    "a site of every block": ("recon capture --sites h.*.attn.pat", "h.*.attn.pattern"),
    "a site of one block": ("recon sites --sites h.7.mlp.pr", "h.7.mlp.pre"),
    "the code of a rule": ("recon explain RC10", "RC101"),
    "a rule of baselines": ("recon explain hidden-states-m", "hidden-states-moved"),
    "the name of a rule": ("recon audit --ignore wrong-si", "wrong-site"),
}


def asked(shell, line):
    """Return what the environment holds when a shell asks how a line may go on."""
    return {
        "_RECON_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split()) - 1),
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize("case", BEGUN)
def test_a_word_that_is_begun_is_completed(shell, case, monkeypatch, capfd):
    line, whole = BEGUN[case]
    for name, value in asked(shell, line).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as end:
        cli.main([])
    assert end.value.code == 0
    out, err = capfd.readouterr()
    # zsh wants its colons escaped.
    assert whole in out.replace("\\", "")
    assert err == ""


def test_a_word_that_begins_nothing_is_not_completed(monkeypatch, capfd):
    for name, value in asked("bash", "recon explain QQ").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        cli.main([])
    assert capfd.readouterr().out.strip() == ""


def test_completing_imports_neither_torch_nor_transformers():
    program = (
        "import sys; from recon.cli import main\n"
        "try: main([])\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    for line in ("recon explain RC", "recon capture --sites h.*.attn"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | asked("bash", line),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout


# What bash's readline makes of a line, since ":" parts words for it; and the answer.
PARTED = {
    "random:": ("recon verify random :", ["tiny", "gpt2", "gpt2-large"]),
    "random:t": ("recon verify random : t", ["tiny"]),
    "after a colon": ("recon audit f.py : f --model random : ti", ["tiny"]),
    "long after one": ("recon audit f.py : f --model bun", ["bundled"]),
    "before one": ("recon audit f.py", []),
}


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("words", "offered"),
    [("recon plot corr", ["correlations"]), *PARTED.values()],
    ids=["no colon", *PARTED],
)
def test_bash_completes_with_the_script_that_recon_gives_it(tmp_path, words, offered):
    command = tmp_path / "recon"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m recon "$@"\n')
    command.chmod(0o755)
    program = (
        'eval "$(_RECON_COMPLETE=source_bash recon)"\n'
        f"COMP_WORDS=({words})\nCOMP_CWORD={len(words.split()) - 1}\n"
        "_recon_completion recon\n"
        'echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", program],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = done.stdout.split()
    assert set(offered) <= set(found)
    assert (found == []) == (offered == [])
    assert all(":" not in word for word in found)


def test_every_model_that_a_name_may_be_misspelt_from_is_offered():
    assert sorted(name for name, _ in completing.models("")) == sorted(models._NAMES)


def test_every_site_is_offered_and_every_offer_is_a_site():
    places = list(all_sites(2))
    offered = [name for name, _ in completing.sites("")]
    assert select(offered, places) == places
    assert all(select(name, places) for name in offered)
    one = {name for name, _ in completing.sites("h.1.")}
    assert one == {str(place) for place in places if place.layer == 1}


def test_rules_are_offered_whatever_their_case():
    assert {code for code, _ in completing.rules("rc")} == {r.code for r in RULES}
    assert {code for code, _ in completing.every_rule("r")} >= {r.code for r in EVERY}


def test_an_audit_cannot_ignore_what_a_baseline_tells():
    assert completing.rules("RB") == []
    assert [code for code, _ in completing.every_rule("rb101")] == ["RB101"]
