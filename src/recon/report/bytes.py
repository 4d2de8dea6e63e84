"""Bytes by kind of site and by block, for tables and plots."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recon.profiling.memory import SiteBytes


@dataclass(frozen=True)
class Part:
    """Tensors whose names differ in numbers only, over all blocks."""

    name: str
    count: int
    held: int
    needed: int


def part_of(name: str) -> str:
    """Return a name without its numbers: ``h.*.attn.z``."""
    return re.sub(r"(?<![A-Za-z_])\d+", "*", name)


def block_of(name: str) -> int | None:
    """Return the first number of a name, or None."""
    found = re.search(r"(?<![A-Za-z_])\d+", name)
    return None if found is None else int(found.group())


def by_part(sites: Iterable[SiteBytes]) -> list[Part]:
    """Join sites over blocks, in order of their first."""
    parts: dict[str, list[SiteBytes]] = {}
    for one in sites:
        parts.setdefault(part_of(one.site), []).append(one)
    return [
        Part(name, len(all_), sum(s.held for s in all_), sum(s.needed for s in all_))
        for name, all_ in parts.items()
    ]
