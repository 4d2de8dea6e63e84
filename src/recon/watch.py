"""What did code do to a model and the process? Looked at before and after; put back.

Hooks and overrides, modules, modes, plain attributes, weights and buffers, config,
random generators, gradient mode, autocast: everything that a call may leave behind.
"""

from __future__ import annotations

import gc
import io
import os
import pickle
import random
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import BuiltinFunctionType, FunctionType, MethodType, MethodWrapperType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from recon.census import Found, census

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
)
# What a module keeps its weights in.
_OF_TORCH = frozenset({"_parameters", "_buffers", "_modules"})
_WATCHED = ("torch.nn", "transformers")
_LIBRARIES = ("torch", "transformers", "builtins")
_ROUTINES = (BuiltinFunctionType, FunctionType, MethodType, MethodWrapperType)
# How a module keeps its attributes, and not what it computes; torchlens adds them.
_BOOKKEEPING = frozenset({"__setattr__", "__delattr__"})
_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Change:
    """One thing that is not as it was: the rule that it breaks, where, and in words.

    ``key`` is torch's number of a hook, where it is one.
    """

    rule: str
    place: str
    words: str
    key: int = -1


@dataclass(frozen=True, eq=False)
class Held:
    """One parameter or buffer: which object, how often edited, and its content."""

    tensor: Tensor
    version: int
    checksum: int
    wants_grad: bool
    shape: torch.Size
    dtype: torch.dtype
    gradient: Tensor | None
    hooks: frozenset[int]


@dataclass(frozen=True, eq=False)
class State:
    """A model and the process at one moment, without copies of the weights."""

    found: tuple[Found, ...]
    modules: Mapping[str, nn.Module]
    plain: Mapping[str, dict[str, Any]]
    holding: Mapping[str, set[str]]
    weights: Mapping[str, Held]
    config: dict[str, Any]
    process: dict[str, Any]
    code: Mapping[str, Any]
    threads: frozenset[threading.Thread]

    @classmethod
    def of(cls, model: nn.Module) -> State:
        """Look at a model; reads every weight once."""
        modules = dict(model.named_modules())
        return cls(
            found=census(model),
            modules=modules,
            plain={path: _plain(module) for path, module in modules.items()},
            holding={path: _holding(module) for path, module in modules.items()},
            weights={name: _held(tensor) for name, tensor in _weights(model)},
            config=_config(model),
            process={name: read() for name, (read, _) in _PROCESS.items()},
            code=_code(modules.values()),
            threads=frozenset(one for one in threading.enumerate() if not _idle(one)),
        )


def changes(before: State, after: State) -> Iterator[Change]:
    """Yield everything that is not as it was."""
    yield from _hook_changes(tuple(_on_kept(before, after)), after.found)
    yield from _module_changes(before, after)
    yield from _weight_changes(before.weights, after.weights)
    for key in sorted({*before.config, *after.config}):
        was, now = before.config.get(key), after.config.get(key)
        if was != now:
            yield Change("config-changed", key, f"was {was!r}, is {now!r}")
    yield from _process_changes(before.process, after.process)
    for name, was in before.code.items():
        if after.code.get(name, was) is not was:
            yield Change("forward-replaced", name, "is another function")
    for name in after.code.keys() - before.code.keys():
        if _hides_another(name):
            yield Change("forward-replaced", name, "hides a function")
    for thread in sorted(after.threads - before.threads, key=lambda one: one.name):
        if thread.is_alive():
            yield Change("global-state-changed", "threads", f"{thread.name} still runs")


