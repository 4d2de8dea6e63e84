"""Code that does not end: stopped when its time is up, and told where it stood.

In the main thread a signal's handler raises, which ends waiting, too (for a lock, a
child, ``time.sleep``). In another thread, and where there are no such signals, an
asynchronous exception is set, which is raised when the thread next runs Python. Neither
reaches into a single call of C that goes on by itself.
"""

from __future__ import annotations

import ctypes
import gc
import signal
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import dropwhile
from pathlib import Path
from traceback import StackSummary
from types import FrameType
from typing import Any, TypeVar

from recon.errors import UsageError

T = TypeVar("T")

# For code whose pace is not known, an import for one; seconds.
USUAL = 120.0
# What is caught is raised again; code that catches that, too, is then also stopped in
# its own handler.
_AGAIN, _PATIENCE = 1.0, 3
# Who else waits for a signal uses SIGALRM.
_SIGNAL = getattr(signal, "SIGVTALRM", None)
_LIBRARIES = (
    *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")),
    str(Path(__file__).parent),
    "<frozen",
)


class NeverEndsError(BaseException):
    """Code was still running when its time was up; ``stack`` says where it stood.

    No Exception, so that code which goes on after any error does not go on after this.
    """

    def __init__(self, seconds: float, stack: StackSummary) -> None:
        self.seconds, self.stack = seconds, stack
        super().__init__(f"had not ended after {seconds:g} s{_place(stack)}")


class TimeUpError(BaseException):
    """What is raised in the code that must end."""


def within(seconds: float, call: Callable[[], T]) -> T:
    """Return what ``call`` returns, or raise what it raises, within ``seconds``.

    Raises NeverEndsError when the time is up, also if the code then ends in another
    way.
    """
    watched = _Watched(min(seconds, threading.TIMEOUT_MAX), threading.get_ident())
    try:
        with _signal_raises(watched), watched:
            value = _inside(call)
    except BaseException:
        if watched.stack is None:
            raise
    else:
        if watched.stack is None:
            return value
    raise NeverEndsError(seconds, watched.stack)


def require_seconds(seconds: float | None) -> None:
    """Raise UsageError for what is no length of time; None is left to recon."""
    if seconds is not None and not seconds > 0:
        raise UsageError(f"timeout: expected seconds above 0, found {seconds:g}")


def _inside(call: Callable[[], T]) -> T:
    """Call; only below this frame is anything raised."""
    return call()


@dataclass
class _Watched:
    """A thread whose time runs while the block is entered.

    ``stack`` is where it stood when its time was up, ``times`` how often it was told.
    """

    seconds: float
    ident: int
    signal: int | None = None
    stack: StackSummary | None = None
    times: int = 0
    _thread: threading.Thread = field(init=False)
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> None:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        while True:
            try:
                self._over.set()
                self._thread.join()
                _come_if_due()
                return
            except TimeUpError:
                continue  # it was set before the code ended, and came after that

    def _watch(self) -> None:
        wait = self.seconds
        while not self._over.wait(wait):
            frame = sys._current_frames().get(self.ident)
            if not _is_inside(frame):
                return
            if self.stack is None:
                self.stack = _stack(frame)
            self.times += 1
            self._tell()
            wait = _AGAIN

    def _tell(self) -> None:
        if self.signal is None:
            _set_exception(self.ident, TimeUpError)
        else:
            signal.pthread_kill(self.ident, self.signal)


@contextmanager
def _signal_raises(watched: _Watched) -> Iterator[None]:
    """Let a signal raise in the code, if this thread is the one that gets signals."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(_SIGNAL) if _SIGNAL is not None and main else None
    if _SIGNAL is None or before is None:
        yield
        return
    tracing = sys.gettrace()

    def told(number: int, frame: FrameType | None) -> None:
        if collector.runs or not _is_inside(frame):
            return
        if watched.times >= _PATIENCE:
            _stop_at_next_line(frame)
        raise TimeUpError

    collector = _Collector()
    signal.signal(_SIGNAL, told)
    watched.signal = _SIGNAL
    try:
        with collector:
            yield
    finally:
        if watched.times >= _PATIENCE:
            sys.settrace(tracing)
        signal.signal(_SIGNAL, before)


def _stop_at_next_line(frame: FrameType | None) -> None:
    """Raise again at the next line of the code's own, that which caught it, perhaps.

    Lines of libraries are let through: their handlers pass on what they catch.
    """

    def again(frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            raise TimeUpError
        return again

    while frame is not None and frame.f_code is not _inside.__code__:
        if not _of_a_library(frame.f_code.co_filename):
            frame.f_trace = again
        frame = frame.f_back
    sys.settrace(lambda frame, event, argument: None)


def _set_exception(ident: int, kind: type[BaseException]) -> None:
    set_exception = ctypes.pythonapi.PyThreadState_SetAsyncExc
    set_exception(ctypes.c_ulong(ident), ctypes.py_object(kind))


def _come_if_due() -> None:
    """Enter a function, at which Python raises what another thread has set.

    Taking it back (with NULL) would leave the interpreter looking for it for ever.
    """


def _is_inside(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code is not _inside.__code__:
        frame = frame.f_back
    return frame is not None


class _Collector:
    """Knows whether garbage is collected: what its finalizers raise is dropped.

    So is what callbacks of the collector raise, and those of weak references.
    """

    runs = False

    def __enter__(self) -> None:
        gc.callbacks.insert(0, self._begins)
        gc.callbacks.append(self._ends)

    def __exit__(self, *_: object) -> None:
        for one in (self._begins, self._ends):
            with suppress(ValueError):  # the code may have taken it off
                gc.callbacks.remove(one)

    def _begins(self, phase: str, info: object) -> None:
        self.runs = self.runs or phase == "start"

    def _ends(self, phase: str, info: object) -> None:
        self.runs = self.runs and phase != "stop"


# -- where it stood ------------------------------------------------------------------


def _stack(frame: FrameType | None) -> StackSummary:
    """Return the frames below ``_inside`` from the code's own on, outermost first."""
    frames = []
    while frame is not None and frame.f_code is not _inside.__code__:
        frames.append((frame, frame.f_lineno))
        frame = frame.f_back
    found = StackSummary.extract(reversed(frames))
    theirs = dropwhile(lambda one: _of_a_library(one.filename), found)
    return StackSummary.from_list(list(theirs) or found)


def _place(stack: StackSummary) -> str:
    """Name the innermost line that is in no library, and in a file if one is."""
    theirs = [one for one in stack if not _of_a_library(one.filename)] or list(stack)
    # A named tuple is made by code that the standard library wrote into a string.
    written = [one for one in theirs if one.filename != "<string>"] or theirs
    if not written:
        return ""
    file, line, function, _ = written[-1]
    return f"; it stood at {Path(file).name}, line {line}, in {function}"


def _of_a_library(file: str) -> bool:
    return file.startswith(_LIBRARIES)
