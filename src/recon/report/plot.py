"""A profile as a picture: bytes by site, and ratios of time with their intervals."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

from recon.report.bytes import block_of, part_of
from recon.report.foreign import visible

if TYPE_CHECKING:
    from recon.profiling.results import Profile

FORMATS = ("png", "svg")


def profile_picture(profile: Profile, kind: str) -> bytes:
    """Draw a profile as ``png`` or ``svg``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5.5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_bytes(left, profile)
    _draw_ratios(right, profile)
    env = profile.environment
    figure.suptitle(
        f"{visible(profile.target)} on {visible(profile.model)}, "
        f"{' x '.join(map(str, profile.shape))} tokens "
        f"(torch {env.torch}, {env.threads} threads)",
        fontsize=11,
    )
    drawn = BytesIO()
    # Without a date the same profile gives the same file.
    metadata = {"Date": None} if kind == "svg" else None
    figure.savefig(drawn, format=kind, dpi=120, metadata=metadata)
    return drawn.getvalue()


def _draw_bytes(axes: Any, profile: Profile) -> None:
    """Stack the bytes of each block by kind of site."""
    from matplotlib import colormaps

    sites = [one for one in profile.memory.sites if one.held]
    blocks: list[int | None] = sorted(
        {block_of(one.site) for one in sites}, key=lambda b: -1 if b is None else b
    )
    parts = list(dict.fromkeys(part_of(one.site) for one in sites))
    heights = {(p, b): 0.0 for p in parts for b in blocks}
    for one in sites:
        heights[part_of(one.site), block_of(one.site)] += one.held / 1024
    base = [0.0] * len(blocks)
    colours = colormaps["tab20"]
    for number, part in enumerate(parts):
        values = [heights[part, block] for block in blocks]
        colour = colours(number % 20)
        axes.bar(range(len(blocks)), values, bottom=base, label=part, color=colour)
        base = [low + value for low, value in zip(base, values, strict=True)]
    axes.set_xticks(
        range(len(blocks)), ["outside" if b is None else str(b) for b in blocks]
    )
    axes.set_xlabel("block")
    axes.set_ylabel("KiB held")
    axes.set_title(
        f"kept: {profile.memory.held:,} bytes, {profile.memory.ratio:.2f} times needed",
        fontsize=10,
    )
    if parts:
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))


def _draw_ratios(axes: Any, profile: Profile) -> None:
    """Draw each ratio to the bare pass with its interval, and the machine's noise."""
    rows = profile.times[::-1]
    places = range(len(rows))
    axes.axvspan(
        1 - profile.noise, 1 + profile.noise, color="0.9", label="noise of the machine"
    )
    axes.axvline(1, color="0.5", linewidth=0.8)
    spread = [
        [one.ratio - one.low for one in rows],
        [one.high - one.ratio for one in rows],
    ]
    axes.errorbar(
        [one.ratio for one in rows],
        places,
        xerr=spread,
        fmt="o",
        capsize=3,
        markersize=4,
    )
    axes.set_yticks(places, [visible(one.name) for one in rows])
    if max(one.high for one in rows) > 3:
        axes.set_xscale("log")
    axes.set_xlabel("time over that of a bare pass, 95% interval")
    axes.set_title(
        "time" + (", too noisy to tell" if profile.noisy else ""), fontsize=10
    )
    axes.legend(fontsize=7, loc="lower right")
