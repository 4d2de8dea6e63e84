"""Leak watch: does what a round of attach, run, detach made go away again?

A round is run many times. After each the bytes of the storages that it made and that
are still alive are counted, once before and once after garbage collection, and so are
hooks and Python's objects.
"""

from __future__ import annotations

import gc
import math
import re
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations, groupby
from typing import Any, Literal, NoReturn

from torch import Tensor, UntypedStorage, nn

from recon.census import Found, census, foreign
from recon.profiling.holders import Holder, graph_holders, holders, written
from recon.profiling.storages import (
    StorageLog,
    live,
    live_tensors,
    storage_of,
    weights,
)

# Half width of a 95% interval, in standard deviations.
_Z95 = 1.96


@dataclass(frozen=True)
class Leak:
    """What stayed, and who holds it: storages in bytes, or hooks.

    ``count`` is how many storages, or hooks, are held in the same way; ``holder`` names
    the first of them. A ``cycle`` goes when Python's collector runs, and not before.
    """

    holder: Holder
    count: int
    nbytes: int

    def __str__(self) -> str:
        if self.holder.kind == "hook" and not self.nbytes:
            return f"{_times(self.count, 'hook')}: {self.holder}"
        what = f"{_times(self.count, 'tensor')}, {self.nbytes:,} bytes"
        if self.holder.kind == "cycle":
            return f"{what} until the collector runs: a reference cycle, {self.holder}"
        return f"{what}, held by {self.holder}"


def _times(count: int, word: str) -> str:
    return f"{count} {word}{'s' * (count != 1)}"


