"""How a command ends: its exit code, and one line on stderr when it cannot go on."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, TypeAlias

import typer

from recon.errors import ReconError
from recon.report.foreign import visible

RECONCILED, DIVERGED, USAGE, INTERRUPTED, NO_READER = 0, 1, 2, 130, 141
CLEAN, FINDINGS = RECONCILED, DIVERGED
TRACEBACK = "RECON_TRACEBACK"


# ``run`` looks for it among the arguments, since the error may come before a command.
Traceback: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--traceback",
        help=f"Show Python's traceback with an error; {TRACEBACK}=1 does the same.",
    ),
]


def run(command: Callable[[], Any], arguments: Sequence[str]) -> int:
    """Run a command and return its exit code; an error becomes one line on stderr."""
    if sys.stdout is None:
        # The next file to be opened would take its place.
        _line("stdout is closed; send it to a file or a pipe, /dev/null for one")
        return USAGE
    _print_what_cannot_be_encoded_escaped()
    try:
        code = command()
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except (BrokenPipeError, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code in (None, 0):
            # A shell asked what may be typed next.
            return RECONCILED
        # Help's reader is gone; Typer ends with 1 then, which here means diverged.
        drop_stdout()
        code = NO_READER
    except Exception as error:
        if "--traceback" in arguments or os.environ.get(TRACEBACK, "") not in ("", "0"):
            traceback.print_exception(error)
        _line(_refused_by_stdout() or _words(error))
        return USAGE
    if code == INTERRUPTED:
        _line("interrupted")
    return code or 0


@contextmanager
def without_threads_of_others() -> Iterator[None]:
    """Exit for good where a thread that audited code left would keep the process."""
    before = set(threading.enumerate())
    try:
        yield
    except SystemExit as ending:
        new = set(threading.enumerate()) - before
        if any(not thread.daemon for thread in new):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(ending.code if isinstance(ending.code, int) else USAGE)
        raise


def drop_stdout() -> None:
    """Let what is still to be printed vanish: its reader, ``head`` perhaps, is gone."""
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, sys.stdout.fileno())
    os.close(sink)


def _refused_by_stdout() -> str:
    """Say why what is to be printed cannot be, and let it vanish; else nothing."""
    try:
        sys.stdout.flush()
    except OSError as error:
        drop_stdout()
        return f"stdout cannot be written: {error.strerror}"
    return ""


def _print_what_cannot_be_encoded_escaped() -> None:
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


def _words(error: Exception) -> str:
    # Typer's errors have no public base class that its older versions have too.
    format_message = getattr(error, "format_message", None)
    if format_message is not None:
        # Typer passes on the words of pydantic.
        words = format_message().replace("Value error, ", "").rstrip(".")
        if words.partition(" (")[0] == "No such option: --model":
            words = "No such option: --model; here the model is named without it"
        return f"{words}; see recon --help"
    if isinstance(error, ReconError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        # A name that is too long, a folder that may not be looked into, a full disk.
        name = error.filename
        place = "reading or writing failed" if name is None else os.fsdecode(name)
        return f"{place}: {error.strerror}"
    return (
        f"unexpected {type(error).__name__}: {error}; this is a bug in recon: please "
        f"report it with what --traceback, or {TRACEBACK}=1, shows"
    )


def _line(words: str) -> None:
    if sys.stderr is not None:  # print would take stdout instead
        print("recon:", visible(" ".join(words.split())), file=sys.stderr)
