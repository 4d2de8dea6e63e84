"""An audit as a page: verdict, findings, map of the claims, every tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from recon.errors import UnknownSiteError
from recon.report.audit import circumstances, verdict_words
from recon.report.foreign import visible, visible_lines
from recon.report.html.grid import Cell, Detail, Line, Map, Section, drawn
from recon.report.html.page import Head, page
from recon.report.rules import gravest_first
from recon.sites import Site, site

if TYPE_CHECKING:
    from recon.auditing.findings import AuditReport, Finding, Judged

_GRAVEST = ("wrong", "unclaimed", "right")
_ADVICE = {
    "right": "Nothing to do: the tensor is what its name says.",
    "wrong": "See the findings: they say what the tensor is, and how to mend it.",
    "unclaimed": "Its name promises nothing that recon can read: --claim says what it "
    "is meant to be.",
}


def audit_html(report: AuditReport, *, again: str = "") -> str:
    """Return an audit as one HTML file; ``again`` is the command that made it."""
    verdict, words = verdict_words(report)
    head = Head(
        title=f"recon audit: {visible(report.target)}",
        verdict=verdict,
        good=report.verdict == "clean",
        words=words,
        facts=circumstances(report),
        again=again,
        findings=len(report.findings),
    )
    counting = {id(finding) for finding in report.counting}
    return page(
        "audit",
        head,
        map=_map(report.tensors),
        findings=[
            _card(finding, counts=id(finding) in counting)
            for finding in gravest_first(report.findings)
        ],
        tensors=[_row(tensor) for tensor in report.tensors],
    )


def _card(finding: Finding, *, counts: bool) -> dict[str, object]:
    """Return what the page says of a finding."""
    return {
        "severity": finding.severity,
        "counts": counts,
        "code": finding.rule.code,
        "name": finding.rule.name,
        "message": visible(finding.message),
        "meaning": finding.rule.meaning,
        "places": list(_places(finding)),
        "run": visible(finding.run),
        "evidence": [
            (visible(name), _figure(value)) for name, value in finding.evidence.items()
        ],
        "mend": visible(finding.mend or finding.rule.mend),
        "traceback": "\n".join(visible_lines(finding.traceback)),
    }


def _places(finding: Finding) -> Iterator[tuple[str, str, str]]:
    """Yield each place with what its name promises and what it is, where known."""
    for number, name in enumerate(finding.places):
        promised = finding.sites[number] if number < len(finding.sites) else ""
        found = finding.found[number] if number < len(finding.found) else ""
        yield visible(name), visible(promised), visible(found)


def _figure(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else visible(str(value))


def _row(tensor: Judged) -> tuple[str, ...]:
    shape = " x ".join(map(str, tensor.shape))
    return (
        visible(tensor.name),
        tensor.status,
        visible(tensor.claim),
        visible(tensor.sentence),
        f"{shape} {tensor.dtype}",
    )


# -- the map -------------------------------------------------------------------


def _map(tensors: Sequence[Judged]) -> Map:
    """Put each tensor where the site that its name promises is computed."""
    claimed: dict[Site, list[Judged]] = {}
    for tensor in tensors:
        if (place := _site(tensor.claim)) is not None:
            claimed.setdefault(place, []).append(tensor)
    inside = sorted(place for place in claimed if place.layer is not None)
    parts = sorted({p.part for p in inside}, key=lambda part: Site(part, 0).depth)
    layers = sorted({place.layer for place in inside if place.layer is not None})
    lines = [
        Line(
            f"h.{layer}",
            tuple(_cell_at(Site(part, layer), claimed) for part in parts),
        )
        for layer in layers
    ]
    outside = sorted(place for place in claimed if place.layer is None)
    stem = [(str(place), _cell(place, claimed[place])) for place in outside]
    return drawn(parts, lines, stem)


def _site(claim: str) -> Site | None:
    try:
        return site(claim) if claim else None
    except UnknownSiteError:
        return None


def _cell_at(place: Site, claimed: dict[Site, list[Judged]]) -> Cell | None:
    return _cell(place, claimed[place]) if place in claimed else None


def _cell(place: Site, tensors: Sequence[Judged]) -> Cell:
    gravest = min(tensors, key=lambda tensor: _GRAVEST.index(tensor.status))
    return Cell(
        kind=gravest.status,
        figure="",
        label=f"{place}: {visible(gravest.sentence)}",
        detail=Detail(
            title=str(place),
            law="",
            sections=tuple(_section(tensor) for tensor in tensors),
            advice=_ADVICE[gravest.status],
        ),
    )


def _section(tensor: Judged) -> Section:
    shape = " x ".join(map(str, tensor.shape))
    return Section(
        visible(tensor.name),
        (
            ("status", tensor.status),
            ("promised", visible(tensor.claim)),
            ("is", visible(tensor.sentence)),
            ("shape", f"{shape} {tensor.dtype}"),
        ),
    )
