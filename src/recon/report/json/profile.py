"""What ``recon profile`` writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from recon import __version__
from recon.report.json.fields import (
    EnvironmentFields,
    Foreign,
    Inputs,
    document,
    environment_fields,
)
from recon.shapes import Strict

if TYPE_CHECKING:
    from recon.profiling.hooks import HookCost, TapCost
    from recon.profiling.leaks import Leak, LeakWatch, Slope
    from recon.profiling.memory import Memory
    from recon.profiling.results import Profile, Release
    from recon.profiling.timing import Ratio


class TimeFields(Strict):
    """One variant, interleaved with the others and compared with the bare pass."""

    name: Foreign = Field(description="What was timed.")
    seconds: float = Field(description="Its median time.")
    quartiles: list[float] = Field(description="Lower and upper quartile of its times.")
    ratio: float = Field(description="Median of the paired ratios to the bare pass.")
    interval: list[float] = Field(description="95% bootstrap interval of that median.")
    told: bool = Field(description="Whether it is outside the noise of the machine.")


class TapFields(Strict):
    """What recon's hooks on one kind of module spent in a pass."""

    place: str = Field(description="The module's path; * is the number of a block.")
    sites: list[str] = Field(description="The sites that these hooks see.")
    firings: int = Field(description="How often they fired.")
    seconds: float = Field(description="Spent in the hooks themselves, in all.")


class HookFields(Strict):
    """Seconds that one hook of recon takes on a module that does nothing."""

    to_register: float = Field(description="To register it.")
    to_fire: float = Field(description="To fire it.")
    to_remove: float = Field(description="To remove it.")


class SiteBytesFields(Strict):
    """What keeping one captured tensor takes."""

    site: Foreign = Field(description="Its site, or its name in what was returned.")
    held: int = Field(description="Bytes of its storage, unless an earlier one has it.")
    needed: int = Field(description="Bytes of its elements that no earlier one has.")
    shared_with: Foreign = Field(description="The earlier one, or empty.")


class AllocatorFields(Strict):
    """Figures of CUDA's allocator, in bytes."""

    allocated: int = Field(description="Alive with the captures, over what was.")
    peak: int = Field(description="The most in the pass, over what was before.")
    reserved: int = Field(description="Taken from the device.")


class MemoryFields(Strict):
    """Bytes of storages that a captured pass makes."""

    held: int = Field(description="Alive while the captures are, the output dropped.")
    needed: int = Field(description="The fewest that hold each captured element once.")
    ratio: float | None = Field(description="held over needed; null for no capture.")
    elsewhere: int = Field(description="Held besides captures: cache, mask, graph.")
    peak: int = Field(description="The most alive at a time in a captured pass.")
    peak_bare: int = Field(description="The same in a bare pass.")
    graph: int = Field(description="What autograd adds to a bare pass that is kept.")
    allocator: AllocatorFields | None = Field(description="Null without a GPU.")
    allocator_reason: str = Field(description="Why there is none, or empty.")
    sites: list[SiteBytesFields] = Field(description="Every capture.")


class ReleaseFields(Strict):
    """One pass, let go."""

    captured: int = Field(description="Storages alive with the captures.")
    alive: int = Field(description="Of those, alive when all was let go.")
    bytes: int = Field(description="Bytes of those.")
    resident: list[int] | None = Field(
        description="Size of the process with the captures, and without; or null."
    )


class SlopeFields(Strict):
    """Growth a round, with its 95% interval."""

    per_round: float = Field(description="Median slope of all pairs of rounds.")
    interval: list[float] = Field(description="Its 95% interval.")


class LeakFields(Strict):
    """What stayed, held in one way."""

    kind: str = Field(
        description="module, hook, global, local, traceback, graph, cycle or unknown."
    )
    path: list[Foreign] = Field(description="From what a person knows to the tensor.")
    count: int = Field(description="Storages or hooks.")
    bytes: int = Field(description="Bytes; 0 for a hook.")
    sentence: Foreign = Field(description="The same in words.")


class LeakWatchFields(Strict):
    """Rounds of attach, run, detach."""

    rounds: int = Field(description="How many.")
    bytes: SlopeFields
    hooks: SlopeFields
    objects: SlopeFields
    leaks: list[LeakFields] = Field(description="What stayed; the most bytes first.")


