"""The frame of every page: templates, and the strings that someone else chose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import TypeAlias

from jinja2 import Environment, PackageLoader, StrictUndefined

from recon import __version__
from recon.report.foreign import visible
from recon.report.html.grid import MARKS

# Of a long list at most so many are shown at once; the filter looks through all.
MOST_SHOWN = 200
# A map of more blocks has low rows without figures, so that a screen shows most of it.
DENSE = 16
Rows: TypeAlias = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Head:
    """What every page says first: the verdict in words, and what it is about.

    ``good`` decides the colour, ``facts`` are names and values, ``again`` is the
    command that made the report, or empty; ``findings`` counts what the page lists
    under the map.
    """

    title: str
    verdict: str
    good: bool
    words: str
    facts: Rows
    again: str = ""
    findings: int = 0


@cache
def _templates() -> Environment:
    made = Environment(
        loader=PackageLoader("recon.report.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {"marks": MARKS, "most": MOST_SHOWN, "dense": DENSE}
    made.filters["dicts"] = lambda details: [asdict(detail) for detail in details]
    return made


def page(template: str, head: Head, **content: object) -> str:
    """Return a whole page; every string in it is escaped by the template."""
    again = visible(head.again)
    return render(template, head=head, again=again, version=__version__, **content)


def render(template: str, **content: object) -> str:
    """Fill a template in; every string is escaped."""
    return _templates().get_template(f"{template}.html.j2").render(**content)
