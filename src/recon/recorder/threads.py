"""Whose pass it is: threads, told apart, and whether one has ended."""

from __future__ import annotations

import threading
import weakref
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recon.recorder.passes import Pass


class _Life:
    """Lives as long as the thread that made it."""


class _Identity(threading.local):
    """A number for each thread, since those of the system are given out again."""

    _numbers = count()

    def __init__(self) -> None:
        self.number = next(self._numbers)
        self._life = _Life()
        self.alive = weakref.ref(self._life)


IDENTITY = _Identity()


class Threads(threading.local):
    """The passes under way in the current thread, innermost last."""

    def __init__(self) -> None:
        self.stack: list[Pass] = []
        self.current: Pass | None = None


def living() -> weakref.WeakSet[threading.Thread]:
    """Return the threads that are alive now."""
    return weakref.WeakSet(threading.enumerate())