@dataclass(frozen=True)
class Slope:
    """Growth a round: the median slope of all pairs of rounds, and its 95% interval.

    Theil and Sen's estimator (Sen, *Estimates of the regression coefficient based on
    Kendall's tau*, 1968): a few odd rounds do not move it.
    """

    per_round: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Slope:
        """Fit values of successive rounds, at least two."""
        pairs = combinations(range(len(values)), 2)
        slopes = sorted((values[j] - values[i]) / (j - i) for i, j in pairs)
        count, rounds = len(slopes), len(values)
        spread = _Z95 * math.sqrt(rounds * (rounds - 1) * (2 * rounds + 5) / 18)
        low = max(0, math.floor((count - spread) / 2))
        middle = (slopes[(count - 1) // 2] + slopes[count // 2]) / 2
        return cls(middle, slopes[low], slopes[count - 1 - low])


@dataclass(frozen=True)
class Round:
    """What was there after one round, counted from before the first.

    ``waiting`` are bytes that only garbage collection let go.
    """

    nbytes: int
    waiting: int
    hooks: int
    objects: int


@dataclass(frozen=True)
class LeakWatch:
    """What rounds of attach, run, detach left behind."""

    rounds: tuple[Round, ...]
    leaks: tuple[Leak, ...]

    @property
    def nbytes(self) -> Slope:
        """Growth of the bytes held, a round."""
        return Slope.of([one.nbytes for one in self.rounds])

    @property
    def hooks(self) -> Slope:
        """Growth of the number of hooks, a round."""
        return Slope.of([one.hooks for one in self.rounds])

    @property
    def objects(self) -> Slope:
        """Growth of the number of Python objects, a round."""
        return Slope.of([one.objects for one in self.rounds])

    @property
    def findings(self) -> tuple[str, ...]:
        """What is wrong, in sentences; empty if nothing is."""
        found = [str(leak) for leak in self.leaks]
        if self.objects.low >= 1 and not found:
            # Below one a round is a cache that fills up.
            found.append(
                f"Python objects grow by {self.objects.per_round:.3g} a round "
                f"[{self.objects.low:.3g}, {self.objects.high:.3g}], though no tensor "
                "and no hook stayed"
            )
        return tuple(found)

    @property
    def verdict(self) -> Literal["clean", "leaks"]:
        """``clean`` if nothing stayed."""
        return "leaks" if self.findings else "clean"

    def __bool__(self) -> NoReturn:
        raise TypeError("a leak watch is neither true nor false: read its verdict")


def watch(
    one_round: Callable[[], object],
    models: Mapping[str, nn.Module],
    *,
    rounds: int = 12,
    warm_up: int = 2,
) -> LeakWatch:
    """Run a round many times, and say what stays and who holds it.

    What ``one_round`` returns is dropped. ``models`` are those it hooks, by the names
    that they shall have in the answer. What the first ``warm_up`` rounds fill for good
    (a cache of masks, for one) is no leak.
    """
    for _ in range(warm_up):
        one_round()
    log, counted = StorageLog(), list[int]()
    with _collecting_by_hand():
        hooks, objects = _hooks(models), len(gc.get_objects())
        for _ in range(rounds):
            with log:
                one_round()
            held = log.live_bytes
            # Survivors of earlier rounds are in the oldest generation.
            gc.collect(1)
            counted += [
                log.live_bytes,
                held - log.live_bytes,
                len(_hooks(models)) - len(hooks),
                len(gc.get_objects()) - objects,
            ]
        leaks = (*_stayed(log, one_round, models), *_new_hooks(models, hooks))
    figures = zip(*[iter(counted)] * 4, strict=True)
    return LeakWatch(tuple(Round(*four) for four in figures), leaks)


def _stayed(
    log: StorageLog, one_round: Callable[[], object], models: Mapping[str, nn.Module]
) -> tuple[Leak, ...]:
    """Run one more round, and say who holds what it and those before left alive."""
    with log:
        one_round()
    # Before the collector takes what is in a cycle, which is to be named, too.
    named = _named(log.live(), models)
    gc.collect()
    left = {id(storage) for storage in log.live()}
    return tuple(
        _grouped([one for key, one in named.items() if key in left or one.in_cycle])
    )


@contextmanager
def _collecting_by_hand() -> Iterator[None]:
    """Keep Python's collector from running by itself; begin with it done."""
    on = gc.isenabled()
    gc.disable()
    gc.collect()
    try:
        yield
    finally:
        if on:
            gc.enable()


# -- before and after --------------------------------------------------------------


class Snapshot:
    """What is alive at one time: tensors that are no weights, and hooks.

    Made by ``snapshot``; ``left`` compares the present with it.
    """

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        tensors, modules = live(Tensor, nn.Module)
        self._known = {id(s): weakref.ref(s) for s in _made(tensors, modules)}
        self._models = {
            name: weakref.ref(model)
            for name, model in (models or _roots(modules)).items()
        }
        self._hooks = _hooks(self.alive())

    def alive(self) -> dict[str, nn.Module]:
        """Return the models that are still there, by name."""
        found = ((name, model()) for name, model in self._models.items())
        return {name: model for name, model in found if model is not None}

    def left(self) -> tuple[Leak, ...]:
        """Return what is alive now and was not then, after garbage collection."""
        return (*self.tensors_left(), *self.hooks_left(self.alive()))

    def tensors_left(self) -> tuple[Leak, ...]:
        """Return the tensors that were not there then, by who holds them."""
        # A collection takes longer than the search, and only takes away.
        if not self._new():
            return ()
        gc.collect()
        return tuple(_grouped(list(_named(self._new(), self.alive()).values())))

    def hooks_left(self, models: Mapping[str, nn.Module]) -> tuple[Leak, ...]:
        """Return the hooks on models, by their names, that were not there then."""
        return tuple(_new_hooks(models, self._hooks))

    def _new(self) -> list[UntypedStorage]:
        return [s for s in _made(*live(Tensor, nn.Module)) if not self._knew(s)]

    def _knew(self, storage: UntypedStorage) -> bool:
        known = self._known.get(id(storage))
        return known is not None and known() is storage


def _roots(modules: Sequence[nn.Module]) -> dict[str, nn.Module]:
    """Return the modules that are no other's child, by their class."""
    children = {id(c) for module in modules for c in module._modules.values()}
    found: dict[str, nn.Module] = {}
    for module in (one for one in modules if id(one) not in children):
        name = type(module).__name__
        found[name if name not in found else f"{name}#{len(found)}"] = module
    return found


def snapshot(**models: nn.Module) -> Snapshot:
    """Note which tensors and hooks are there: of ``models``, or of the whole process.

    >>> before = snapshot(model=model)
    >>> run_something(model)
    >>> before.left()  # a tuple of Leak, empty if all is gone
    """
    return Snapshot(models)


def _made(
    tensors: Sequence[Tensor], modules: Sequence[nn.Module]
) -> list[UntypedStorage]:
    """Return the storages of tensors, each once, but those of the modules' weights."""
    own = {id(storage_of(tensor)) for tensor in weights(modules)}
    found = (storage_of(tensor) for tensor in tensors)
    return list(
        {id(s): s for s in found if s is not None and id(s) not in own}.values()
    )


# -- who holds it --------------------------------------------------------------------


@dataclass(frozen=True)
class _Held:
    """One storage that is alive, and why."""

    holder: Holder
    nbytes: int

    @property
    def in_cycle(self) -> bool:
        return self.holder.kind == "cycle"


def _named(
    storages: Sequence[UntypedStorage], models: Mapping[str, nn.Module]
) -> dict[int, _Held]:
    """Return who holds storages, by their ids."""
    sizes = {id(storage): storage.nbytes() for storage in storages}
    seen: dict[int, Any] = {}
    for tensor in live_tensors():
        key = id(storage_of(tensor))
        if key in sizes:
            seen.setdefault(key, []).append(tensor)
    tensors = [tensor for several in seen.values() for tensor in several]
    found = holders(tensors, models, [seen, *seen.values()])
    best: dict[int, Holder] = {}
    for tensor, holder in zip(tensors, found, strict=True):
        key = id(storage_of(tensor))
        if key not in best or _rank(holder) < _rank(best[key]):
            best[key] = holder
    # A tensor that only C++ holds may still have its Python object, held by nothing.
    nobody = Holder("unknown", ("something that Python's collector does not see",))
    unseen = {k: None for k in sizes if best.get(k, nobody).kind == "unknown"}
    del tensors, seen
    best |= graph_holders(unseen, models) if unseen else {}
    return {key: _Held(best.get(key, nobody), size) for key, size in sizes.items()}


def _rank(holder: Holder) -> tuple[int, int]:
    """Prefer what a person can find: a short path from something with a name."""
    unclear = {"local": 1, "cycle": 2, "unknown": 3}
    return unclear.get(holder.kind, 0), len(holder.path)


def _grouped(stayed: Sequence[_Held]) -> Iterator[Leak]:
    """Join what is held in one way, apart from keys; the most bytes first."""

    def way(one: _Held) -> tuple[str, tuple[str, ...]]:
        path = one.holder.path
        # Which operation saved it matters little.
        path = path[:-1] if one.holder.kind == "graph" else path
        return one.holder.kind, tuple(map(_without_keys, path))

    groups = (list(g) for _, g in groupby(sorted(stayed, key=way), way))
    leaks = [Leak(g[0].holder, len(g), sum(one.nbytes for one in g)) for g in groups]
    yield from sorted(leaks, key=lambda leak: -leak.nbytes)


def _without_keys(part: str) -> str:
    """Return a part of a path with every key and index left out."""
    return re.sub(r"\[.*?\]", "[]", part)


def _hooks(models: Mapping[str, nn.Module]) -> list[tuple[str, Found]]:
    return [
        (name, one) for name, model in models.items() for one in foreign(census(model))
    ]


def _new_hooks(
    models: Mapping[str, nn.Module], known: Sequence[tuple[str, Found]]
) -> Iterator[Leak]:
    """Join the new hooks of one kind and owner; one leak for each, naming the first."""

    def way(one: tuple[str, Found]) -> tuple[str, str]:
        return one[1].kind, one[1].owner

    new = sorted((one for one in _hooks(models) if one not in known), key=way)
    for _, group in groupby(new, way):
        several = list(group)
        model, first = several[0]
        place = "every module" if first.module == "*" else written(model, first.module)
        path = (place, f"{first.kind} {first.owner}")
        yield Leak(Holder("hook", path), len(several), 0)
