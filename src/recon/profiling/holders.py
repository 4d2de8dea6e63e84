"""Who holds a tensor: the path of references from something a person knows.

References are followed from the tensor upwards, breadth first, until they reach a
module of the model, a global, a class or a running function. References held from C++
are invisible to Python's collector; of those, the autograd graph, arrays of numpy that
share a tensor's memory and this thread's context variables are looked into.
"""

from __future__ import annotations

import contextvars
import gc
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import CO_OPTIMIZED
from itertools import pairwise
from pathlib import Path
from types import (
    AsyncGeneratorType,
    CellType,
    CodeType,
    CoroutineType,
    FrameType,
    FunctionType,
    GeneratorType,
    MethodType,
    ModuleType,
    TracebackType,
)
from typing import Any, Literal, TypeAlias

import numpy as np
from torch import Tensor, nn

from recon.census import OF_A_FILE
from recon.profiling.storages import live_tensors, saved_by_graph, storage_of

Kind: TypeAlias = Literal[
    "module", "hook", "global", "local", "traceback", "graph", "cycle", "unknown"
]
# Enough for a list in a dict in an object in a closure, many times over.
_FARTHEST = 48
_MOST = 50_000
# As many objects at once are left to the collector; and after so many seconds of
# climbing a holder is not named.
_FEW = 200
_PATIENCE = 15.0
_HERE = str(Path(__file__).parent)
_SUSPENDED = (GeneratorType, CoroutineType, AsyncGeneratorType)
_NAMED = (FunctionType, MethodType, partial, *_SUSPENDED)
_TRANSPARENT = (CellType, TracebackType, MethodType, partial, *_SUSPENDED)


@dataclass(frozen=True)
class Holder:
    """Who keeps a tensor alive: what kind of thing, and the path down from it."""

    kind: Kind
    path: tuple[str, ...]

    def __str__(self) -> str:
        return " -> ".join(self.path)


def holders(
    tensors: Sequence[Tensor],
    models: Mapping[str, nn.Module] | None = None,
    hidden: Iterable[object] = (),
) -> list[Holder]:
    """Return who holds each tensor, by the shortest path.

    ``models`` are named in paths as their keys say: ``model.transformer.h[3].last``.
    ``hidden`` are containers of the caller that hold tensors for the time being.
    """
    search = _Search(models or {}, [tensors, *hidden])
    search.climb(tensors)
    return [search.holder(tensor) for tensor in tensors]


def graph_holders(
    wanted: Mapping[int, object], models: Mapping[str, nn.Module] | None = None
) -> dict[int, Holder]:
    """Return who holds storages, by their ids, that only an autograd graph keeps."""
    ends = [tensor for tensor in live_tensors() if tensor.grad_fn is not None]
    found: dict[int, Holder] = {}
    for end, holder in zip(ends, holders(ends, models), strict=True):
        # What only the graph holds is no end of it.
        for node, saved in saved_by_graph(end) if holder.kind != "unknown" else ():
            key = id(storage_of(saved))
            if key in wanted and key not in found:
                words = f"its autograd graph, for {node}"
                found[key] = Holder("graph", (*holder.path, words))
    return found


