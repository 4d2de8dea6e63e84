"""Code that does not end is stopped, wherever it waits and whatever it catches."""

import gc
import queue
import signal
import sys
import threading
import time
from traceback import FrameSummary, StackSummary

import pytest

from recon.deadline import NeverEndsError, require_seconds, within
from recon.errors import UsageError

SOON = 0.2
# More than the three tries after which handlers of the code's own are stopped, too.
LATEST = 8


def loops():
    while True:
        pass


def waits():
    queue.Queue().get()


def sleeps():
    time.sleep(60)


def tries_again():
    while True:
        try:
            time.sleep(60)
        except Exception:
            continue


def catches_everything():
    while True:
        try:
            sum(range(1000))
        except:  # noqa: E722  # the fault to be survived
            continue


def catches_it_once():
    try:
        time.sleep(60)
    except BaseException:
        return 1


def traces():
    sys.settrace(lambda *_: None)
    while True:
        pass


def hides_it():
    try:
        time.sleep(60)
    except BaseException as error:
        raise ValueError("another") from error


@pytest.fixture
def tracing():
    """Put back what traces, a measurement of coverage for one."""
    before = sys.gettrace()
    yield
    sys.settrace(before)


ENDLESS = [
    loops,
    waits,
    sleeps,
    tries_again,
    catches_everything,
    catches_it_once,
    hides_it,
    traces,
]


@pytest.mark.parametrize("code", ENDLESS, ids=lambda code: code.__name__)
@pytest.mark.usefixtures("tracing")
def test_code_that_does_not_end_is_stopped_and_where_it_stood_is_said(code):
    begun = time.monotonic()
    with pytest.raises(NeverEndsError, match=f"in {code.__name__}$") as late:
        within(SOON, code)
    assert SOON < time.monotonic() - begun < LATEST
    assert late.value.stack[0].name == code.__name__


def test_code_in_another_thread_is_stopped_when_it_runs_python():
    raised = []

    def audited():
        try:
            within(SOON, loops)
        except NeverEndsError as error:
            raised.append(error)

    thread = threading.Thread(target=audited, daemon=True)
    thread.start()
    thread.join(LATEST)
    (error,) = raised
    assert str(error).endswith("in loops")


@pytest.mark.usefixtures("tracing")
def test_code_that_traces_ends_as_ever():
    def code():
        sys.settrace(lambda *_: None)
        return len("abc")

    assert within(LATEST, code) == 3


def test_what_ends_in_time_returns_and_raises_as_ever():
    assert within(LATEST, lambda: 3) == 3
    with pytest.raises(KeyError):
        within(LATEST, lambda: {}["key"])


def test_nothing_of_it_stays():
    def state():
        return signal.getsignal(signal.SIGVTALRM), sys.gettrace(), threading.enumerate()

    before = state()
    with pytest.raises(NeverEndsError):
        within(SOON, catches_everything)
    within(SOON, lambda: None)
    assert state() == before


def test_what_comes_late_is_not_stopped():
    within(SOON, lambda: None)
    begun = time.monotonic()
    while time.monotonic() - begun < 3 * SOON:
        pass
    assert time.monotonic() - begun >= 3 * SOON


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_what_is_no_time_is_refused(seconds):
    with pytest.raises(UsageError, match="expected seconds above 0"):
        require_seconds(seconds)


def test_no_time_and_endless_time_are_fine():
    require_seconds(None)
    require_seconds(float("inf"))
    assert within(float("inf"), lambda: 1) == 1


def test_time_that_is_up_while_garbage_is_collected_is_told_after_it():
    def slowly(phase, info):
        until = time.monotonic() + 3 * SOON
        while time.monotonic() < until:
            pass

    def collects():
        gc.collect()
        loops()

    others = len(gc.callbacks)
    gc.callbacks.append(slowly)
    try:
        # What a callback of the collector raises is dropped, with a warning.
        with pytest.raises(NeverEndsError):
            within(SOON, collects)
    finally:
        gc.callbacks.remove(slowly)
    assert len(gc.callbacks) == others


def test_time_that_is_up_in_the_finalizer_of_garbage_is_told_after_it():
    class Slow:
        def __init__(self):
            self.me = self

        def __del__(self):
            until = time.monotonic() + 3 * SOON
            while time.monotonic() < until:
                pass

    def collects():
        Slow()
        gc.collect()
        loops()

    with pytest.raises(NeverEndsError):
        within(SOON, collects)


def test_where_code_stood_is_told_by_a_line_of_a_file():
    made = FrameSummary("<string>", 1, "<lambda>", lookup_line=False)
    theirs = FrameSummary("hooks.py", 7, "capture", lookup_line=False)
    told = NeverEndsError(1.0, StackSummary.from_list([theirs, made]))
    assert str(told).endswith("it stood at hooks.py, line 7, in capture")
    told = NeverEndsError(1.0, StackSummary.from_list([made]))
    assert str(told).endswith("it stood at <string>, line 1, in <lambda>")
