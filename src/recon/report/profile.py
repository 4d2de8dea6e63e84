"""What a profile found, for people: tables on a terminal, plain in a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from recon.report.bytes import by_part
from recon.report.foreign import visible
from recon.report.terminal import MAX_SHOWN, listed
from recon.report.words import installed, short

if TYPE_CHECKING:
    from recon.profiling.leaks import Slope
    from recon.profiling.results import Profile
    from recon.profiling.timing import Ratio


TIMES = ("time", "median", "quartiles", "ratio", "95% interval", "")
TAPS = ("hooks on", "firings", "in all")


def render(
    profile: Profile, *, model: str, source: str, console: Console
) -> RenderableType:
    """Lay a profile out for ``console``."""
    head = listed(circumstances(profile, model, source))
    parts: list[RenderableType] = [head, Text("")]
    parts += [_times(profile), Text(""), *_hooks(profile), _kept(profile), Text("")]
    parts += [listed(facts(profile)), *_findings(profile), Text(""), _verdict(profile)]
    return Group(*parts)


def circumstances(profile: Profile, model: str, source: str) -> list[tuple[str, str]]:
    """Return what was profiled, on what, and where, as names with values."""
    env = profile.environment
    mode = "train mode, dropout on" if env.training else "eval mode"
    size = " x ".join(map(str, profile.shape))
    return [
        ("profiled", visible(profile.target)),
        ("model", f"{model} ({env.architecture}, {profile.depth} blocks)"),
        ("inputs", f"{source}: {size} tokens"),
        ("run", f"{short(env.dtype)}, {env.attention} attention, {mode}"),
        ("environment", installed(env)),
    ]


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column(columns[0], overflow="fold")
    for name in columns[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _times(profile: Profile) -> Table:
    table = _table(*TIMES)
    for row in times(profile):
        table.add_row(*row)
    return table


def times(profile: Profile) -> list[tuple[str, ...]]:
    """Return a row for each thing that was timed, under the headings of ``TIMES``."""
    return [
        (
            visible(one.name),
            f"{one.seconds * 1e3:.2f} ms",
            " - ".join(f"{q * 1e3:.2f}" for q in one.quartiles),
            f"{one.ratio:.3f}",
            f"{one.low:.3f} - {one.high:.3f}",
            _telling(one, profile),
        )
        for one in profile.times
    ]


def _telling(one: Ratio, profile: Profile) -> str:
    first, again = profile.times[:2]
    if one in (first, again) or one.tells(profile.noise):
        return ""
    return "within noise"


def _hooks(profile: Profile) -> Iterator[RenderableType]:
    """Say what hooks cost, dearest first, where they are recon's."""
    if not profile.taps:
        return
    table = _table(*TAPS)
    for row in taps(profile):
        table.add_row(*row)
    yield table
    yield Text("")


def taps(profile: Profile) -> list[tuple[str, ...]]:
    """Return a row for each hook, under the headings of ``TAPS``, dearest first."""
    return [
        (
            f"{tap.place} ({', '.join(tap.sites)})",
            str(tap.firings),
            _micro(tap.seconds),
        )
        for tap in profile.taps
    ]


def _micro(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us"


def _kept(profile: Profile) -> Table:
    table = _table("kept", "tensors", "bytes held", "needed")
    for part in by_part(profile.memory.sites):
        table.add_row(
            visible(part.name), str(part.count), f"{part.held:,}", f"{part.needed:,}"
        )
    return table


def facts(profile: Profile) -> list[tuple[str, str]]:
    """Return what was measured besides the tables, as names with values."""
    memory, watch = profile.memory, profile.watch
    rows = [
        ("noise", _noise(profile)),
        ("hooks", _per_hook(profile)),
        (
            "held",
            f"{memory.held:,} bytes for {memory.needed:,} needed: "
            f"{memory.ratio:.2f} times; {memory.elsewhere:,} are no captures "
            "(a cache, a mask, a graph)",
        ),
        (
            "peak",
            f"{memory.peak:,} bytes while the pass runs, {memory.peak_bare:,} bare",
        ),
        ("graph", f"autograd adds {memory.graph:,} bytes to a pass that is kept"),
        ("CUDA", _allocator(profile)),
        ("release", _release(profile)),
        (
            "leak watch",
            f"{len(watch.rounds)} rounds, each with a pass that raises half way; "
            f"a round adds {_slope(watch.nbytes)} bytes, {_slope(watch.hooks)} hooks, "
            f"{_slope(watch.objects)} objects",
        ),
    ]
    rows += [("note" if not i else "", visible(n)) for i, n in enumerate(profile.notes)]
    return rows


def _noise(profile: Profile) -> str:
    words = f"the bare pass against itself is off by up to {profile.noise:.1%}"
    if profile.noisy:
        return f"this machine is too noisy to tell what capture costs: {words}"
    return words


def _per_hook(profile: Profile) -> str:
    words = f"{profile.hooks} in one call"
    hook = profile.hook
    if hook is None and not profile.overhead.tells(profile.noise):
        return f"{words}; what the call adds to a bare pass is within noise"
    if hook is None:
        if not profile.overhead.tells(profile.noise):
            return f"{words}, whose time is within noise"
        extra = profile.overhead.seconds - profile.times[0].seconds
        return f"{words}, which takes {_micro(extra)} more than a bare pass"
    return (
        f"{words}; each takes {_micro(hook.register)} to register, "
        f"{_micro(hook.fire)} to fire and {_micro(hook.remove)} to remove"
    )


def _allocator(profile: Profile) -> str:
    figures = profile.memory.allocator
    if figures is None:
        return profile.memory.allocator_reason
    return (
        f"{figures.allocated:,} bytes allocated, {figures.peak:,} at the peak, "
        f"{figures.reserved:,} reserved"
    )


def _release(profile: Profile) -> str:
    release = profile.release
    words = (
        f"{release.alive} of {release.captured} storages alive when all is let go, "
        f"{release.nbytes:,} bytes"
    )
    if release.resident is None:
        return words
    full, empty = (size / 2**20 for size in release.resident)
    return f"{words} (resident {full:.0f} MiB, then {empty:.0f}, which proves nothing)"


def _slope(slope: Slope) -> str:
    per_round, low, high = map(_rounded, (slope.per_round, slope.low, slope.high))
    return f"{per_round} [{low}, {high}]"


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _findings(profile: Profile) -> Iterable[RenderableType]:
    if not profile.findings:
        return
    yield Text("")
    yield Text("findings", style="bold")
    for words in profile.findings[:MAX_SHOWN]:
        yield Padding(Text(visible(words), overflow="fold"), (0, 0, 0, 2))
    if len(profile.findings) > MAX_SHOWN:
        yield Text(f"  and {len(profile.findings) - MAX_SHOWN} more")


def _verdict(profile: Profile) -> Text:
    verdict, words = verdict_words(profile)
    style = "bold green" if profile.verdict == "clean" else "bold red"
    return Text.assemble((verdict, style), f": {words}")


def verdict_words(profile: Profile) -> tuple[str, str]:
    """Return the verdict, and in words what came back or stayed."""
    if profile.verdict == "clean":
        return "CLEAN", "what was captured came back, and every hook"
    count = len(profile.findings)
    return "LEAKS", f"{count} thing{'s' * (count != 1)} stayed"
