"""Settings and generators of the process that a call may leave behind."""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def read() -> dict[str, Any]:
    """Return every setting and the state of every generator, by name."""
    return {name: look() for name, (look, _) in _PROCESS.items()}


def put_back(wanted: Mapping[str, Any]) -> None:
    """Write those that are not as wanted."""
    for name, (look, write) in _PROCESS.items():
        if not same(look(), wanted[name]):
            write(wanted[name])


def threads() -> frozenset[threading.Thread]:
    """Return the threads that run, but for those of pools and progress bars."""
    return frozenset(one for one in threading.enumerate() if not _idle(one))


def _idle(thread: threading.Thread) -> bool:
    """Whether a thread waits for work of a pool that is still there, or is a bar's."""
    return type(thread) is not threading.Thread or "ThreadPool" in thread.name


def same(was: Any, now: Any) -> bool:
    """Whether two states are equal, which may hold tensors and arrays."""
    if isinstance(was, Tensor):
        return torch.equal(was, now)
    if isinstance(was, tuple):
        return len(was) == len(now) and all(map(same, was, now))
    if isinstance(was, np.ndarray):
        return bool(np.array_equal(was, now))
    return bool(was == now)


def _set_grad(on: bool) -> None:
    torch.set_grad_enabled(on)


def _set_collection(on: bool) -> None:
    (gc.enable if on else gc.disable)()


def _device() -> str | None:
    """Return where new tensors go, if that was chosen."""
    chosen = torch.utils._device.CURRENT_DEVICE
    return None if chosen is None else str(chosen)


def _signals() -> dict[str, Any]:
    """Return what signals do, as far as Python knows, by their names."""
    return {one.name: signal.getsignal(one) for one in signal.Signals}


def _set_signals(wanted: Mapping[str, Any]) -> None:
    if threading.current_thread() is threading.main_thread():
        for name, does in wanted.items():
            if does is not None and signal.getsignal(signal.Signals[name]) is not does:
                signal.signal(signal.Signals[name], does)


RANDOM = frozenset({"torch's generator", "numpy's generator", "Python's generator"})

_PROCESS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "torch's generator": (torch.get_rng_state, torch.set_rng_state),
    "numpy's generator": (np.random.get_state, np.random.set_state),
    "Python's generator": (random.getstate, random.setstate),
    "gradient mode": (torch.is_grad_enabled, _set_grad),
    "autocast": (
        lambda: torch.is_autocast_enabled("cpu"),
        lambda on: torch.set_autocast_enabled("cpu", on),
    ),
    "default device": (_device, torch.set_default_device),
    "signal": (_signals, _set_signals),
    "recursion limit": (sys.getrecursionlimit, sys.setrecursionlimit),
    "garbage collection": (gc.isenabled, _set_collection),
    "tracing": (sys.gettrace, sys.settrace),
    "anomaly mode": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "number of threads": (torch.get_num_threads, torch.set_num_threads),
    "precision of matrix products": (
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    ),
    "working directory": (os.getcwd, os.chdir),
    "deterministic algorithms": (
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
}
