"""The recorder: hooks on, passes kept, hooks off.

A ``Trace`` is put together when asked for. While the model runs, a recorder without
options computes nothing of what it captures: it copies token and position ids and the
contents of static caches, which later steps write in place, and reads versions and
addresses of the weights. Options add copies of what is kept, and ``check=`` its checks.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Collection, Iterator
from itertools import count
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from recon.errors import CaptureError, UsageError
from recon.plan import Plan, Tap
from recon.recorder.assembling import Assembler, narrow, never_ran
from recon.recorder.keeping import Budget, Keeper
from recon.recorder.listening import Hook, keeping_listener, raw_listener
from recon.recorder.options import Options
from recon.recorder.passes import Consumer, Pass, error_in_words
from recon.recorder.threads import IDENTITY, Threads
from recon.sites import Site
from recon.trace import Trace, absent_positions, held_bytes


class Recorder:
    """Records every forward pass of a model between enter and exit.

    Made by ``recon.capture``. One recorder serves many passes, threads and enters; it
    leaves the model as it was, also after an exception.
    """

    def __init__(
        self,
        plan: Plan,
        options: Options,
        consumer: Callable[[int], Consumer] | None = None,
    ) -> None:
        self._plan = plan
        self._consumer = consumer
        self._options = options
        self._threads = Threads()
        wanted, taps = narrow(plan, options.sites)
        # Kept as the hooks saw it, and looked into when a trace is asked for.
        raw = consumer is None and wanted is None and options.by_reference
        self._assembler = Assembler(plan, wanted, taps, options.altered, raw)
        # Made once: a recorder is entered as often as passes are run, and these refer
        # to nothing that refers back to it.
        self._raw = (
            [raw_listener(self._threads, n, tap) for n, tap in enumerate(taps)]
            if raw
            else []
        )
        self._budget = Budget(options.budget)
        self._keeper = Keeper(options, self._budget, wanted)
        self._passes: list[Pass] = []
        self._built: dict[int, Trace] = {}
        self._runs = count()
        self._hooks: list[RemovableHandle] | None = None
        self._lock = threading.Lock()

    # -- life ------------------------------------------------------------------

    def __enter__(self) -> Recorder:
        if self._hooks is not None:
            raise UsageError(
                "this recorder is on already; leave it before entering again"
            )
        hooks: list[RemovableHandle] = []
        try:
            for handle in self._register():
                hooks.append(handle)
        except BaseException:
            _remove(hooks)
            raise
        self._hooks = hooks
        return self

    def _register(self) -> Iterator[RemovableHandle]:
        root = self._plan.root
        yield root.register_forward_pre_hook(self._begin, with_kwargs=True)
        # Not kept: some refer to the recorder, and memory would not come back before
        # Python's collector finds the cycle.
        for place, tap in enumerate(self._assembler.taps):
            hook = self._hook(place, tap)
            yield tap.module.register_forward_hook(hook, with_kwargs=True)
        yield root.register_forward_hook(self._end, always_call=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        hooks, self._hooks = self._hooks, None
        _remove(hooks or [])
        for one in self._passes:
            if one.running:
                self._stop(one, kind.__name__ if kind else "interrupted")

    def __deepcopy__(self, memo: dict[int, Any]) -> Recorder:
        """Return itself: a copy of the model has the hooks, and is not recorded."""
        return self

    def _begin(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if module is not self._plan.root:
            return
        self._settle()
        mine = self._threads
        one = Pass(
            run=next(self._runs),
            thread=IDENTITY.number,
            alive=IDENTITY.alive,
            start=self._plan.begin(args, kwargs),
            frame=sys._getframe(1),
            detach=torch.is_grad_enabled() and not self._options.grad,
        )
        if self._consumer is not None:
            one.consumer = self._consumer(one.run)
        if self._options.keep == "last" and not mine.stack:
            self._forget(one.thread)
        with self._lock:
            self._passes.append(one)
        mine.stack.append(one)
        mine.current = one
        if not self._raw:
            self._keeper.begin(one)

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        mine = self._threads
        if not mine.stack or module is not self._plan.root:
            return
        one = mine.stack.pop()
        mine.current = mine.stack[-1] if mine.stack else None
        if output is None:
            # An always-called hook sees no output when the pass raised.
            self._stop(one, error_in_words(sys.exc_info()[1]))
            return
        try:
            one.end = self._plan.end()
        except Exception as error:
            one.fail("the model", error)
        one.stop()
        if one.consumer is not None:
            self._consume(one, self._assembler.depth, None)

    def _stop(self, one: Pass, failure: str) -> None:
        """Close a pass that did not run to its end."""
        one.stop(failure)
        self._budget.settle(one)

    def _settle(self) -> None:
        """Close this thread's passes that were interrupted.

        After KeyboardInterrupt torch calls no hook, so only the call stack tells.
        """
        mine = self._threads
        while mine.stack and not mine.stack[-1].under_way:
            if (one := mine.stack.pop()).running:
                self._stop(one, "interrupted")
        mine.current = mine.stack[-1] if mine.stack else None

    def _settle_ended(self) -> None:
        """Close the passes that a thread left behind when it ended, by sys.exit say."""
        for one in self._passes:
            if one.running and one.alive() is None:
                self._stop(one, "interrupted")

    def _forget(self, thread: int) -> None:
        """Let go of a thread's passes, and of those of threads that none alive knew.

        Else each request of a server that has a thread for each would leave one.
        """
        with self._lock:
            gone = [
                one.run
                for one in self._passes
                if one.thread == thread or one.ended_before_this_thread()
            ]
            if gone:
                self._let_go(gone)

    def _let_go(self, runs: Collection[int]) -> None:
        """Drop some passes, and their tensors; called with the lock held."""
        for one in self._passes:
            if one.run in runs:
                self._budget.drop(one)
                self._built.pop(one.run, None)
        self._passes = [one for one in self._passes if one.run not in runs]

    # -- hooks -----------------------------------------------------------------

    def _hook(self, place: int, tap: Tap) -> Hook:
        if self._raw:
            return self._raw[place]
        listen = keeping_listener(self._threads, place, tap, self._keeper)
        stage, threads = tap.completes, self._threads
        if stage is None or self._consumer is None:
            return listen

        def listen_and_pass_on(
            module: nn.Module,
            args: tuple[Any, ...],
            kwargs: dict[str, Any],
            output: Any,
        ) -> None:
            listen(module, args, kwargs, output)
            if threads.current is not None:
                self._consume(threads.current, stage, place)

        return listen_and_pass_on

    def _consume(self, one: Pass, stage: int, place: int | None) -> None:
        """Hand a finished stage on, and keep only what the next one starts from."""
        if one.consumer is None:
            return
        try:
            one.consumer(self._assembler.trace(one, stage), stage)
        except Exception as error:
            one.fail(f"stage {stage}", error)
        carried: dict[Site, Tensor] = {}
        if place is not None and one.calls:
            # The tap that completes a stage is the last one that fired.
            carried = self._assembler.outputs(place, one.calls[-1])
        # What the embeddings noted holds for the whole pass.
        lasting = self._assembler.notes(one) if stage < 0 else one.lasting
        one.let_go()
        one.carried, one.lasting = carried, lasting
        if place is None:
            one.empty()
        self._budget.settle(one)

    # -- what was recorded -----------------------------------------------------

    @property
    def trace(self) -> Trace:
        """The last pass of this thread, frozen.

        Raises CaptureError if there was none, if a hooked module never ran in it, or if
        it lacks a token that ``positions=`` asks for.
        """
        self._settle()
        mine = [p for p in self._passes if p.thread == IDENTITY.number]
        if not mine:
            raise CaptureError(self._nothing())
        trace = self._build(max(mine, key=lambda one: one.run))
        if trace.complete and trace.never_ran:
            raise CaptureError(never_ran(trace))
        if trace.absent:
            raise CaptureError(
                f"run {trace.run}: {absent_positions(trace)}; recorder.traces shows "
                "what each pass has"
            )
        return trace

    @property
    def traces(self) -> tuple[Trace, ...]:
        """All kept passes of all threads, in the order in which they began.

        ``keep="last"`` keeps the last one of each thread that is alive, and of those
        that have ended until a pass begins in a thread that is younger than their end.
        """
        self._settle()
        self._settle_ended()
        return tuple(
            self._build(one) for one in sorted(self._passes, key=lambda p: p.run)
        )

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the captures keep alive; shared storages count once.

        With what was noted of each pass, without the weights of the model.
        """
        return held_bytes(t for one in self._passes for t in one.tensors())

    def clear(self) -> None:
        """Drop all passes that are not under way, and their tensors."""
        self._settle()
        self._settle_ended()
        with self._lock:
            self._let_go({one.run for one in self._passes if not one.running})

    def _nothing(self) -> str:
        root = type(self._plan.root).__name__
        if self._passes:
            return (
                f"no pass of {root} ran in this thread, {len(self._passes)} ran in "
                "others: see recorder.traces"
            )
        return (
            f"no forward pass of {root} was recorded: call the model itself, inside "
            "the with block (calling one of its submodules is not a pass of it)"
        )

    def _build(self, one: Pass) -> Trace:
        if one.run not in self._built:
            trace = self._assembler.trace(one)
            if one.running:
                return trace
            self._built[one.run] = trace
        return self._built[one.run]

    def __repr__(self) -> str:
        state = "on" if self._hooks is not None else "off"
        return (
            f"Recorder({type(self._plan.root).__name__}, {state}, "
            f"{len(self._passes)} runs kept, {self.nbytes:,} bytes held)"
        )


def _remove(hooks: list[RemovableHandle]) -> None:
    for handle in hooks:
        handle.remove()
