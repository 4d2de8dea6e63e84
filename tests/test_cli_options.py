"""One option means one thing: the same name, type and placeholder in every command."""

import inspect
from collections import defaultdict
from dataclasses import dataclass
from typing import Annotated, get_args, get_origin, get_type_hints

import pytest
import typer
from typer.models import OptionInfo

from recon import cli

# What a recorded baseline already says is not asked for again, only changed.
ONLY_CHANGES = "recon baseline check"
# Several patterns can be captured, a plot shows one; captures are a folder, a plot a
# file.
MEANT = {"--sites", "--out"}


@dataclass(frozen=True)
class Option:
    """What a command says of one of its options."""

    name: str
    type: str
    metavar: str | None
    default: str
    help: str | None


def options(function):
    """Yield the options of a command, from its signature."""
    defaults = inspect.signature(function).parameters
    for word, hint in get_type_hints(function, include_extras=True).items():
        if get_origin(hint) is not Annotated:
            continue
        base, info = get_args(hint)[:2]
        if isinstance(info, OptionInfo):
            # A command that only changes what is recorded may leave each out.
            plain = [a for a in get_args(base) if a is not type(None)] or [base]
            default = defaults[word].default
            yield Option(
                "--" + word.replace("_", "-"),
                str(plain),
                info.metavar,
                "required" if default is inspect.Parameter.empty else str(default),
                info.help,
            )


def commands(app, path="recon"):
    """Yield the options of every command by what is typed to run it."""
    for one in app.registered_commands:
        yield f"{path} {one.name}", list(options(one.callback))
    for group in app.registered_groups:
        yield from commands(group.typer_instance, f"{path} {group.name}")


COMMANDS = dict(commands(cli.app))


def disagreeing(table, *facts):
    """Return the options for which a fact is not the same wherever they are."""
    seen = defaultdict(set)
    for found in table.values():
        for option in found:
            seen[option.name].add(tuple(getattr(option, fact) for fact in facts))
    return {name for name, found in seen.items() if len(found) > 1}


def test_there_are_commands_and_options_to_compare():
    assert len(COMMANDS) > 10
    assert ONLY_CHANGES in COMMANDS
    assert {"--json", "--dtype", "--seed"} <= {o.name for o in COMMANDS["recon verify"]}


def test_an_option_takes_the_same_in_every_command():
    assert disagreeing(COMMANDS, "type", "metavar") <= MEANT


def test_an_option_has_the_same_default_in_every_command():
    asking = {path: found for path, found in COMMANDS.items() if path != ONLY_CHANGES}
    assert disagreeing(asking, "default") <= MEANT | {"--model"}


def test_options_that_disagree_would_be_seen():
    app = typer.Typer()
    number = Annotated[int, typer.Option(metavar="N")]
    other = Annotated[str, typer.Option(metavar="WORD")]

    def one(seed: number = 0) -> None: ...

    def two(seed: other = "x") -> None: ...

    one.__annotations__, two.__annotations__ = {"seed": number}, {"seed": other}
    app.command("one")(one)
    app.command("two")(two)
    table = dict(commands(app))
    assert disagreeing(table, "type") == {"--seed"}
    assert disagreeing(table, "metavar") == {"--seed"}
    assert disagreeing(table, "default") == {"--seed"}


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_shows_a_traceback_if_asked_and_explains_each_option(path):
    assert "--traceback" in {option.name for option in COMMANDS[path]}
    assert [option.name for option in COMMANDS[path] if not option.help] == []


@pytest.mark.parametrize("path", ["recon", "recon baseline", *COMMANDS])
def test_every_help_fits_80_columns(path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        cli.main([*path.split()[1:], "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert f"Usage: {path} " in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("path", COMMANDS)
def test_an_option_that_is_misspelt_is_guessed_in_every_command(path, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([*path.split()[1:], "--tracebak"])
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "--traceback" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["verify", "--model", "gpt2"], "here the model is named without it"),
        (["audit", "f.py:f", "--model"], "requires an argument"),
        (["audit", "f.py:f", "--modell", "gpt2"], "No such option: --modell"),
        (["verify", "random:tinny"], "did you mean random:tiny?"),
        (["verify", "random:huge"], "gpt2-xl\n"),
    ],
)
def test_a_model_that_is_named_wrongly_is_guessed(arguments, words, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("word", "guess"), [("wrong-sit", "did you mean wrong-site"), ("RC999", "RC999")]
)
def test_the_name_of_a_rule_that_is_misspelt_is_guessed_and_a_code_is_not(
    word, guess, capsys
):
    with pytest.raises(SystemExit) as end:
        cli.main(["explain", word])
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert guess in err
    assert ("did you mean" in err) == ("did you mean" in guess)
