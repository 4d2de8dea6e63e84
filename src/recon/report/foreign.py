"""Strings that someone else's code chose, made safe to print, to store and to parse.

The name of a tensor may hold whatever Python lets a string hold: newlines, commands to
a terminal, halves of characters.
"""

from __future__ import annotations

import math


def visible(text: str) -> str:
    r"""Return one line to print, in which what cannot be seen is spelt out: ``\x1b``.

    Of what this leaves, XML allows all.
    """
    return "".join(mark if mark.isprintable() else _spelt(mark) for mark in text)


def visible_lines(text: str) -> list[str]:
    """Return the lines of a longer text, a traceback for one, each to be printed."""
    return [visible(line) for line in text.splitlines()]


def encodable(text: str) -> str:
    r"""Return text that UTF-8 can hold: half characters are spelt out, ``\ud800``."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def plain(value: float | int | str) -> float | int | str:
    """Return a figure that JSON can hold: what is no number there is spelt out."""
    if isinstance(value, str):
        return encodable(value)
    return value if math.isfinite(value) else str(value)


def _spelt(mark: str) -> str:
    return mark.encode("unicode_escape").decode("ascii")