class _Search:
    """The references above some tensors, as far as they had to be followed."""

    def __init__(self, models: Mapping[str, nn.Module], hidden: list[Any]) -> None:
        self._modules = dict(_module_names(models))
        self._above: dict[int, list[Any]] = {}
        self._roots: dict[int, tuple[Kind, str]] = {}
        self._own = {id(one) for one in (*hidden, hidden, self._above, models)}
        self._own |= {id(self._roots), id(self._modules), id(self.__dict__), id(self)}

    def climb(self, tensors: Sequence[Tensor]) -> None:
        """Follow references upwards until each tensor is under a root."""
        frontier: list[Any] = list({id(t): t for t in tensors}.values())
        seen = {id(one) for one in frontier}
        self._rise(frontier, tensors, seen)
        self._running(seen)
        lost = {id(t) for t in tensors if self._path(t) is None}
        if lost:
            self._rise(self._above_arrays(lost, seen), tensors, seen)
            self._running(seen)

    def _rise(
        self, frontier: list[Any], tensors: Sequence[Tensor], seen: set[int]
    ) -> None:
        self._mine(frontier, seen)
        deadline = time.monotonic() + _PATIENCE
        for _ in range(_FARTHEST):
            ids = {id(one) for one in frontier}
            found = self._referrers(frontier, ids)
            self._mine(found, ids)
            frontier = [one for one in found if self._take(one, ids, seen)]
            self._mine(frontier)
            rooted = all(self._path(t) is not None for t in tensors)
            late = time.monotonic() > deadline
            if not frontier or rooted or late or len(seen) > _MOST:
                break

    def _referrers(self, below: list[Any], ids: set[int]) -> list[Any]:
        """Return what refers to any of some objects.

        The collector compares each reference of the process with each of them, which
        for many takes longer than looking each reference up here.
        """
        if len(below) <= _FEW:
            return gc.get_referrers(*below) if below else []
        everything = gc.get_objects()
        self._mine(everything)
        return [
            one
            for one in everything
            if any(id(other) in ids for other in gc.get_referents(one))
        ]

    def _above_arrays(self, lost: set[int], seen: set[int]) -> list[Any]:
        """Return what holds arrays of numpy that share the memory of lost tensors.

        The collector tracks no array, nor a dict or tuple of such only, and so it
        names none of them when it is asked who refers to a tensor.
        """
        everything = gc.get_objects()
        self._mine(everything)
        found: list[Any] = []
        for one in everything:
            if id(one) in self._own or _is_ours(one):
                continue
            for chain in _arrays_in(one):
                if (owner := _owner(chain[0])) in lost:
                    for below, above in pairwise((owner, *chain)):
                        key = below if below is owner else id(below)
                        self._above.setdefault(key, []).append(above)
                        self._own.add(id(self._above[key]))
                    if self._take(one, {id(chain[-1])}, seen):
                        found.append(one)
        return found

    def _mine(self, *containers: object) -> None:
        self._own |= {id(container) for container in containers}

    def _take(self, one: Any, below: set[int], seen: set[int]) -> bool:
        """Note what an object refers to; return whether to go on above it."""
        if id(one) in self._own or _is_ours(one):
            return False
        held = [other for other in gc.get_referents(one) if id(other) in below]
        for other in held:
            lists = self._above.setdefault(id(other), [])
            self._own.add(id(lists))
            lists.append(one)
        if id(one) in seen:
            return False
        seen.add(id(one))
        root = self._root(one)
        if root is not None:
            self._roots[id(one)] = root
        return root is None

    def _root(self, one: Any) -> tuple[Kind, str] | None:
        """Return what a person knows by name, or None for anything else."""
        if id(one) in self._modules:
            return "module", self._modules[id(one)]
        if isinstance(one, ModuleType):
            return "global", _module_name(one.__name__)
        if type(one) is dict and "__builtins__" in one and "__name__" in one:
            return "global", _module_name(str(one["__name__"]))
        if isinstance(one, type):
            return "global", f"{_module_name(one.__module__)}.{one.__qualname__}"
        return None

    def _running(self, seen: set[int]) -> None:
        """Make the variables of running functions roots: the collector is blind there.

        Only those of what was reached; a name is enough, the value is not kept.
        """
        for variable, value in contextvars.copy_context().items():
            if id(value) in seen and id(value) not in self._roots:
                self._roots[id(value)] = "global", f"context variable {variable.name}"
        frames = (f for f in _running_frames() if f.f_code.co_flags & CO_OPTIMIZED)
        for frame in frames:
            for name, key in _local_ids(frame):
                if key in seen and key not in self._roots:
                    self._roots[key] = "local", _variable(frame.f_code, name)

    def _path(self, tensor: Tensor) -> list[Any] | None:
        """Return the objects from the nearest root down to a tensor."""
        below: dict[int, Any] = {id(tensor): None}
        queue: deque[Any] = deque([tensor])
        self._mine(below, queue)
        while queue:
            one = queue.popleft()
            if id(one) in self._roots:
                return list(_down(one, below))
            for above in self._above.get(id(one), ()):
                if id(above) not in below:
                    below[id(above)] = one
                    queue.append(above)
        return None

    def holder(self, tensor: Tensor) -> Holder:
        """Say who holds a tensor."""
        path = self._path(tensor)
        if path is not None:
            kind, root = self._roots[id(path[0])]
            words = _words(root, path)
            if any(isinstance(one, TracebackType) for one in path):
                kind = "traceback"
            elif kind == "module" and "_hooks[" in words[0]:
                kind = "hook"
            return Holder(kind, words)
        cycle = self._cycle(tensor)
        if cycle is not None:
            return Holder("cycle", _words(_name(cycle[0]), cycle))
        return Holder("unknown", ("something that Python's collector does not see",))

    def _cycle(self, tensor: Tensor) -> list[Any] | None:
        """Return the objects from one that refers to itself down to a tensor."""
        below: dict[int, Any] = {id(tensor): None}
        queue: deque[Any] = deque([tensor])
        reached: list[Any] = []
        self._mine(below, queue, reached)
        while queue:
            one = queue.popleft()
            reached.append(one)
            for above in self._above.get(id(one), ()):
                if id(above) not in below:
                    below[id(above)] = one
                    queue.append(above)
        # A function or an object says more than the list or cell in the same cycle.
        loops = [one for one in reached if self._refers_to_itself(one)]
        loops.sort(key=lambda one: _tells_little(one))
        return list(_down(loops[0], below)) if loops else None

    def _refers_to_itself(self, one: Any) -> bool:
        seen: set[int] = set()
        queue = list(self._above.get(id(one), ()))
        while queue:
            above = queue.pop()
            if above is one:
                return True
            if id(above) not in seen:
                seen.add(id(above))
                queue += self._above.get(id(above), ())
        return False


