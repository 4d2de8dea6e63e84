"""Every command on 80 columns, without colours, without Unicode, and in a pipe."""

import io
import re
import sys
from functools import partial

import pytest

from recon import cli
from recon.cli import streams
from recon.report.profile import render
from tests import made_up

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
CODE = """\
def capture(model, input_ids):
    kept = {}
    def keep(module, args, output):
        kept["h.1.mlp.post"] = output
    model.transformer.h[1].mlp.c_fc.register_forward_hook(keep)
    model(input_ids)
    return kept
"""
COMMANDS = {
    "verify": "verify random:tiny",
    "verify certify": "verify random:tiny --level certify",
    "sites": "sites random:tiny",
    "diff": "diff random:tiny@attn=eager random:tiny@dtype=bfloat16",
    "audit": "audit hooks.py:capture --model random:tiny --quick",
    "record": "baseline record b.json --model random:tiny --force",
    "check": "baseline check b.json --seed 1",
    "capture": "capture random:tiny --sites ln_f --out captured --mode overwrite",
    "info": "info captured",
    "rules": "explain",
    "rule": "explain RC104",
    "help": "--help",
    "audit help": "audit --help",
    "usage": "verify random:tiny --lvel all",
}


class Terminal(io.TextIOWrapper):
    """A stream that says that it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """``shown(encoding, terminal=)``: what each command writes, to stderr, too."""
    monkeypatch.chdir(tmp_path)
    for name in ("RECON_TRACEBACK", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "hooks.py").write_text(CODE)

    def shown(encoding="utf-8", *, terminal=True):
        found = {
            name: written(partial(cli.main, line.split()), encoding, terminal)
            for name, line in COMMANDS.items()
        }
        return found | {"profile": written(show_profile, encoding, terminal)}

    return shown


def show_profile():
    """Show a profile as the command does; measuring one takes long."""
    profile, console = made_up.profile(3, "hooks.kept[1]"), streams.output()
    page = render(profile, model="random:tiny", source="a prompt", console=console)
    streams.show(console, page)
    raise SystemExit(1)


def written(command, encoding, terminal):
    """Run a command; return what it wrote to both streams."""
    kept = io.BytesIO()
    kind = Terminal if terminal else io.TextIOWrapper
    # As Python itself opens them.
    errors = {"stdout": "strict", "stderr": "backslashreplace"}
    with pytest.MonkeyPatch.context() as patch:
        for name, how in errors.items():
            stream = kind(kept, encoding=encoding, errors=how, write_through=True)
            patch.setattr(sys, name, stream)
        with pytest.raises(SystemExit) as end:
            command()
        assert end.value.code in (None, 0, 1, 2)
        # A stream closes what it writes to when it goes.
        return kept.getvalue()


def lines(content):
    """Return what stands on the screen, line by line, as wide as it is shown."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", content.decode("utf-8"))
    return [line.rpartition("\r")[2] for line in text.splitlines()]


def test_nothing_is_wider_than_a_terminal_of_80_columns(shown):
    found = shown()
    told = [(name, line) for name in found for line in lines(found[name])]
    # What is wrong is one line, however long, for those who search in a log.
    told = [pair for pair in told if not pair[1].startswith("recon: ")]
    assert [pair for pair in told if len(pair[1]) > 80] == []
    assert all(map(bytes.strip, found.values()))
    assert any(b"\x1b[" in content for content in found.values())


def test_no_color_takes_the_colours_away(shown, monkeypatch):
    coloured = written(partial(cli.main, COMMANDS["verify"].split()), "utf-8", True)
    monkeypatch.setenv("NO_COLOR", "1")
    bare = shown()
    for name, content in bare.items():
        codes = COLOUR.findall(content.decode("utf-8"))
        # Bold and the like may stay: 3x and 4x are colours.
        assert not [c for c in codes if re.search(r"[\[;][349][0-7]", c)], name
    assert re.search(rb"\x1b\[[0-9;]*3[0-7]", coloured)


@pytest.mark.parametrize("terminal", [True, False])
def test_an_ascii_terminal_or_pipe_gets_words_and_no_spelt_out_signs(shown, terminal):
    for name, content in shown("ascii", terminal=terminal).items():
        assert content.isascii()
        assert b"\\u" not in content, name
        assert content.strip(), name


def test_in_a_pipe_there_is_neither_colour_nor_bar_nor_trailing_blank(shown):
    for name, content in shown(terminal=False).items():
        assert b"\x1b" not in content, name
        assert b"\r" not in content, name
        for line in content.decode("utf-8").splitlines():
            assert line == line.rstrip(), name
