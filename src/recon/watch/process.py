"""Settings and generators of the process that a call may leave behind."""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recon.ops import SDP_SWITCHES
from recon.watch.tables import each

UNKNOWN = object()


@dataclass(frozen=True)
class Setting:
    """One thing that the process has: how it is read and written, and how it is told.

    ``look`` may return a dict, of which each entry is told by itself, with its values
    unless they are ``secret``.
    """

    name: str
    look: Callable[[], Any]
    write: Callable[[Any], object]
    rule: str = "global-state-changed"
    secret: bool = False

    def seen(self) -> Any:
        """Return what there is now; UNKNOWN if it cannot be read."""
        try:
            return self.look()
        except (RuntimeError, AttributeError):  # settings at odds; none in that version
            return UNKNOWN

    def put_back(self, wanted: Any) -> None:
        """Write what there was, if it was known and is another now."""
        if wanted is not UNKNOWN and not same(self.seen(), wanted):
            self.write(wanted)


def read() -> dict[str, Any]:
    """Return every setting and the state of every generator, by name."""
    return {one.name: one.seen() for one in SETTINGS}


def put_back(wanted: Mapping[str, Any]) -> None:
    """Write those that are not as wanted."""
    each(partial(one.put_back, wanted[one.name]) for one in SETTINGS)


def threads() -> frozenset[threading.Thread]:
    """Return the threads that run, but for those of pools and progress bars."""
    return frozenset(one for one in threading.enumerate() if not _idle(one))


def _idle(thread: threading.Thread) -> bool:
    """Whether a thread waits for work of a pool that is still there, or is a bar's."""
    return type(thread) is not threading.Thread or "ThreadPool" in thread.name


def same(was: Any, now: Any) -> bool:
    """Whether two states are equal, which may hold tensors and arrays."""
    if type(was) is not type(now):
        return bool(was is now)
    if isinstance(was, Tensor):
        return torch.equal(was, now)
    if isinstance(was, tuple):
        return len(was) == len(now) and all(map(same, was, now))
    if isinstance(was, np.ndarray):
        return bool(np.array_equal(was, now))
    return bool(was == now)


# -- settings that are not one call to read and one to write ------------------------


def _set_collection(on: bool) -> None:
    (gc.enable if on else gc.disable)()


def _device() -> str | None:
    """Return where new tensors go, if that was chosen."""
    chosen = torch.utils._device.CURRENT_DEVICE
    return None if chosen is None else str(chosen)


def _directory() -> str:
    """Return the working directory; nothing if it was deleted."""
    try:
        return str(Path.cwd())
    except FileNotFoundError:
        return ""


def _signals() -> dict[str, Any]:
    """Return what signals do, as far as Python knows, by their names."""
    return {one.name: signal.getsignal(one) for one in signal.Signals}


def _set_signals(wanted: Mapping[str, Any]) -> None:
    if threading.current_thread() is threading.main_thread():
        for name, does in wanted.items():
            if does is not None and signal.getsignal(signal.Signals[name]) is not does:
                signal.signal(signal.Signals[name], does)


def _environment() -> dict[str, str]:
    return dict(os.environ)


def _set_environment(wanted: Mapping[str, str]) -> None:
    for name in os.environ.keys() - wanted.keys():
        del os.environ[name]
    os.environ.update(wanted)


def _autocast(device: str) -> Iterator[Setting]:
    """Yield what autocast does on a kind of device."""
    yield Setting(
        f"autocast on {device}",
        partial(torch.is_autocast_enabled, device),
        partial(torch.set_autocast_enabled, device),
    )
    yield Setting(
        f"dtype of autocast on {device}",
        partial(torch.get_autocast_dtype, device),
        partial(torch.set_autocast_dtype, device),
    )


def _cheaper(name: str, place: Any, key: str = "fp32_precision") -> Setting:
    """Return a setting of torch.backends that makes float32 products cheaper."""
    return Setting(
        f"torch.backends{name}.{key}",
        partial(getattr, place, key),
        partial(setattr, place, key),
    )


def _precisions() -> Iterator[Setting]:
    """Yield what makes float32 products cheaper: old settings first, then wide ones.

    Old settings write the new ones, too, and cannot be read when these disagree; wide
    ones are what narrow ones are read as where these are not set.
    """
    backends: Any = torch.backends
    yield Setting(
        "precision of matrix products",
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    )
    yield _cheaper(".cudnn", backends.cudnn, "allow_tf32")
    yield _cheaper("", backends)
    for above in ("mkldnn", "cudnn"):
        wide = getattr(backends, above)
        yield _cheaper(f".{above}", wide)
        for part in ("matmul", "conv", "rnn"):
            if hasattr(wide, part):
                yield _cheaper(f".{above}.{part}", getattr(wide, part))
    yield _cheaper(".cuda.matmul", backends.cuda.matmul)


RANDOM = "random-state-changed"

SETTINGS = (
    Setting("torch's generator", torch.get_rng_state, torch.set_rng_state, RANDOM),
    Setting("numpy's generator", np.random.get_state, np.random.set_state, RANDOM),
    Setting("Python's generator", random.getstate, random.setstate, RANDOM),
    Setting("gradient mode", torch.is_grad_enabled, torch.set_grad_enabled),
    *_autocast("cpu"),
    *_autocast("cuda"),
    Setting("default device", _device, torch.set_default_device),
    Setting("signal", _signals, _set_signals),
    Setting("recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
    Setting("garbage collection", gc.isenabled, _set_collection),
    Setting("tracing", sys.gettrace, sys.settrace),
    Setting(
        "anomaly mode", torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly
    ),
    Setting("default dtype", torch.get_default_dtype, torch.set_default_dtype),
    Setting("number of threads", torch.get_num_threads, torch.set_num_threads),
    Setting("working directory", _directory, os.chdir),
    Setting("environment", _environment, _set_environment, secret=True),
    Setting(
        "deterministic algorithms",
        torch.get_deterministic_debug_mode,
        torch.set_deterministic_debug_mode,
    ),
    *(
        Setting(f"torch.backends.cuda.{switch.__name__}", switch, write)
        for switch, write in SDP_SWITCHES
    ),
    *_precisions(),
)