def _arrays_in(one: Any) -> Iterator[tuple[Any, ...]]:
    """Yield arrays that an object holds, each with the untracked containers above."""
    for held in gc.get_referents(one):
        if type(held) is np.ndarray:
            yield (held,)
        elif type(held) in (dict, tuple) and not gc.is_tracked(held):
            yield from ((*chain, held) for chain in _arrays_in(held))


def _owner(array: Any) -> int:
    """Return the id of what owns an array's memory."""
    while type(array.base) is np.ndarray:
        array = array.base
    return id(array.base)


def _down(top: Any, below: Mapping[int, Any]) -> Iterator[Any]:
    one: Any = top
    while one is not None:
        yield one
        one = below[id(one)]


def _tells_little(one: Any) -> int:
    return int(type(one) in (list, dict, tuple, set, CellType, MethodType))


def _module_names(models: Mapping[str, nn.Module]) -> Iterator[tuple[int, str]]:
    """Yield ids of modules, and of their dicts, and how a person writes them."""
    for name, model in models.items():
        for path, module in model.named_modules():
            yield id(module), written(name, path)
            yield id(vars(module)), written(name, path)


def written(model: str, path: str) -> str:
    """Write a module's path as a person would: ``model.transformer.h[3]``."""
    parts = (f"[{p}]" if p.isdigit() else f".{p}" for p in path.split(".") if p)
    return model + "".join(parts)


def _module_name(name: str) -> str:
    """Name a module; one that was loaded from a file as its file is called."""
    return name.removeprefix(OF_A_FILE)


# -- running functions -----------------------------------------------------------


def _is_ours(one: Any) -> bool:
    """Whether this is a frame of the search itself, or of who called it here."""
    # isinstance would ask lazy proxies for their class, which may import or raise.
    return type(one) is FrameType and one.f_code.co_filename.startswith(_HERE)


def _running_frames() -> Iterator[FrameType]:
    for frame in sys._current_frames().values():
        here: FrameType | None = frame
        while here is not None:
            if not _is_ours(here):
                yield here
            here = here.f_back


def _local_ids(frame: FrameType) -> list[tuple[str, int]]:
    """Return the variables of a running function, by the ids of their values."""
    values = frame.f_locals
    found = [(name, id(value)) for name, value in values.items()]
    if frame.f_code.co_flags & CO_OPTIMIZED and sys.version_info < (3, 13):
        # A snapshot that would keep what it holds alive as long as the function runs.
        values.clear()
    return found


# -- in words ---------------------------------------------------------------------


