"""What a shell may complete, known without torch: models, sites and rules.

Enumerations, such as the kinds of plots, are completed by Typer itself.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING

from recon.sites import BLOCK, HEAD, STEM

if TYPE_CHECKING:
    from recon.auditing.rules import Rule

_SIZES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
MODELS = {
    "bundled": "a small trained GPT-2 that comes with recon",
    "random:tiny": "a tiny GPT-2 of random weights",
    **{f"random:{size}": f"a {size} of random weights" for size in _SIZES},
    **dict.fromkeys(_SIZES, "from the hub"),
}
_LAYER = re.compile(r"h\.([0-9]+)\.")


def models(incomplete: str) -> list[tuple[str, str]]:
    """Return the models that need no path and begin so, each with what it is."""
    return [pair for pair in MODELS.items() if pair[0].startswith(incomplete)]


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
    """Return the codes and names of an audit's rules that begin so, in any case."""
    from recon.auditing.rules import RULES

    return _named(RULES, incomplete)


def every_rule(incomplete: str) -> list[tuple[str, str]]:
    """Return the same of all rules, those of a baseline, too."""
    from recon.report.rules import EVERY

    return _named(EVERY, incomplete)


def _named(rules: Sequence[Rule], incomplete: str) -> list[tuple[str, str]]:
    words = [(rule.code, rule.name) for rule in rules]
    words += [(rule.name, rule.code) for rule in rules]
    return [pair for pair in words if pair[0].lower().startswith(incomplete.lower())]


# -- bash ----------------------------------------------------------------------------


@contextmanager
def with_colons() -> Iterator[None]:
    """Complete a word with a colon in bash, which takes it apart: random : tiny.

    Bash replaces only what stands behind the colon, and is told no more than that.
    """
    if os.environ.get("_RECON_COMPLETE") != "complete_bash":
        yield
        return
    words, at = os.environ["COMP_WORDS"].split("\n"), int(os.environ["COMP_CWORD"])
    whole, place = _joined(words, at)
    typed = whole[place] if place < at else ""
    os.environ |= {"COMP_WORDS": "\n".join(whole), "COMP_CWORD": str(place)}
    offered = io.StringIO()
    try:
        with redirect_stdout(offered):
            yield
    finally:
        stays = typed[: typed.rfind(":") + 1]
        for line in offered.getvalue().splitlines():
            print(line.removeprefix(stays))


def _joined(words: Sequence[str], at: int) -> tuple[list[str], int]:
    """Join words that only colons part, and return where the one at ``at`` is then."""
    whole: list[str] = []
    place, glued = at, False
    for number, word in enumerate(words):
        colons = word != "" and set(word) == {":"}
        if whole and (colons or glued):
            whole[-1] += word
            place -= number <= at
        else:
            whole.append(word)
        glued = colons
    return whole, place
