"""A list in one line of a message, cut where it gets long, and a guess at a name."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches
from itertools import islice


def listed(values: Collection[object], most: int) -> str:
    """Write ``a, b, c``, and ``...`` for what comes after the first ``most``."""
    more = ["..."] if len(values) > most else []
    return ", ".join([*map(str, islice(values, most)), *more])


def meant(name: str, known: Collection[str]) -> str:
    """Write ``; did you mean x?`` for the name that is nearest; nothing if none is."""
    near = get_close_matches(name, list(dict.fromkeys(known)), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""
