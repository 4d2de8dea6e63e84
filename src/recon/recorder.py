"""Capture: the only module that registers hooks. It knows no model.

A recorder puts one forward hook on each module of a ``Plan`` and keeps what the hook
sees, by reference. Nothing is computed while the model runs; a ``Trace`` is put
together when it is asked for.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from operator import index
from types import FrameType, TracebackType
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from recon.errors import BudgetError, CaptureError, UsageError
from recon.plan import Plan, Port, Read, Tap
from recon.sites import Site, all_sites, select
from recon.trace import Trace, held_bytes, sources

Keep: TypeAlias = Literal["last", "all"]
Positions: TypeAlias = Sequence[int] | slice | Tensor | int


@dataclass(frozen=True)
class Options:
    """What to keep of each pass, and how; see ``recon.capture``."""

    sites: str | Iterable[str] | None = None
    positions: Positions | None = None
    dtype: torch.dtype | None = None
    device: torch.device | str | None = None
    clone: bool = False
    grad: bool = False
    keep: Keep = "last"
    budget: int | None = None

    def __post_init__(self) -> None:
        if self.keep not in ("last", "all"):
            raise UsageError(f"keep={self.keep!r}: expected 'last' or 'all'")
        if self.budget is not None and self.budget <= 0:
            raise UsageError(
                f"budget={self.budget}: expected a number of bytes above 0"
            )
        if self.dtype is not None and not self.dtype.is_floating_point:
            raise UsageError(f"dtype={self.dtype}: expected a floating-point dtype")
        object.__setattr__(self, "positions", _as_positions(self.positions))

    @property
    def by_reference(self) -> bool:
        """Whether tensors are kept as they are, without a copy."""
        copies = self.dtype is not None or self.device is not None or self.clone
        return not copies and self.positions is None and self.budget is None

    @property
    def altered(self) -> str:
        """How captured tensors differ from the run's, in words; empty if not."""
        changes = [f"dtype={self.dtype}" if self.dtype else ""]
        changes += ["positions=" if self.positions is not None else ""]
        return ", ".join(change for change in changes if change)


# What one firing of a hook left: the number of its tap, what was seen at its input and
# output, and what its note said.
Call: TypeAlias = tuple[int, Any, Any, Any]


@dataclass(eq=False, slots=True)
class _Pass:
    """One forward pass while it is being recorded.

    ``calls`` is one list for all taps, and hooks touch nothing but ``take``, which adds
    to it. ``fired`` are the taps whose calls were let go already.
    """

    run: int
    thread: int
    start: Any
    frame: FrameType | None
    detach: bool
    calls: list[Call] = field(default_factory=list)
    take: Callable[[Call], None] = lambda call: None
    fired: tuple[int, ...] = ()
    consumer: Consumer | None = None
    carried: dict[Site, Tensor] = field(default_factory=dict)
    lasting: dict[str, list[Any]] = field(default_factory=dict)
    end: Any = None
    running: bool = True
    failure: str | None = None
    positions: tuple[int, ...] | None = None
    charged: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Bound to the list, not to the pass: a cycle would outlive its last use.
        append = self.calls.append
        self.take = partial(_take_detached, append) if self.detach else append

    def tensors(self) -> Iterator[Tensor]:
        yield from self.carried.values()
        # Masks and the contents of caches, which notes hold, are kept alive, too.
        yield from _tensors_in([call[1:] for call in self.calls])

    def by_tap(self, taps: int) -> list[list[Call]]:
        """Sort the calls by tap, each in the order in which they came."""
        sorted_calls: list[list[Call]] = [[] for _ in range(taps)]
        for call in self.calls:
            sorted_calls[call[0]].append(call)
        return sorted_calls

    def has_called(self, place: int) -> bool:
        """Whether a tap fired before in this pass."""
        return place in self.fired or any(place == call[0] for call in self.calls)

    @property
    def under_way(self) -> bool:
        """Whether the call that began the pass has not returned yet."""
        return self.running and _on_call_stack(self.frame)

    def stop(self, failure: str | None = None) -> None:
        """Close the pass; what no consumer will take any more is let go."""
        self.running, self.frame, self.failure = False, None, failure
        self.take = _ignore
        if failure is not None and self.consumer is not None:
            self.let_go()

    def let_go(self) -> None:
        """Drop all tensors, and keep count of what fired."""
        self.carried, self.lasting = {}, {}
        self.fired += tuple(call[0] for call in self.calls)
        self.calls.clear()


def _ignore(call: Call) -> None:
    """Take nothing: the pass was closed while another thread still ran it."""


def _take_detached(append: Callable[[Call], None], call: Call) -> None:
    place, before, output, said = call
    append((place, _detached(before), _detached(output), said))


