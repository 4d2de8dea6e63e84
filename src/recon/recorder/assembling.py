"""Which taps the wanted sites need, and a trace out of what their hooks kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from recon.plan import Plan, Read, Tap
from recon.recorder.listening import look
from recon.recorder.passes import Call, Pass
from recon.sites import Site, all_sites, select
from recon.trace import Trace, sources


@dataclass(frozen=True, eq=False)
class Assembler:
    """Makes traces of one plan's passes; ``raw`` calls hold arguments and outputs."""

    plan: Plan
    wanted: frozenset[Site] | None
    taps: tuple[Tap, ...]
    altered: str
    raw: bool

    @property
    def depth(self) -> int:
        """The number of blocks, and of the stage after them."""
        return max(tap.completes or 0 for tap in self.taps) + 1

    def trace(self, one: Pass, stage: int | None = None) -> Trace:
        """Put together what a pass, or one stage of it, left so far."""
        tensors: dict[Site, Tensor] = dict(one.carried)
        never, repeated = [], []
        sorted_calls = one.by_tap(len(self.taps))
        for place, (tap, calls) in enumerate(zip(self.taps, sorted_calls, strict=True)):
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
            facts=self.plan.facts(one.start, one.end, self.notes(one), stage),
            wanted=self.wanted,
            positions=one.positions,
            absent=one.absent,
            fewer=dict(one.fewer),
            altered=self.altered,
            never_ran=tuple(never),
            repeated=tuple(repeated),
            failure="still running" if one.running else one.failure,
            thread=one.thread,
        )

    def notes(self, one: Pass) -> dict[str, list[Any]]:
        """Return what the taps' notes said, by path, in the order of the calls."""
        notes = dict(one.lasting)
        for place, _, _, said in one.calls:
            if said is not None:
                path = self.taps[place].path
                notes[path] = [*notes.get(path, ()), said]
        return notes

    def _read(self, reads: tuple[Read, ...], call: Call) -> Mapping[Site, Tensor]:
        _, before, output, _ = call
        seen = _at_ports(reads, before, output) if self.raw else before
        return {
            s: self.plan.present(s, t)
            for (s, _), t in zip(reads, seen, strict=False)
            if isinstance(t, Tensor)
        }

    def outputs(self, place: int, call: Call) -> dict[Site, Tensor]:
        """Return what a call of a tap kept of its module's output."""
        _, kept, _, _ = call
        return {
            seen: tensor
            for (seen, port), tensor in zip(self.taps[place].reads, kept, strict=False)
            if port == "output" and tensor is not None
        }


def _at_ports(reads: tuple[Read, ...], before: Any, output: Any) -> list[Tensor | None]:
    return [look(port, (before,), {}, output) for _, port in reads]


def narrow(
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


def never_ran(trace: Trace) -> str:
    """Say which hooked modules did not run in a pass, and what that may mean."""
    first, *others = trace.never_ran
    more = f" (and {len(others)} more modules)" if others else ""
    return (
        f"{first}{more} was hooked but never ran, though {len(trace.tensors)} sites "
        "were captured; was the block replaced or compiled after capture began?"
    )
