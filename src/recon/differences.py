"""Two runs of one model side by side: where they part, and whether each is right."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NoReturn, TypeAlias

import torch
from torch import Tensor

from recon.checks import NO_PROOF, Level
from recon.display import Displayed
from recon.errors import UsageError
from recon.facts import Facts
from recon.ops import Activation, Attention, LayerNorm
from recon.results import Report
from recon.rounding import UNIT, Form
from recon.sites import Site
from recon.trace import Trace, require_numbers
from recon.verification import verify_trace

Verdict: TypeAlias = Literal["equal", "rounding", "diverged", "unverified"]


@dataclass(frozen=True)
class Apart:
    """How far two runs are apart at one site.

    ``max_abs`` is the largest difference; ``relative`` the root mean square of the
    difference over that of the first run's values. Equal means bit-equal, dtype too.
    """

    site: Site
    equal: bool
    max_abs: float
    relative: float


@dataclass(frozen=True)
class Difference(Displayed):
    """What two runs differ in, site by site in order of computation.

    ``other_computation`` says what the runs were asked for that is not the same, and
    ``other_weights`` names the first weight in which the models themselves differ, more
    than by a cast; then nothing about the runs can be laid to rounding.
    """

    names: tuple[str, str]
    sites: tuple[Apart, ...]
    only: tuple[tuple[str, Site], ...]
    first_report: Report | None
    second_report: Report | None
    other_weights: str = ""
    other_computation: str = ""
    dropout: str = ""
    bound: Form = "deterministic"

    @property
    def first(self) -> Apart | None:
        """The first site where the runs differ."""
        return next((apart for apart in self.sites if not apart.equal), None)

    @property
    def growth(self) -> tuple[Apart, ...]:
        """The difference as the stream enters each block and leaves the last."""
        last = max((a.site.layer or 0 for a in self.sites), default=0)
        return tuple(
            apart
            for apart in self.sites
            if apart.site.part == "resid_pre"
            or (apart.site.part == "resid_post" and apart.site.layer == last)
        )

    @property
    def verdict(self) -> Verdict:
        """``rounding`` if both runs certify; ``unverified`` if that cannot be said."""
        reports = (self.first_report, self.second_report)
        broken = any(r is not None and _broken(r) for r in reports)
        if broken or self.other_weights or self.other_computation or self.only:
            return "diverged"
        if not self.sites:
            return "unverified"
        if self.first is None:
            return "equal"
        if self.dropout or any(r is None or r.failures for r in reports):
            return "unverified"
        return "rounding"

    def conclusion(self) -> str:
        """Say in one sentence what the difference is."""
        if self.other_weights:
            return f"the models differ: {self.other_weights} is not the same weight"
        for name, report in zip(
            self.names, (self.first_report, self.second_report), strict=True
        ):
            if report is not None and (broken := _broken(report)):
                return f"{name} is wrong at {broken}"
        if self.only:
            name, place = self.only[0]
            return f"only {name} has {place}: the runs computed different things"
        if self.other_computation:
            return f"the runs computed different things: {self.other_computation}"
        if not self.sites:
            return "nothing was compared"
        if self.first is None:
            return f"{self.names[0]} and {self.names[1]} are bit-equal at every site"
        where = self.first.site
        if self.verdict == "unverified":
            return (
                f"they differ from {where} on; whether by rounding is not proven: "
                f"{self._unproven()}"
            )
        right = "are right" if self.bound == "deterministic" else "are likely right"
        proof = "" if self.bound == "deterministic" else f" ({NO_PROOF})"
        return f"both {right}, they differ by rounding that grew from {where}{proof}"

    def _unproven(self) -> str:
        if self.dropout:
            return f"dropout was on in {self.dropout}"
        for name, report in zip(
            self.names, (self.first_report, self.second_report), strict=True
        ):
            if report is None:
                return f"{name} comes without its weights"
            if report.failures:
                return f"{name}: {report.failures[0].describe()}"
        return "nothing was certified"

    def __repr__(self) -> str:
        return f"Difference({self.verdict}: {self.conclusion()})"

    def __bool__(self) -> NoReturn:
        raise TypeError("a difference is neither true nor false: read its verdict")


def diff(
    first: Trace,
    second: Trace,
    *,
    names: tuple[str, str] = ("A", "B"),
    bound: Form = "deterministic",
) -> Difference:
    """Compare two runs on the same inputs, and certify each by itself.

    Raises UsageError for runs that cannot be compared: incomplete, or of other shapes.
    """
    for name, trace in zip(names, (first, second), strict=True):
        if not trace.complete:
            raise UsageError(
                f"{name} did not finish ({trace.failure}): nothing to compare"
            )
        require_numbers(trace)
    if first.facts.shape != second.facts.shape:
        raise UsageError(
            f"the runs have different inputs: {_shape(first)} and {_shape(second)} "
            "(batch, tokens)"
        )
    ids, also_ids = (t.facts.ids.get(Site("wte")) for t in (first, second))
    if ids is not None and also_ids is not None and not _alike(ids, also_ids):
        raise UsageError("the runs have different token ids: nothing to compare")
    held = set(first.tensors) | set(second.tensors)
    shared = sorted(s for s in held if s in first.tensors and s in second.tensors)
    return Difference(
        names=names,
        sites=tuple(_apart(s, first.tensors[s], second.tensors[s]) for s in shared),
        only=tuple(_only(names, first, second)),
        first_report=_certified(first, bound),
        second_report=_certified(second, bound),
        other_weights=_other_weights(first, second),
        other_computation=next(_other_computation(first.facts, second.facts), ""),
        dropout=names[0] if _drops(first) else names[1] if _drops(second) else "",
        bound=bound,
    )


def _shape(trace: Trace) -> str:
    return "x".join(map(str, trace.facts.shape))


# -- did both runs compute the same function? ----------------------------------


def _other_computation(a: Facts, b: Facts) -> Iterator[str]:
    """Say what the runs were asked for, or are made of, that is not the same."""
    for place in sorted({*a.ids, *b.ids}):
        if not _alike(a.ids.get(place), b.ids.get(place)):
            yield f"{place} looked up other ids"
    for kind in ("given", "encoder"):
        mine, theirs = getattr(a, kind), getattr(b, kind)
        for place in sorted({*mine, *theirs}):
            if not _alike(mine.get(place), theirs.get(place)):
                yield f"{place} was made from another tensor that the caller gave"
    if a.makers and b.makers:
        yield from _other_constants(a, b)
    for place in sorted({*a.attention, *b.attention}):
        call, other = a.attention.get(place), b.attention.get(place)
        if call is not None and other is not None:
            yield from (f"{place}: {words}" for words in _other_call(a, call, other))


def _other_constants(a: Facts, b: Facts) -> Iterator[str]:
    for place, maker in a.makers.items():
        other = b.makers.get(place)
        if isinstance(maker, LayerNorm) and isinstance(other, LayerNorm):
            same = maker.eps == other.eps
            words = f"{place} has eps {maker.eps} and {other.eps}"
        elif isinstance(maker, Activation) and isinstance(other, Activation):
            same = maker.name == other.name
            words = f"{place} is {maker.name} and {other.name}"
        else:
            continue
        if not same:
            yield words


def _other_call(facts: Facts, call: Attention, other: Attention) -> Iterator[str]:
    width = facts.width // facts.heads
    scale, also_scale = call.scale(width), other.scale(width)
    if not math.isclose(scale, also_scale, rel_tol=1e-9):
        yield f"scores are scaled by {scale:.3g} and {also_scale:.3g}"
    if (call.past, call.heads) != (other.past, other.heads):
        yield f"{call.past} and {other.past} tokens lay in the cache"
    (seen, bias), (also_seen, also_bias) = (_mask(facts, c) for c in (call, other))
    if not _alike(seen, also_seen) or not _alike(bias, also_bias):
        yield "the attention masks differ"


def _mask(facts: Facts, call: Attention) -> tuple[Tensor, Tensor | None]:
    batch, queries = facts.shape
    if call.keys is not None:
        keys, device = call.keys.shape[2], call.keys.device
    else:
        keys = queries if call.mask is None else call.mask.shape[-1]
        device = torch.device("cpu") if call.mask is None else call.mask.device
    return call.mask_parts(batch, queries, keys, device)


def _alike(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two tensors are the same up to a cast and repeated rows."""
    if a is None or b is None:
        return a is b
    try:
        left, right = torch.broadcast_tensors(a, b.to(a.device))
    except RuntimeError:
        return False
    if left.is_floating_point() and right.is_floating_point():
        return _same_up_to_a_cast(left, right)
    return torch.equal(left, right)