class _Identity(threading.local):
    """A number for each thread; those of the system are given out again."""

    _numbers = count()

    def __init__(self) -> None:
        self.number = next(self._numbers)


_IDENTITY = _Identity()


class _Thread(threading.local):
    """The passes under way in the current thread, innermost last."""

    def __init__(self) -> None:
        self.stack: list[_Pass] = []
        self.current: _Pass | None = None


class Consumer(Protocol):
    """What takes the tensors of a pass stage by stage, so that none need be kept.

    It is called with a trace of one stage (-1 the embeddings, then each block, then the
    head) that also holds what the stage before it put out.
    """

    def __call__(self, trace: Trace, stage: int) -> None:
        """Take one stage; its tensors are let go on return."""


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
        self._wanted, self._taps = _narrow(plan, options.sites)
        self._threads = _Thread()
        # Kept as the hooks saw it, and looked into when a trace is asked for.
        everything = consumer is None and self._wanted is None
        self._raw = everything and options.by_reference
        self._depth = max(tap.completes or 0 for tap in self._taps) + 1
        self._passes: list[_Pass] = []
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
        # Made here, not kept: some refer to the recorder, and memory would not come
        # back before Python's collector finds the cycle.
        listener = self._raw_listener if self._raw else self._listener
        for place, tap in enumerate(self._taps):
            hook = listener(place, tap)
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
                one.stop(kind.__name__ if kind else "interrupted")

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
        one = _Pass(
            run=next(self._runs),
            thread=_IDENTITY.number,
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

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        mine = self._threads
        if not mine.stack or module is not self._plan.root:
            return
        one = mine.stack.pop()
        mine.current = mine.stack[-1] if mine.stack else None
        if output is None:
            # An always-called hook sees no output when the pass raised.
            one.stop(_error_in_words(sys.exc_info()[1]))
        else:
            one.stop()
            one.end = self._plan.end()
            if one.consumer is not None:
                self._consume(one, self._depth, None)

    def _settle(self) -> None:
        """Close this thread's passes that were interrupted.

        After KeyboardInterrupt torch calls no hook, so only the call stack tells.
        """
        mine = self._threads
        while mine.stack and not mine.stack[-1].under_way:
            if (one := mine.stack.pop()).running:
                one.stop("interrupted")
        mine.current = mine.stack[-1] if mine.stack else None

    def _forget(self, thread: int) -> None:
        with self._lock:
            gone = [p for p in self._passes if p.thread == thread]
            self._passes = [p for p in self._passes if p.thread != thread]
            for one in gone:
                self._built.pop(one.run, None)

    # -- what a hook does ------------------------------------------------------

    def _listener(self, place: int, tap: Tap) -> Callable[..., None]:
        threads, note, path = self._threads, tap.note, tap.path
        keepers = {s: self._keeper(s, port) for s, port in (*tap.reads, *tap.again)}
        charged = self._options.budget is not None

        def listen(
            module: nn.Module,
            args: tuple[Any, ...],
            kwargs: dict[str, Any],
            output: Any,
        ) -> None:
            one = threads.current
            if one is None or not one.running:
                return
            reads = tap.reads
            if tap.again and (tap.spared(one.start) or one.has_called(place)):
                reads = tap.again
            kept = []
            for seen, port in reads:
                tensor = _look(port, args, kwargs, output)
                kept.append(None if tensor is None else keepers[seen](one, tensor))
            said = None if note is None else note(module, args, kwargs, output)
            for tensor in _tensors_in(said) if charged else ():
                self._charge(path, one, tensor)
            one.calls.append((place, tuple(kept), None, said))

        if tap.completes is None or self._consumer is None:
            return listen

        def listen_and_pass_on(
            module: nn.Module,
            args: tuple[Any, ...],
            kwargs: dict[str, Any],
            output: Any,
        ) -> None:
            listen(module, args, kwargs, output)
            if threads.current is not None and tap.completes is not None:
                self._consume(threads.current, tap.completes, place)

        return listen_and_pass_on

    def _raw_listener(self, place: int, tap: Tap) -> Callable[..., None]:
        """Keep first argument and output as they are, and do nothing else.

        A model calls this some hundred times in a pass, so each step counts.
        """
        threads, note = self._threads, tap.note
        with_input = any(port == "input" for _, port in tap.reads)

        def listen(
            module: nn.Module,
            args: tuple[Any, ...],
            kwargs: dict[str, Any],
            output: Any,
        ) -> None:
            one = threads.current
            if one is not None:
                before = None
                if with_input:
                    before = args[0] if args else _first(args, kwargs)
                said = None if note is None else note(module, args, kwargs, output)
                one.take((place, before, output, said))

        return listen

    def _consume(self, one: _Pass, stage: int, place: int | None) -> None:
        """Hand a finished stage on, and keep only what the next one starts from."""
        if one.consumer is None:
            return
        one.consumer(self._assemble(one, stage), stage)
        carried: dict[Site, Tensor] = {}
        if place is not None and one.calls:
            # The tap that completes a stage is the last one that fired.
            _, kept, _, _ = one.calls[-1]
            for (seen, port), tensor in zip(
                self._taps[place].reads, kept, strict=False
            ):
                if port == "output" and tensor is not None:
                    carried[seen] = tensor
        # What the embeddings noted holds for the whole pass.
        lasting = self._notes(one) if stage < 0 else one.lasting
        one.let_go()
        one.carried, one.lasting = carried, lasting

    def _keeper(self, seen: Site, port: Port) -> Callable[[_Pass, Tensor], Tensor]:
        """Return what turns a tensor of the run into the one to keep."""
        options = self._options
        if options.by_reference:
            return lambda one, t: t if options.grad else t.detach()
        whole = options.positions is None or seen.part == "cross.kv"
        axis = 2 if port == "weights" else 1

        def keep(one: _Pass, tensor: Tensor) -> Tensor:
            kept = tensor if options.grad else tensor.detach()
            if not whole:
                rows = _rows(options.positions, kept.shape[axis], seen)
                one.positions = tuple(rows)
                kept = kept.index_select(axis, torch.tensor(rows, device=kept.device))
            if options.dtype is not None or options.device is not None:
                kept = kept.to(device=options.device, dtype=options.dtype or kept.dtype)
            if options.clone and kept.data_ptr() == tensor.data_ptr():
                kept = kept.clone()
            if options.budget is not None:
                self._charge(seen, one, kept)
            return kept

        return keep

    def _charge(self, seen: Site | str, one: _Pass, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() in one.charged:
            return
        held = sum(sum(other.charged.values()) for other in self._passes)
        budget = self._options.budget or 0
        if held + storage.nbytes() > budget:
            raise BudgetError(str(seen), held, storage.nbytes(), budget)
        one.charged[storage.data_ptr()] = storage.nbytes()

    @staticmethod
    def _held(passes: Iterable[_Pass]) -> int:
        return held_bytes(t for one in passes for t in one.tensors())

    # -- what was recorded -----------------------------------------------------

    @property
    def trace(self) -> Trace:
        """The last pass of this thread, frozen.

        Raises CaptureError if there was none, or if a hooked module never ran in it.
        """
        self._settle()
        mine = [p for p in self._passes if p.thread == _IDENTITY.number]
        if not mine:
            raise CaptureError(self._nothing())
        trace = self._build(max(mine, key=lambda one: one.run))
        if trace.complete and trace.never_ran:
            raise CaptureError(never_ran(trace))
        return trace

    @property
    def traces(self) -> tuple[Trace, ...]:
        """All kept passes of all threads, in the order in which they began."""
        self._settle()
        return tuple(
            self._build(one) for one in sorted(self._passes, key=lambda p: p.run)
        )

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the captures keep alive; shared storages count once."""
        return self._held(self._passes)

    def clear(self) -> None:
        """Drop all passes that are not under way, and their tensors."""
        self._settle()
        with self._lock:
            self._passes = [one for one in self._passes if one.running]
            self._built.clear()

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

    def _build(self, one: _Pass) -> Trace:
        if one.run not in self._built:
            trace = self._assemble(one)
            if one.running:
                return trace
            self._built[one.run] = trace
        return self._built[one.run]

    def _assemble(self, one: _Pass, stage: int | None = None) -> Trace:
        tensors: dict[Site, Tensor] = dict(one.carried)
        never, repeated = [], []
        sorted_calls = one.by_tap(len(self._taps))
        for place, (tap, calls) in enumerate(
            zip(self._taps, sorted_calls, strict=True)
        ):
            fired = one.fired.count(place) + len(calls)
            if not fired and tap.required:
                never.append(tap.path)
            meanings = (tap.reads, tap.again)[tap.spared(one.start) :]
            if fired > (len(meanings) if tap.again else 1):
                repeated.append(f"{tap.path} fired {fired} times")
            for reads, call in zip(meanings, calls, strict=False):
                tensors |= self._read(reads, call)
        return Trace(
            run=one.run,
            tensors=dict(sorted(tensors.items())),
            facts=self._plan.facts(one.start, one.end, self._notes(one), stage),
            wanted=self._wanted,
            positions=one.positions,
            altered=self._options.altered,
            never_ran=tuple(never),
            repeated=tuple(repeated),
            failure="still running" if one.running else one.failure,
            thread=one.thread,
        )

    def _notes(self, one: _Pass) -> dict[str, list[Any]]:
        """Return what the taps' notes said, by path, in the order of the calls."""
        notes = dict(one.lasting)
        for place, _, _, said in one.calls:
            if said is not None:
                path = self._taps[place].path
                notes[path] = [*notes.get(path, ()), said]
        return notes

    def _read(self, reads: tuple[Read, ...], call: Call) -> Mapping[Site, Tensor]:
        _, before, output, _ = call
        seen = _at_ports(reads, before, output) if self._raw else before
        return {
            s: self._plan.present(s, t)
            for (s, _), t in zip(reads, seen, strict=False)
            if isinstance(t, Tensor)
        }

    def __repr__(self) -> str:
        state = "on" if self._hooks is not None else "off"
        return (
            f"Recorder({type(self._plan.root).__name__}, {state}, "
            f"{len(self._passes)} runs kept, {self.nbytes:,} bytes held)"
        )


def never_ran(trace: Trace) -> str:
    """Say which hooked modules did not run in a pass, and what that may mean."""
    first, *others = trace.never_ran
    more = f" (and {len(others)} more modules)" if others else ""
    return (
        f"{first}{more} was hooked but never ran, though {len(trace.tensors)} sites "
        "were captured; was the block replaced or compiled after capture began?"
    )


def _narrow(
    plan: Plan, patterns: str | Iterable[str] | None
) -> tuple[frozenset[Site] | None, tuple[Tap, ...]]:
    """Keep only the taps that the wanted sites need; None wants everything."""
    if patterns is None:
        return None, plan.taps
    depth = 1 + max(s.layer or 0 for s in plan.sites)
    visible = set(plan.sites)
    known = [s for s in all_sites(depth) if s in visible or visible & set(sources(s))]
    wanted = frozenset(select(patterns, known))
    needed = wanted | {s for w in wanted for s in sources(w)}
    narrowed = (
        replace(tap, reads=_only(tap.reads, needed), again=_only(tap.again, needed))
        for tap in plan.taps
    )
    taps = (t for t in narrowed if t.reads or t.again or wanted & set(t.informs))
    return wanted, tuple(taps)


def _only(reads: tuple[Read, ...], needed: frozenset[Site]) -> tuple[Read, ...]:
    return tuple(read for read in reads if read[0] in needed)


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples and lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _tensors_in(one)


def _remove(hooks: list[RemovableHandle]) -> None:
    for handle in hooks:
        handle.remove()


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else next(iter(kwargs.values()), None)


def _look(
    port: Port, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> Tensor | None:
    """Return the tensor at a port: the output proper is a tuple's first element.

    Attention's weights are the last; some versions of transformers return keys and
    values in between.
    """
    if port == "input":
        value = _first(args, kwargs)
    else:
        several = output if isinstance(output, tuple) else (output,)
        value = several[0] if port == "output" else (None, *several[1:])[-1]
    return value if isinstance(value, Tensor) else None


def _at_ports(reads: tuple[Read, ...], before: Any, output: Any) -> list[Tensor | None]:
    return [_look(port, (before,), {}, output) for _, port in reads]


def _on_call_stack(frame: FrameType | None) -> bool:
    here: FrameType | None = sys._getframe()
    while here is not None and here is not frame:
        here = here.f_back
    return here is not None


def _detached(seen: Any) -> Any:
    if isinstance(seen, tuple):
        return tuple(map(_detached, seen))
    return seen.detach() if getattr(seen, "requires_grad", False) else seen


def _as_positions(asked: Positions | None) -> tuple[int, ...] | slice | None:
    """Return token numbers as a tuple; raise UsageError for what are none."""
    if asked is None or isinstance(asked, slice):
        return asked
    numbers = asked.flatten().tolist() if isinstance(asked, Tensor) else asked
    try:
        several = list(numbers) if isinstance(numbers, Iterable) else [numbers]
        if several and not any(isinstance(number, bool) for number in several):
            return tuple(index(number) for number in several)
    except TypeError:
        pass
    raise UsageError(f"positions={asked!r}: expected token numbers or a slice of them")


def _rows(positions: Positions | None, length: int, seen: Site) -> list[int]:
    """Resolve ``positions`` to row numbers of an axis of ``length`` tokens."""
    if isinstance(positions, slice):
        return list(range(length))[positions]
    assert isinstance(positions, tuple)
    outside = [p for p in positions if not -length <= p < length]
    if outside:
        raise CaptureError(
            f"{seen}: positions={outside} asked for, but this pass has {length} tokens"
        )
    return [p % length for p in positions]


def _error_in_words(error: BaseException | None) -> str:
    """Name an error in one line; the error itself would keep its frames alive."""
    if error is None:
        return "it raised"
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:200]}" if words else type(error).__name__
