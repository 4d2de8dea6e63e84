"""One pass while it is being recorded, and whose it is."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from types import FrameType
from typing import Any, NamedTuple, Protocol, TypeAlias
from weakref import WeakSet

from torch import Tensor

from recon.plan import Start
from recon.recorder.threads import living
from recon.sites import Site
from recon.trace import Trace

# What one firing of a hook left: the number of its tap, what was seen at its input and
# output, and what its note said.
Call: TypeAlias = tuple[int, Any, Any, Any]


@dataclass(eq=False, slots=True)
class Pass:
    """One forward pass while it is being recorded.

    ``calls`` is one list for all taps, and hooks touch nothing but ``take``, which adds
    to it. ``fired`` are the taps whose calls were let go already. ``positions`` are the
    tokens that were asked for and are there, ``absent`` those that are not, ``fewer``
    those of sites that have not all of them; ``trouble`` is what went wrong in a hook
    of recon's. ``alive`` returns None once the thread of the pass has ended.
    """

    run: int
    thread: int
    alive: Callable[[], object]
    start: Start
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
    trouble: str | None = None
    positions: tuple[int, ...] | None = None
    absent: tuple[int, ...] = ()
    fewer: dict[Site, tuple[int, ...]] = field(default_factory=dict)
    charged: dict[int, int] = field(default_factory=dict)
    copies: dict[int, _Copy] | None = None
    witnesses: WeakSet[threading.Thread] | None = None

    def __post_init__(self) -> None:
        # Bound to the list, not to the pass: a cycle would outlive its last use.
        append = self.calls.append
        self.take = partial(_take_detached, append) if self.detach else append

    def tensors(self) -> Iterator[Tensor]:
        """Yield every tensor that this pass keeps alive."""
        yield from self.start.tensors()
        yield from self.carried.values()
        yield from tensors_in(list(self.lasting.values()))
        # Masks and the contents of caches, which notes hold, are kept alive, too.
        yield from tensors_in([call[1:] for call in self.calls])

    def by_tap(self, taps: int) -> list[list[Call]]:
        """Sort the calls by tap, each in the order in which they came."""
        sorted_calls: list[list[Call]] = [[] for _ in range(taps)]
        for call in self.calls:
            sorted_calls[call[0]].append(call)
        return sorted_calls

    def has_called(self, place: int) -> bool:
        """Whether a tap fired before in this pass."""
        return place in self.fired or any(place == call[0] for call in self.calls)

    def ended_before_this_thread(self) -> bool:
        """Whether the thread of the pass had ended when the current one began.

        No thread tells when it began, so of those that are alive when the end is first
        noticed, each may be older than that.
        """
        if self.alive() is not None:
            return False
        if self.witnesses is None:
            self.witnesses = living()
        return threading.current_thread() not in self.witnesses

    @property
    def under_way(self) -> bool:
        """Whether the call that began the pass has not returned yet."""
        return self.running and _on_call_stack(self.frame)

    def stop(self, failure: str | None = None) -> None:
        """Close the pass; what no consumer will take any more is let go."""
        self.running, self.frame = False, None
        self.failure = failure or self.trouble
        self.take = _ignore
        self.copies = None
        if failure is not None and self.consumer is not None:
            self.let_go()

    def fail(self, path: str, error: Exception) -> None:
        """Note that a hook of ours raised: nobody's forward pass is to end by that."""
        words = f"recon's own hook at {path} raised {error_in_words(error)}"
        self.trouble = self.trouble or words
        if not self.running:
            self.failure = self.failure or self.trouble

    def copy_of(self, tensor: Tensor, copied: Callable[[Tensor], Tensor]) -> Tensor:
        """Copy a tensor, once in a pass: each block is handed the same mask."""
        if tensor.is_inference():
            return copied(tensor)  # no version tells whether it was edited meanwhile
        if self.copies is None:
            self.copies = {}
        known = self.copies.get(id(tensor))
        if known and known.of() is tensor and known.version == tensor._version:
            return known.copy
        copy = copied(tensor)
        self.copies[id(tensor)] = _Copy(weakref.ref(tensor), tensor._version, copy)
        return copy

    def empty(self) -> None:
        """Keep no tensor of what was handed in or noted; what else was noted stays."""
        self.start = self.start.kept(nothing, _emptied)
        self.lasting = {
            path: changed(said, _emptied) for path, said in self.lasting.items()
        }

    def let_go(self) -> None:
        """Drop all tensors, and keep count of what fired."""
        self.carried, self.lasting = {}, {}
        self.fired += tuple(call[0] for call in self.calls)
        self.calls.clear()


class _Copy(NamedTuple):
    """A copy of a tensor, and the version that it is of."""

    of: weakref.ref[Tensor]
    version: int
    copy: Tensor


def nothing(place: Site, tensor: Tensor) -> None:
    """Keep nothing of what was handed in."""


def _emptied(tensor: Tensor) -> Tensor:
    return tensor.new_empty(0)


def _ignore(call: Call) -> None:
    """Take nothing: the pass was closed while another thread still ran it."""


def _take_detached(append: Callable[[Call], None], call: Call) -> None:
    place, before, output, said = call
    append((place, _detached(before), _detached(output), said))


class Consumer(Protocol):
    """What takes the tensors of a pass stage by stage, so that none need be kept.

    It is called with a trace of one stage (-1 the embeddings, then each block, then the
    head) that also holds what the stage before it put out.
    """

    def __call__(self, trace: Trace, stage: int) -> None:
        """Take one stage; its tensors are let go on return."""


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples and lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for one in value:
            yield from tensors_in(one)


def changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return nested tuples and lists with each tensor in them changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        several = (changed(one, change) for one in value)
        named = getattr(value, "_make", None)
        return tuple(several) if named is None else named(several)
    if isinstance(value, list):
        return [changed(one, change) for one in value]
    return value


def _on_call_stack(frame: FrameType | None) -> bool:
    here: FrameType | None = sys._getframe()
    while here is not None and here is not frame:
        here = here.f_back
    return here is not None


def _detached(seen: Any) -> Any:
    if isinstance(seen, tuple):
        return tuple(map(_detached, seen))
    return seen.detach() if getattr(seen, "requires_grad", False) else seen


def error_in_words(error: BaseException | None) -> str:
    """Name an error in one line; the error itself would keep its frames alive."""
    if error is None:
        return "it raised"
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:200]}" if words else type(error).__name__