def _drops(trace: Trace) -> bool:
    calls = trace.facts.attention.values()
    return any(trace.facts.dropout.values()) or any(call.dropout for call in calls)


def _only(
    names: tuple[str, str], first: Trace, second: Trace
) -> Iterator[tuple[str, Site]]:
    """Name sites that one run alone has; not patterns, which are the kernel's."""
    for name, here, there in ((names[0], first, second), (names[1], second, first)):
        for place in here.tensors:
            if place not in there.tensors and not place.part.endswith("pattern"):
                yield name, place


def _apart(place: Site, a: Tensor, b: Tensor) -> Apart:
    if a.shape != b.shape:
        raise UsageError(
            f"{place} is {tuple(a.shape)} in one run and {tuple(b.shape)} in the "
            "other: these are no runs of one model"
        )
    if a.dtype == b.dtype and torch.equal(a, b.to(a.device)):
        return Apart(place, True, 0.0, 0.0)
    left, right = a.double(), b.to(a.device).double()
    gap = (left - right).abs()
    size = float(left.square().mean().sqrt())
    spread = float(gap.square().mean().sqrt())
    relative = spread / size if size else float("inf") if spread else 0.0
    return Apart(place, False, float(gap.max()), relative)


_LEVEL: tuple[Level, ...] = ("certify",)


def _certified(trace: Trace, bound: Form) -> Report | None:
    if not trace.facts.makers:
        return None
    return verify_trace(trace, levels=_LEVEL, bound=bound)


def _broken(report: Report) -> str:
    """Name the first site that no correct implementation could have given."""
    return next((c.site for c in report.failures if c.verdict != "unverified"), "")


def _other_weights(first: Trace, second: Trace) -> str:
    """Name the first weight that differs by more than a cast to the coarser dtype."""
    theirs = {name: t for name, t, _ in second.facts.weights_at_run}
    for name, weight, _ in first.facts.weights_at_run:
        other = theirs.get(name)
        if other is None and theirs:
            return name
        if other is not None and not _same_up_to_a_cast(weight, other):
            return name
    return ""


def _same_up_to_a_cast(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    coarser = a.dtype if UNIT[a.dtype] > UNIT[b.dtype] else b.dtype
    return torch.equal(a.to(coarser), b.to(a.device).to(coarser))