def _words(root: str, path: Sequence[Any]) -> tuple[str, ...]:
    """Say a path of objects, the first of which is called ``root``, in parts.

    A part grows by attributes, keys and indices; functions and what they hold begin a
    new one.
    """
    parts = [root]
    place, last = 0, len(path) - 1
    while place < last:
        holder, held = path[place], path[place + 1]
        below = path[place + 2] if place + 2 <= last else None
        if isinstance(holder, FrameType) and isinstance(held, CellType):
            # A variable that functions inside it use, too.
            name = _local_holding(holder, held.cell_contents)
            parts.append(_variable(holder.f_code, name))
            place += 2
        elif isinstance(below, CellType) and not isinstance(held, FrameType):
            parts.append(_closed_over(holder, below))
            place += 3
        elif below is not None and _is_own_dict(holder, held):
            parts[-1] += f".{_key_of(held, below)}"
            place += 2
        elif place == 0 and type(holder) is dict and not root.startswith("a "):
            # The names of a module are its dict.
            parts[-1] += f".{_key_of(holder, held)}"
            place += 1
        else:
            _step(parts, holder, held)
            place += 1
        if place < last and isinstance(path[place], _NAMED):
            parts.append(_name(path[place]))
    return tuple(part for part in parts if part)


def _step(parts: list[str], holder: Any, held: Any) -> None:
    """Say how one object holds the next."""
    if isinstance(holder, BaseException) and isinstance(held, TracebackType):
        parts.append(f"{type(holder).__name__}'s traceback")
    elif isinstance(holder, FrameType):
        parts.append(_variable(holder.f_code, _local_holding(holder, held)))
    elif type(holder) is np.ndarray:
        parts.append("a numpy array that shares its memory")
    elif not isinstance(holder, _TRANSPARENT):
        parts[-1] += _item(holder, held) or _attribute(holder, held)


def _is_own_dict(holder: Any, held: Any) -> bool:
    # A class shows a proxy of its dict.
    own = isinstance(holder, type) and type(held) is dict
    return own or held is getattr(holder, "__dict__", None)


def _closed_over(function: Any, cell: CellType) -> str:
    closure = getattr(function, "__closure__", None) or ()
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    pairs = zip(names, closure, strict=False)
    return next((name for name, one in pairs if one is cell), "")


def _name(one: Any) -> str:
    """Name an object that has no name of its own in the path."""
    if isinstance(one, FunctionType):
        return f"{one.__qualname__} ({_place(one.__code__)})"
    if isinstance(one, MethodType):
        return f"method {one.__func__.__qualname__}"
    if isinstance(one, partial):
        return f"partial of {getattr(one.func, '__qualname__', one.func)}"
    if isinstance(one, FrameType):
        return f"a call of {one.f_code.co_qualname} ({_place(one.f_code)})"
    if isinstance(one, _SUSPENDED):
        return f"suspended {one.__qualname__}"
    return f"a {type(one).__name__}"


def _place(code: CodeType) -> str:
    return f"{Path(code.co_filename).name}:{code.co_firstlineno}"


def _variable(code: CodeType, name: str) -> str:
    return f"{name} of {code.co_qualname} ({_place(code)})"


def _local_holding(frame: FrameType, held: Any) -> str:
    return next((n for n, key in _local_ids(frame) if key == id(held)), "a variable")


def _item(holder: Any, held: Any) -> str:
    if isinstance(holder, dict):
        return f"[{_key_of(holder, held)!r}]"
    if isinstance(holder, list | tuple | deque):
        places = (n for n, value in enumerate(holder) if value is held)
        return f"[{next(places, '?')}]"
    return "{...}" if isinstance(holder, set | frozenset) else ""


def _key_of(holder: Any, held: Any) -> Any:
    return next((key for key, value in list(holder.items()) if value is held), "?")


def _attribute(holder: Any, held: Any) -> str:
    names = [*getattr(holder, "__dict__", ())]
    names += [n for kind in type(holder).__mro__ for n in _slots(kind)]
    if isinstance(holder, BaseException):
        names += ["__cause__", "__context__", "args"]
    found = (name for name in names if getattr(holder, name, None) is held)
    name = next(found, None)
    return "" if name is None else f".{name}"


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)
