"""What one hook costs: to register, to fire, to remove; and which sites cost what."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from recon import gpt2
from recon.plan import Plan, Tap
from recon.recorder import Options, Recorder
from recon.sites import Site

_MODULES = 100
_REPEATS = 15


@dataclass(frozen=True)
class HookCost:
    """Seconds that one of recon's hooks takes, on a module that does nothing."""

    register: float
    fire: float
    remove: float


@dataclass(frozen=True)
class TapCost:
    """What recon's hooks on one kind of module did in a pass.

    ``place`` is the module's path, ``*`` for the number of a block; ``seconds`` were
    spent in the hooks themselves, over all ``firings``.
    """

    place: str
    sites: tuple[str, ...]
    firings: int
    seconds: float


def hook_cost() -> HookCost:
    """Measure a recorder with one hook on each of many modules that do nothing."""
    modules = nn.Sequential(*(nn.Identity() for _ in range(_MODULES)))
    recorder = Recorder(_idle_plan(modules), Options())
    given = torch.zeros(1)
    bare = _median(lambda: modules(given))
    registers, fires, removes = [], [], []
    for _ in range(_REPEATS):
        begun = time.perf_counter()
        recorder.__enter__()
        on = time.perf_counter()
        modules(given)
        ran = time.perf_counter()
        recorder.__exit__(None, None, None)
        removes.append(time.perf_counter() - ran)
        registers.append(on - begun)
        fires.append(ran - on - bare)
    medians = (
        statistics.median(each) / _MODULES for each in (registers, fires, removes)
    )
    return HookCost(*medians)


def _median(run: Callable[[], object]) -> float:
    times = []
    for _ in range(_REPEATS):
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def _idle_plan(modules: nn.Sequential) -> Plan:
    """Plan one hook on each module of a chain that computes nothing."""
    place = Site("embed")
    taps = [Tap(str(n), m, ((place, "output"),)) for n, m in enumerate(modules)]

    def nothing(*_: Any) -> Any:
        return None

    def no_facts(*_: Any) -> Any:
        raise NotImplementedError("this plan is timed, its traces are never made")

    return Plan(
        root=modules,
        taps=tuple(taps),
        begin=nothing,
        end=nothing,
        facts=no_facts,
        present=lambda site, tensor: tensor,
    )


class TimedRecorder(Recorder):
    """A recorder that clocks its own hooks, by the path of their module."""

    def __init__(self, plan: Plan, options: Options) -> None:
        self.spent: dict[str, tuple[int, int]] = {}
        super().__init__(plan, options)

    def _hook(self, place: int, tap: Tap) -> Callable[..., None]:
        inner, path, spent = super()._hook(place, tap), tap.path, self.spent

        def clocked(*args: Any) -> None:
            begun = time.perf_counter_ns()
            inner(*args)
            took = time.perf_counter_ns() - begun
            firings, total = spent.get(path, (0, 0))
            spent[path] = firings + 1, total + took

        return clocked


def tap_costs(
    model: nn.Module, run: Callable[[], object], passes: int = 10
) -> tuple[TapCost, ...]:
    """Say what recon's hooks spend in one pass, by kind of module, dearest first."""
    plan = gpt2.plan(model)
    recorder = TimedRecorder(plan, Options())
    with recorder:
        run()
        recorder.spent.clear()
        for _ in range(passes):
            run()
    kinds: dict[str, list[TapCost]] = {}
    for tap in plan.taps:
        firings, total = recorder.spent.get(tap.path, (0, 0))
        one = TapCost(
            _kind(tap.path),
            tuple(dict.fromkeys(_kind(str(site)) for site, _ in tap.reads)),
            firings // passes,
            total / passes / 1e9,
        )
        kinds.setdefault(one.place, []).append(one)
    joined = (_joined(several) for several in kinds.values())
    return tuple(sorted(joined, key=lambda cost: -cost.seconds))


def _kind(path: str) -> str:
    return re.sub(r"\bh\.\d+", "h.*", path)


def _joined(several: list[TapCost]) -> TapCost:
    # The last block's own hook sees a site more.
    sites = dict.fromkeys(site for one in several for site in one.sites)
    return TapCost(
        several[0].place,
        tuple(sites),
        sum(one.firings for one in several),
        sum(one.seconds for one in several),
    )