def _process_changes(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> Iterator[Change]:
    for name, was in before.items():
        now = after[name]
        if name in _RANDOM:
            if not _same(was, now):
                yield Change("random-state-changed", name, "")
        elif isinstance(was, dict):
            yield from _process_changes(
                {f"{name} {key}": one for key, one in was.items()},
                {f"{name} {key}": now[key] for key in was},
            )
        elif not _same(was, now):
            words = f"was {_short(was)}, is {_short(now)}"
            yield Change("global-state-changed", name, words)


def _short(value: Any) -> str:
    """Return the name of a function or of an Enum's member, or the words of a value."""
    return str(getattr(value, "__qualname__", getattr(value, "name", value)))


def _on_kept(before: State, after: State) -> Iterator[Found]:
    """Yield the hooks before, but for those on modules that are gone themselves."""
    for one in before.found:
        was, now = before.modules.get(one.module), after.modules.get(one.module)
        if was is now:
            yield one


def _hook_changes(
    before: tuple[Found, ...], after: tuple[Found, ...]
) -> Iterator[Change]:
    for one in after:
        if one not in before and not one.by_transformers:
            override = one.kind == "forward override"
            shared = one.kind.startswith("global")
            rule = "forward-replaced" if override else "hooks-left"
            rule = "global-state-changed" if shared else rule
            yield Change(rule, one.module, str(one), one.key)
    for one in before:
        if one not in after:
            override = one.kind == "forward override"
            rule = "forward-replaced" if override else "hooks-removed"
            yield Change(rule, one.module, f"{one} is gone")
    kept = [one for one in before if one in after]
    again = [one for one in after if one in before]
    if kept != again and sorted(map(str, kept)) == sorted(map(str, again)):
        moved = next(a for a, b in zip(kept, again, strict=True) if a != b)
        yield Change("hooks-removed", moved.module, f"{moved} runs in another order")


def _module_changes(before: State, after: State) -> Iterator[Change]:
    for path in sorted({*before.modules, *after.modules}):
        was, now = before.modules.get(path), after.modules.get(path)
        if was is not now:
            words = f"was {_kind(was)}, is {_kind(now)}"
            yield Change("forward-replaced", path, words)
            continue
        for key in sorted({*before.plain[path], *after.plain[path]}):
            old, new = before.plain[path].get(key), after.plain[path].get(key)
            if old != new and not (old != old and new != new):
                rule = "mode-changed" if key == "training" else "config-changed"
                yield Change(rule, path, f"{key} was {old!r}, is {new!r}")
        for key in sorted(after.holding[path] - before.holding[path]):
            yield Change("tensor-left", path, f"{key} holds tensors")


def _weight_changes(
    before: Mapping[str, Held], after: Mapping[str, Held]
) -> Iterator[Change]:
    for name in sorted({*before, *after}):
        was, now = before.get(name), after.get(name)
        if was is None or now is None:
            words = "is new" if was is None else "is gone"
            yield Change("weights-changed", name, words)
        elif was.checksum != now.checksum or was.shape != now.shape:
            yield Change("weights-changed", name, _other_values(was, now))
        elif was.tensor is not now.tensor:
            yield Change("weights-changed", name, "is another tensor of equal values")
        elif was.wants_grad != now.wants_grad:
            words = f"requires_grad was {was.wants_grad}, is {now.wants_grad}"
            yield Change("requires-grad-changed", name, words)
        elif was.gradient is not now.gradient:
            yield Change("requires-grad-changed", name, "holds another gradient")
        if was is not None and now is not None and was.hooks != now.hooks:
            more = len(now.hooks - was.hooks)
            rule = "hooks-left" if more else "hooks-removed"
            words = f"{more} hooks on the tensor" if more else "a hook on the tensor"
            yield Change(rule, name, words)


def _other_values(was: Held, now: Held) -> str:
    """Say how a parameter differs: in dtype, in shape or in what it holds."""
    if was.dtype != now.dtype:
        return f"was {was.dtype}, is {now.dtype}".replace("torch.", "")
    if was.shape != now.shape:
        return f"was of shape {tuple(was.shape)}, is of {tuple(now.shape)}"
    return "holds other values"


class Keeper:
    """Puts a model and the process back to how they were when it was made.

    Holds a copy of all weights. Putting back leaves what transformers added itself.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.state = State.of(model)
        self._pickled = _pickles(model)
        self._values = {n: h.tensor.detach().clone() for n, h in _by_name(self.state)}
        self._tables: dict[str, dict[str, dict[str, Any]]] = {
            path: {
                "hooks": {name: dict(getattr(module, name, {})) for name in _HOOKS},
                "parameters": dict(module._parameters),
                "buffers": dict(module._buffers),
                "modules": dict(module._modules),
                "own": {k: v for k, v in module.__dict__.items() if k == "forward"},
                "had": dict.fromkeys(module.__dict__),
                "names": dict.fromkeys(module.__dict__),
            }
            for path, module in self.state.modules.items()
        }
        self._global = {
            name: dict(getattr(torch_module, name))
            for name in dir(torch_module)
            if name.startswith("_global") and name.endswith("hooks")
        }
        self._configs = [(c, dict(vars(c))) for _, c in _configs(model)]

    def unpickled(self) -> Iterator[Change]:
        """Say if the model could be pickled at first, and cannot be now."""
        if self._pickled and not _pickles(self._model):
            yield Change("unpicklable", "the model", "pickle.dumps raises")

    def put_back(self) -> State:
        """Restore everything; return what the state was just before."""
        seen = self.look()
        for path, table in self._tables.items():
            self._module_back(self.state.modules[path], path, table)
        for name, hooks in self._global.items():
            _refill(getattr(torch_module, name), hooks)
        for config, values in self._configs:
            config.__dict__.clear()
            config.__dict__.update(values)
        for name, held in _by_name(self.state):
            held.tensor.requires_grad_(held.wants_grad)
            if held.tensor.grad is not held.gradient:
                held.tensor.grad = held.gradient
            for hooks in _tensor_hooks(held.tensor):
                for key in [key for key in hooks if key not in held.hooks]:
                    del hooks[key]
            now = seen.weights.get(name)
            if now is None or now.checksum != held.checksum:
                _write(held.tensor, self._values[name])
        for name, (read, write) in _PROCESS.items():
            if not _same(read(), self.state.process[name]):
                write(self.state.process[name])
        return seen

    def look(self) -> State:
        """Return the state, once functions of torch that looking needs are put back."""
        code = self._code_back()
        return replace(State.of(self._model), code=code)

    def _code_back(self) -> Mapping[str, Any]:
        """Put replaced functions back; return those that there were."""
        seen = _code(self.state.modules.values())
        for name, code in self.state.code.items():
            if seen.get(name, code) is not code:
                _set_code(name, code)
        for name in seen.keys() - self.state.code.keys():
            if not _of_watched(seen[name]):
                _drop_code(name)
        return seen

    def _module_back(
        self, module: nn.Module, path: str, table: Mapping[str, dict[str, Any]]
    ) -> None:
        for name, hooks in table["hooks"].items():
            _refill(getattr(module, name, {}), hooks, keep=_by_transformers)
        _refill(module._parameters, table["parameters"])
        _refill(module._buffers, table["buffers"])
        _refill(module._modules, table["modules"])
        module.__dict__.pop("forward", None)
        module.__dict__.update(table["own"])
        for key in [k for k, v in module.__dict__.items() if _of_a_library(v)]:
            # A wrapper's mark without its forward would keep it from running again.
            if key not in table["had"]:
                del module.__dict__[key]
        for key in [k for k in module.__dict__ if k not in table["names"]]:
            # A private flag is transformers' own; a private tensor is not.
            if not (key.startswith("_") and isinstance(module.__dict__[key], _PLAIN)):
                del module.__dict__[key]
        for key, value in self.state.plain[path].items():
            module.__dict__[key] = value


def _of_a_library(value: Any) -> bool:
    """Whether an object's class is neither Python's nor torch's nor transformers'."""
    package = type(value).__module__.partition(".")[0]
    return package not in ("builtins", "collections", "torch", "transformers")


def _write(tensor: Tensor, values: Tensor) -> None:
    """Give a tensor its former values, also where its shape or dtype changed."""
    if tensor.shape == values.shape and tensor.dtype == values.dtype:
        tensor.data.copy_(values)
    else:
        tensor.data = values.clone()


@contextmanager
def hooks_put_back(model: nn.Module) -> Iterator[None]:
    """Put the hooks of a model's modules back as they were, and nothing else."""
    tables = [
        (table, dict(table))
        for module in model.modules()
        for name in _HOOKS
        if (table := getattr(module, name, None)) is not None
    ]
    try:
        yield
    finally:
        for table, kept in tables:
            _refill(table, kept, keep=_by_transformers)


def _refill(
    table: Any, wanted: Mapping[Any, Any], keep: Callable[[Any], bool] | None = None
) -> None:
    """Give a dict its former content and order; entries to ``keep`` come last."""
    kept = {k: v for k, v in table.items() if k not in wanted and keep and keep(v)}
    target = {**wanted, **kept}
    if list(table) == list(target) and all(table[k] is target[k] for k in target):
        return
    table.clear()
    table.update(target)


def _by_transformers(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("transformers.")


def _by_name(state: State) -> Iterator[tuple[str, Held]]:
    yield from state.weights.items()


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _held(tensor: Tensor) -> Held:
    version = -1 if tensor.is_inference() else tensor._version
    return Held(
        tensor,
        version,
        _checksum(tensor),
        tensor.requires_grad,
        tensor.shape,
        tensor.dtype,
        tensor.grad if tensor.is_leaf else None,
        frozenset(key for hooks in _tensor_hooks(tensor) for key in hooks),
    )


def _tensor_hooks(tensor: Tensor) -> Iterator[dict[int, Any]]:
    for table in ("_backward_hooks", "_post_accumulate_grad_hooks"):
        yield getattr(tensor, table, None) or {}


def _checksum(tensor: Tensor) -> int:
    """Return a number that nearly any change of content changes; cheap, no proof."""
    if tensor.is_meta or tensor.numel() == 0:
        return 0
    flat = tensor.detach().contiguous().reshape(-1)
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = flat.view(kinds[flat.element_size()])
    # The second sum sees elements that changed places.
    return hash(
        (int(bits.sum(dtype=torch.int64)), int(bits[::3].sum(dtype=torch.int64)))
    )


def _plain(module: nn.Module) -> dict[str, Any]:
    own = module.__dict__.items()
    return {
        key: value
        for key, value in own
        if isinstance(value, _PLAIN) and not key.startswith("_")
    }


def _holding(module: nn.Module) -> set[str]:
    """Return the attributes of a module in which tensors are kept, but its weights."""
    own = module.__dict__.items()
    return {key for key, value in own if key not in _OF_TORCH and _holds(value)}


def _holds(value: Any, depth: int = 3) -> bool:
    if isinstance(value, Tensor):
        return True
    if not depth or not isinstance(value, dict | list | tuple | set | deque):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return any(_holds(one, depth - 1) for one in inner)


def _config(model: nn.Module) -> dict[str, Any]:
    return {
        f"{above}{key}": repr(value)
        for above, config in _configs(model)
        for key, value in vars(config).items()
    }


def _configs(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield what configures a model and its generation, with what its keys go by."""
    for above, name in (("", "config"), ("generation_config.", "generation_config")):
        config = getattr(model, name, None)
        if config is not None:
            yield above, config


def _code(modules: Iterable[nn.Module]) -> dict[str, Any]:
    """Return the functions that the modules' classes and files consist of, by name."""
    classes = {kind for module in modules for kind in type(module).__mro__}
    kinds = [kind for kind in classes if kind.__module__.startswith(_WATCHED)]
    kinds.append(Tensor)
    files = {kind.__module__ for kind in kinds if "gpt2" in kind.__module__}
    found: dict[str, Any] = {
        f"{kind.__module__}.{kind.__qualname__}.{name}": value
        for kind in kinds
        for name, value in vars(kind).items()
        if _is_routine(type(value)) and name not in _BOOKKEEPING
    }
    for file in (*files, "torch", "torch.nn.functional"):
        for name, value in vars(sys.modules[file]).items():
            if name.startswith("__"):
                continue  # there torch.compile keeps, and drops, what it compiled
            if _is_routine(type(value)):
                found[f"{file}.{name}"] = value
            elif isinstance(value, MutableMapping) and not isinstance(value, dict):
                # The functions among which a config chooses.
                found |= {f"{file}.{name}[{key}]": value[key] for key in value}
    return found


def _is_routine(kind: type) -> bool:
    """Say of a type what ``inspect.isroutine`` says of its values, in less time."""
    described = hasattr(kind, "__get__") and not hasattr(kind, "__set__")
    return not issubclass(kind, type) and (issubclass(kind, _ROUTINES) or described)


def _set_code(name: str, code: Any) -> None:
    if name.endswith("]"):
        table, _, key = name[:-1].partition("[")
        _owner(table)[key] = code
    else:
        owner, _, attribute = name.rpartition(".")
        setattr(_owner(owner), attribute, code)


def _drop_code(name: str) -> None:
    if name.endswith("]"):
        table, _, key = name[:-1].partition("[")
        del _owner(table)[key]
    else:
        owner, _, attribute = name.rpartition(".")
        delattr(_owner(owner), attribute)


def _of_watched(code: Any) -> bool:
    """Whether a function belongs to the libraries, which may load more at any time."""
    return str(getattr(code, "__module__", "")).partition(".")[0] in _LIBRARIES


def _hides_another(name: str) -> bool:
    """Whether a new function of a class is called in place of an inherited one."""
    owner, _, attribute = name.rpartition(".")
    kind = None if "[" in name else _owner(owner)
    return isinstance(kind, type) and any(
        attribute in vars(above) for above in kind.__mro__[1:]
    )


def _idle(thread: threading.Thread) -> bool:
    """Whether a thread waits for work of a pool that is still there, or is a bar's."""
    return type(thread) is not threading.Thread or "ThreadPool" in thread.name


def _owner(path: str) -> Any:
    """Return a module by its dotted path, or a class in one."""
    if path in sys.modules:
        return sys.modules[path]
    outer, _, name = path.rpartition(".")
    return getattr(_owner(outer), name)


def _kind(module: nn.Module | None) -> str:
    return "nothing" if module is None else type(module).__name__


class _Light(pickle.Pickler):
    """Pickles everything but the tensors, which always can be."""

    def persistent_id(self, one: Any) -> str | None:
        return "tensor" if isinstance(one, Tensor) else None


def _pickles(model: nn.Module) -> bool:
    try:
        _Light(io.BytesIO()).dump(model)
    except Exception:  # whatever a foreign object's own pickling raises
        return False
    return True


def _same(was: Any, now: Any) -> bool:
    if isinstance(was, Tensor):
        return torch.equal(was, now)
    if isinstance(was, tuple):
        return len(was) == len(now) and all(map(_same, was, now))
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


_RANDOM = frozenset({"torch's generator", "numpy's generator", "Python's generator"})
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
