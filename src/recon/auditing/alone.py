"""Call someone's code by itself: nothing that it prints, asks or ends reaches recon."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NoReturn, TextIO


@contextmanager
def alone() -> Iterator[None]:
    """Keep what the code prints and warns of out of the report, and the process alive.

    Code that asks for input raises EOFError, and does not wait for a person.
    """
    with (
        _nowhere() as nowhere,
        redirect_stdout(nowhere),
        redirect_stderr(nowhere),
        _nothing_typed(),
        warnings.catch_warnings(),
        _no_end_of_the_process(),
    ):
        warnings.simplefilter("ignore")
        yield


def _nowhere() -> TextIO:
    # A whole file: code may write bytes to it, or hand it to a child.
    return Path(os.devnull).open("w", encoding="utf-8", errors="replace")


@contextmanager
def _nothing_typed() -> Iterator[None]:
    with Path(os.devnull).open(encoding="utf-8") as nothing:
        before, sys.stdin = sys.stdin, nothing
        try:
            yield
        finally:
            sys.stdin = before


@contextmanager
def _no_end_of_the_process() -> Iterator[None]:
    """Let ``os._exit`` raise SystemExit, and a child that was forked end here."""
    process, end = os.getpid(), os._exit

    def leave(status: int) -> NoReturn:
        if os.getpid() != process:
            end(status)
        raise SystemExit(status)

    os._exit = leave  # put back below
    try:
        yield
    finally:
        os._exit = end
        if os.getpid() != process:
            end(0)
