"""A list in one line of a message, cut where it gets long."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice


def listed(values: Collection[object], most: int) -> str:
    """Write ``a, b, c``, and ``...`` for what comes after the first ``most``."""
    more = ["..."] if len(values) > most else []
    return ", ".join([*map(str, islice(values, most)), *more])
