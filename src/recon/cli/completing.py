"""What a shell may complete, known without torch: sites and rules.

Enumerations, such as the kinds of plots, are completed by Typer itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from recon.sites import BLOCK, HEAD, STEM

_LAYER = re.compile(r"h\.([0-9]+)\.")


def sites(incomplete: str) -> list[tuple[str, str]]:
    """Return the names of sites that begin so, each with its meaning.

    Those of a block stand for every block, ``h.*.attn.q``, unless a number is typed.
    """
    typed = _LAYER.match(incomplete)
    layer = typed[1] if typed else "*"
    named = (
        (part.name.replace("{l}", layer), part.meaning)
        for part in (*STEM, *BLOCK, *HEAD)
    )
    return [(name, says) for name, says in named if name.startswith(incomplete)]


def rules(incomplete: str) -> list[tuple[str, str]]:
    """Return the codes and names of rules that begin so, whatever their case."""
    begun = incomplete.lower()
    return [pair for pair in _words() if pair[0].lower().startswith(begun)]


def _words() -> Iterator[tuple[str, str]]:
    from recon.auditing.rules import RULES

    yield from ((rule.code, rule.name) for rule in RULES)
    yield from ((rule.name, rule.code) for rule in RULES)
