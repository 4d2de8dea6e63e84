"""A profile as a page: what stays, what capture costs, the bytes by site."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recon.report.foreign import visible
from recon.report.html.blocks import by_block
from recon.report.html.grid import Cell, Detail, Section
from recon.report.html.page import Head, page
from recon.report.profile import TAPS, TIMES, circumstances, facts, taps, times
from recon.report.profile import verdict_words as words_of

if TYPE_CHECKING:
    from recon.profiling.memory import SiteBytes
    from recon.profiling.results import Profile

_ADVICE = {
    "needed": "Nothing to do: it holds what its elements take.",
    "excess": "It is a view, and holds all of the tensor that it was cut from: "
    "clone it where it is captured, and the rest is let go.",
    "shared": "Nothing to do: its memory is that of another capture, counted there.",
}


def profile_html(profile: Profile, *, model: str, source: str, again: str = "") -> str:
    """Return a profile as one HTML file; ``again`` is the command that made it."""
    verdict, words = words_of(profile)
    said = circumstances(profile, model, source)
    head = Head(
        title=f"recon profile: {visible(profile.target)} of {visible(model)}",
        verdict=verdict,
        good=profile.verdict == "clean",
        words=words,
        facts=[(name, visible(value)) for name, value in said],
        again=again,
        findings=len(profile.findings),
    )
    sites = profile.memory.sites
    return page(
        "profile",
        head,
        findings=[visible(words) for words in profile.findings],
        times=(TIMES, times(profile)),
        taps=(TAPS, [tuple(map(visible, row)) for row in taps(profile)]),
        facts=[(name, visible(value)) for name, value in facts(profile)],
        map=by_block([(one.site, one) for one in sites], _cell),
        sites=[_row(one) for one in sites],
    )


def _kind(one: SiteBytes) -> str:
    if one.shared_with:
        return "shared"
    return "excess" if one.held > one.needed else "needed"


def _cell(name: str, sites: list[SiteBytes]) -> Cell:
    kind = max((_kind(one) for one in sites), key=("shared", "needed", "excess").index)
    held, needed = sum(s.held for s in sites), sum(s.needed for s in sites)
    return Cell(
        kind=kind,
        figure=_short(held),
        label=f"{visible(name)}: {held:,} bytes held for {needed:,} needed",
        detail=Detail(
            title=visible(name),
            law="",
            sections=tuple(_section(one) for one in sites),
            advice=_ADVICE[kind],
        ),
    )


def _short(size: float) -> str:
    """Say a number of bytes in three digits and a unit."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def _section(one: SiteBytes) -> Section:
    rows = [
        ("held", f"{one.held:,} bytes"),
        ("needed", f"{one.needed:,} bytes"),
        ("shares memory with", visible(one.shared_with)),
    ]
    return Section(visible(one.site), tuple(row for row in rows if row[1]))


def _row(one: SiteBytes) -> tuple[str, ...]:
    shared = visible(one.shared_with)
    return visible(one.site), _kind(one), f"{one.held:,}", f"{one.needed:,}", shared