class ProfileFields(Strict):
    """What ``recon profile --json`` writes."""

    schema_version: Literal["1"] = Field(description="Version of this schema.")
    verdict: Literal["clean", "leaks"] = Field(description="clean if nothing stayed.")
    recon: str = Field(description="Version of recon.")
    target: Foreign = Field(description="What was profiled.")
    model: str = Field(description="The model as it was asked for.")
    inputs: Inputs
    environment: EnvironmentFields
    noise: float = Field(description="How far the bare pass is from itself.")
    too_noisy: bool = Field(description="Whether times can tell anything here.")
    times: list[TimeFields] = Field(description="The bare pass first, then again.")
    hooks: int = Field(description="Hooks that one call makes.")
    hook: HookFields | None = Field(description="recon's own; null for a target.")
    taps: list[TapFields] = Field(description="Dearest first; empty for a target.")
    memory: MemoryFields
    release: ReleaseFields
    leak_watch: LeakWatchFields
    findings: list[Foreign] = Field(description="What is wrong, in sentences.")
    notes: list[Foreign] = Field(description="What to know about the figures.")
    seconds: float = Field(description="How long the profile took.")


def profile_text(profile: Profile, *, model: str, source: str) -> str:
    """Return a profile as JSON."""
    rows, tokens = (*profile.shape, None, None)[:2]
    return document(
        ProfileFields(
            schema_version="1",
            verdict=profile.verdict,
            recon=__version__,
            target=profile.target,
            model=model,
            inputs=Inputs(source=source, batch=rows, tokens=tokens),
            environment=environment_fields(profile),
            noise=profile.noise,
            too_noisy=profile.noisy,
            times=[_time(one, profile.noise) for one in profile.times],
            hooks=profile.hooks,
            hook=_hook(profile.hook),
            taps=[_tap(tap) for tap in profile.taps],
            memory=_memory(profile.memory),
            release=_release(profile.release),
            leak_watch=_leak_watch(profile.watch),
            findings=list(profile.findings),
            notes=list(profile.notes),
            seconds=profile.seconds,
        )
    )


def _time(one: Ratio, noise: float) -> TimeFields:
    return TimeFields(
        name=one.name,
        seconds=one.seconds,
        quartiles=list(one.quartiles),
        ratio=one.ratio,
        interval=[one.low, one.high],
        told=one.tells(noise),
    )


def _hook(cost: HookCost | None) -> HookFields | None:
    if cost is None:
        return None
    return HookFields(
        to_register=cost.register, to_fire=cost.fire, to_remove=cost.remove
    )


def _tap(tap: TapCost) -> TapFields:
    return TapFields(**vars(tap) | {"sites": list(tap.sites)})


def _memory(memory: Memory) -> MemoryFields:
    allocator = memory.allocator
    return MemoryFields(
        held=memory.held,
        needed=memory.needed,
        ratio=memory.ratio if memory.needed else None,
        elsewhere=memory.elsewhere,
        peak=memory.peak,
        peak_bare=memory.peak_bare,
        graph=memory.graph,
        allocator=None if allocator is None else AllocatorFields(**vars(allocator)),
        allocator_reason=memory.allocator_reason,
        sites=[SiteBytesFields(**vars(one)) for one in memory.sites],
    )


def _release(release: Release) -> ReleaseFields:
    resident = release.resident
    return ReleaseFields(
        captured=release.captured,
        alive=release.alive,
        bytes=release.nbytes,
        resident=None if resident is None else list(resident),
    )


def _leak_watch(watch: LeakWatch) -> LeakWatchFields:
    return LeakWatchFields(
        rounds=len(watch.rounds),
        bytes=_slope(watch.nbytes),
        hooks=_slope(watch.hooks),
        objects=_slope(watch.objects),
        leaks=[_leak(leak) for leak in watch.leaks],
    )


def _leak(leak: Leak) -> LeakFields:
    return LeakFields(
        kind=leak.holder.kind,
        path=list(leak.holder.path),
        count=leak.count,
        bytes=leak.nbytes,
        sentence=str(leak),
    )


def _slope(slope: Slope) -> SlopeFields:
    return SlopeFields(per_round=slope.per_round, interval=[slope.low, slope.high])
