"""The rules of audits and baselines for people: the list, and the page of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from recon.auditing.rules import RULES as AUDIT
from recon.auditing.rules import Rule, Severity
from recon.baseline.findings import RULES as BASELINE

if TYPE_CHECKING:
    from recon.auditing.findings import Finding

EVERY = (*AUDIT, *BASELINE)
PAGES = Path(str(files("recon"))) / "data" / "rules"
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
COLOUR = {"error": "bold red", "warning": "bold yellow", "note": "cyan"}


def page(rule: Rule) -> str:
    """Return a rule's page: what it means, how recon tells, and what to do."""
    return (PAGES / f"{rule.code}.md").read_text(encoding="utf-8")


def render_page(rule: Rule) -> RenderableType:
    """Lay a rule's page out for a terminal."""
    return Markdown(page(rule), code_theme="ansi_dark", hyperlinks=False)


def render_list(rules: Iterable[Rule]) -> RenderableType:
    """Lay the rules out, one a row."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for head in ("code", "name", "severity"):
        table.add_column(head, no_wrap=True)
    table.add_column("meaning", overflow="fold")
    for rule in rules:
        severity = Text(rule.severity, style=COLOUR[rule.severity])
        table.add_row(rule.code, rule.name, severity, Text(rule.meaning))
    return table


def gravest_first(findings: Sequence[Finding]) -> list[Finding]:
    """Sort errors before warnings before notes; within these a cause stays first."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
