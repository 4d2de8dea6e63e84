"""Where a command's output goes: a terminal, a pipe, a file.

rich is imported when there is something to show, for the sake of a quick ``--help``.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

from recon.cli.ending import drop_stdout
from recon.errors import UsageError
from recon.files import replace_bytes

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.status import Status

PLAIN_WIDTH = 100
ARGUMENTS: ContextVar[Sequence[str] | None] = ContextVar("ARGUMENTS", default=None)


def command_line() -> str:
    """Return the command that is running, to be typed again in a shell."""
    given = ARGUMENTS.get()
    return shlex.join(["recon", *(sys.argv[1:] if given is None else given)])


def output() -> Console:
    """Return the console for results: colours on a terminal only."""
    from rich.console import Console

    class Output(Console):
        def on_broken_pipe(self) -> None:
            """Go on without a reader: the verdict still decides the exit code."""
            drop_stdout()

    console = Output(highlight=False, emoji=False, markup=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PLAIN_WIDTH
    return console


def show(console: Console, result: RenderableType) -> None:
    """Print a result; in a pipe without the blanks that fill lines up."""
    if console.is_terminal:
        console.print(result)
        return
    with console.capture() as plain:
        console.print(result)
    write("".join(f"{line.rstrip()}\n" for line in plain.get().splitlines()), "-")


@contextmanager
def stdout_is_stderr() -> Iterator[None]:
    """Send what other code prints to stderr, also past Python: by a child, for one."""
    sys.stdout.flush()
    with ExitStack() as put_back:
        put_back.enter_context(redirect_stdout(sys.stderr))
        try:
            kept, out = os.dup(1), os.dup2(2, 1)
        except OSError:
            pass  # there is none
        else:
            put_back.callback(os.close, kept)
            put_back.callback(os.dup2, kept, out)
        yield


def progress() -> Console:
    """Return the console for what vanishes again: stderr, silent if no terminal."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    console.quiet = not console.is_terminal
    return console


def spinner() -> str:
    """Name a spinner of rich's that stderr can encode."""
    return "dots" if progress().encoding.startswith("utf") else "line"


def waiting(words: str) -> Status:
    """Return what says, on a terminal and while its block runs, what is done."""
    return progress().status(words, spinner=spinner())


def require_writable(target: str | None, option: str = "--json") -> None:
    """Raise UsageError, before any work is done, for a file that cannot be written."""
    if target in (None, "-"):
        return
    path = Path(str(target))
    if path.is_dir():
        raise UsageError(f"{option} {path}: is a directory; expected a file")
    if not path.parent.is_dir():
        raise UsageError(f"{option} {path}: there is no directory {path.parent}")


def require_distinct(outputs: Mapping[str, str | None]) -> None:
    """Raise UsageError where two formats would go to one place, or one to nowhere.

    ``outputs`` are targets by option.
    """
    taken: dict[str, str] = {}
    for option, target in outputs.items():
        require_writable(target, option)
        if target is None:
            continue
        place = target if target == "-" else os.path.realpath(target)
        if taken.setdefault(place, option) != option:
            raise UsageError(
                f"{taken[place]} and {option} both write to {target}; give each a file "
                "of its own"
            )


def write(text: str, target: str, option: str = "--json") -> None:
    """Write to stdout (``-``) or to a file, which is replaced whole or not at all.

    Raises UsageError, naming the ``option`` that asked for the file.
    """
    if target == "-":
        try:
            print(text, end="", flush=True)
        except BrokenPipeError:
            drop_stdout()
        except OSError as error:
            drop_stdout()
            words = f"stdout cannot be written: {error.strerror}"
            raise UsageError(words) from error
        return
    write_bytes(text.encode("utf-8"), target, option)


def write_bytes(content: bytes, target: str, option: str) -> None:
    """Write to a file, which is replaced whole or not at all; raises UsageError."""
    try:
        replace_bytes(Path(target).resolve(), content)
    except OSError as error:
        raise UsageError(
            f"{option} {target}: cannot be written: {error.strerror}"
        ) from error
