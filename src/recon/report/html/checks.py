"""One check as a part of what a cell opens: error, bound, worst element."""

from __future__ import annotations

from recon.compare import Check
from recon.report.html.grid import Section


def section(check: Check, title: str = "") -> Section:
    """Return what was found in a check, under its site, identity and level."""
    # Under a bound the worst element need not be the one with the largest error.
    anywhere = "" if check.bound_ratio is None else " anywhere"
    rows = [
        ("verdict", check.verdict),
        ("reason", check.reason),
        ("error / bound", figure(check.bound_ratio)),
        ("worst element", "" if check.index is None else str(list(check.index))),
        ("allowed there", figure(check.allowed)),
        (f"largest error{anywhere}", figure(check.max_abs)),
        ("in ulp", "" if check.max_ulp is None else f"{check.max_ulp:,}"),
        ("sharpness", figure(check.sharpness)),
        ("rows left out", str(check.excluded or "")),
    ]
    kept = tuple((name, said) for name, said in rows if said)
    usual = f"{check.site}, {check.identity}, level {check.level}"
    return Section(title or usual, kept)


def figure(value: float | None) -> str:
    """Say a figure in four digits; nothing where there is none."""
    return "" if value is None else f"{value:.4g}"
