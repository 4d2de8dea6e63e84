"""What a report or a baseline says of itself: HTML, JUnit XML, SARIF, a baseline."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any, TypeAlias
from xml.etree import ElementTree

from recon.baseline import files
from recon.baseline.document import FORMAT

Facts: TypeAlias = dict[str, str | int | bool | list[str] | None]

# What every page of ``report/html`` has in its head.
_PAGE = re.compile(
    r'<meta name="generator" content="recon ([^"]+)">\s*<title>(.*?)</title>', re.DOTALL
)


def of_markup(text: str) -> tuple[str, Facts] | None:
    """Say what a page or a file of XML is, and its facts; None if recon wrote none."""
    return _page(text) or _junit(text)


def of_json(plain: object, path: Path) -> tuple[str, Facts] | None:
    """Say the same of a baseline or a file of SARIF.

    Raises UsageError for a baseline that is damaged.
    """
    if not isinstance(plain, dict):
        return None
    if plain.get("format") == FORMAT:
        return _baseline(path)
    return _sarif(plain)


def _page(text: str) -> tuple[str, Facts] | None:
    found = _PAGE.search(text)
    if found is None or not text.rstrip().endswith("</html>"):
        return None
    verdict, _, title = html.unescape(found[2]).partition(" · ")
    command, _, about = title.partition(": ")
    return f"HTML of {command}", {
        "recon": found[1],
        "verdict": verdict,
        "about": about,
    }


def _junit(text: str) -> tuple[str, Facts] | None:
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError):
        return None
    name = root.get("name", "")
    if root.tag != "testsuites" or not name.startswith("recon "):
        return None
    counts = ("tests", "failures", "errors", "skipped")
    return f"JUnit XML of {name}", {one: root.get(one) for one in counts}


def _sarif(plain: dict[str, Any]) -> tuple[str, Facts] | None:
    try:
        (run,) = plain["runs"]
        driver = run["tool"]["driver"]
        if driver["name"] != "recon":
            return None
        return "SARIF of recon", {
            "recon": str(driver["version"]),
            "results": len(run["results"]),
            "rules": [str(rule["id"]) for rule in driver["rules"]],
        }
    except (KeyError, TypeError, ValueError):
        return None


def _baseline(path: Path) -> tuple[str, Facts]:
    found = files.read(path)
    ran = found.environment
    shapes = {
        f"{len(rows)} x {len(rows[0]) if rows else 0}"
        for name, rows in found.inputs.items()
        if name == "input_ids"
    }
    return "a baseline", {
        "model": found.model.name,
        "architecture": f"{ran.architecture}, {ran.blocks} blocks",
        "inputs": ": ".join([found.source, *(f"{one} tokens" for one in shapes)]),
        "run": f"{ran.dtype}, {ran.attention} attention, {ran.device}, {ran.machine}",
        "versions": f"torch {ran.torch}, transformers {ran.transformers}, "
        f"recon {ran.recon}, Python {ran.python}",
        "sites": len(found.sites),
        "weights": len(found.weights),
        "checked": "its content matches its digest",
    }
