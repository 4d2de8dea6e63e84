"""Which hooks does code register, and which of them by entering a context manager?

Those promise to be gone when the context is left, also by an exception.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from torch.utils.hooks import RemovableHandle

from recon.recorder import gradients, onward

_OURS = frozenset({gradients.__name__, onward.__name__})


@dataclass
class Registered:
    """Torch's numbers of the hooks that were made, and of those made on entering."""

    keys: set[int] = field(default_factory=set)
    managed: set[int] = field(default_factory=set)


@contextmanager
def registrations() -> Iterator[Registered]:
    """Note every hook that is registered in the block, in any thread."""
    seen = Registered()
    original = RemovableHandle.__init__

    def noting(self: RemovableHandle, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if _by_torch(sys._getframe(1)) or _by_recorder(sys._getframe(1)):
            return
        seen.keys.add(self.id)
        if _entering(sys._getframe(1)):
            seen.managed.add(self.id)

    RemovableHandle.__init__ = noting  # type: ignore[method-assign]  # put back below
    try:
        yield seen
    finally:
        RemovableHandle.__init__ = original  # type: ignore[method-assign]


def _by_torch(frame: FrameType) -> bool:
    """Whether torch itself hooks a gradient, to call a module's backward hooks."""
    near = (frame, frame.f_back, frame.f_back and frame.f_back.f_back)
    return any(f and f.f_code.co_qualname.startswith("BackwardHook.") for f in near)


def _by_recorder(frame: FrameType) -> bool:
    """Whether recon itself hooks a module or tensor in a pass, to see what comes."""
    near = (frame, frame.f_back)
    return any(f and f.f_globals.get("__name__") in _OURS for f in near)


def _entering(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_globals.get("__name__") != __name__:
        if frame.f_code.co_name in ("__enter__", "__aenter__"):
            return True
        frame = frame.f_back
    return False
