"""Which check stands in which row and column of the table, and how wide that gets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from recon.compare import Check
from recon.errors import UnknownSiteError
from recon.sites import STEM, site

# What the model returned stands in the column of the identity that it repeats.
_RETURNED = {
    "past_key_values": "cache",
    "attentions": "pattern",
    "cross_attentions": "cross_pattern",
}
# Where columns are too many for the terminal, several share one: first the pieces of
# one sub-layer, then whole halves of the block.
_PIECES = {
    "split": "qkv",
    "cache": "qkv",
    "pattern": "attention",
    "z": "attention",
    "attn_out": "attention",
    "resid_cross": "cross",
    "cross_ln": "cross",
    "cross_q": "cross",
    "cross_kv": "cross",
    "cross_cache": "cross",
    "cross_pattern": "cross",
    "cross_z": "cross",
    "cross_out": "cross",
    "mlp_pre": "mlp",
    "mlp_post": "mlp",
    "mlp_out": "mlp",
}
_HALVES = _PIECES | {
    "chain": "residual stream",
    "resid_cross": "residual stream",
    "resid_mid": "residual stream",
    "resid_post": "residual stream",
    "hidden_states": "residual stream",
    "ln_1": "attention",
    "split": "attention",
    "qkv": "attention",
    "cache": "attention",
    "ln_2": "mlp",
}
GROUPINGS: tuple[Mapping[str, str], ...] = ({}, _PIECES, _HALVES)


@dataclass(frozen=True)
class Placed:
    """The checks of one run by where they are shown; blocks by their number."""

    stem: tuple[Check, ...]
    blocks: tuple[tuple[Check, ...], ...]
    head: tuple[Check, ...]


def place(checks: Iterable[Check], depth: int) -> Placed:
    """Sort checks by the block they belong to; ``hidden_states.3`` enters block 3."""
    stem: list[Check] = []
    blocks: list[list[Check]] = [[] for _ in range(depth)]
    head: list[Check] = []
    for check in checks:
        row = _row(check, depth)
        if row is None:
            continue
        (stem if row < 0 else head if row >= depth else blocks[row]).append(check)
    return Placed(tuple(stem), tuple(map(tuple, blocks)), tuple(head))


def _row(check: Check, depth: int) -> int | None:
    """Return the block, -1 above all blocks, ``depth`` below, None for no row."""
    if check.level == "capture":
        return None
    kind, _, entry = check.site.partition(".")
    if kind == "hidden_states" and entry.isdigit():
        return int(entry)
    try:
        where = site(check.site)
    except UnknownSiteError:
        return None
    if where.layer is not None:
        return where.layer
    return -1 if where.row in STEM else depth


def columns(blocks: Iterable[Iterable[Check]]) -> list[str]:
    """Name the identities that any block has, in the order of their computation."""
    names: dict[str, None] = {}
    for checks in blocks:
        names |= dict.fromkeys(column(check) for check in checks)
    states = [name for name in names if name == "hidden_states"]
    return [name for name in names if name not in states] + states


def column(check: Check) -> str:
    """Name the column of a check: its identity's."""
    return _RETURNED.get(check.identity, check.identity)


def header(name: str) -> str:
    """Break a long name after an underscore or at a blank: ``resid_`` over ``mid``."""
    if len(name) <= 5:
        return name
    return name.replace("_", "_\n", 1).replace(" ", "\n")


def worst(checks: Iterable[Check]) -> Check | None:
    """Return the gravest check of a cell, or None for an empty one."""
    return max(checks, key=lambda check: check.severity, default=None)


def cells(
    blocks: Iterable[Iterable[Check]], grouping: Mapping[str, str]
) -> tuple[list[str], list[list[Check | None]]]:
    """Return the columns' names and, for each block, the worst check in each."""
    rows = [list(checks) for checks in blocks]
    names = list(dict.fromkeys(grouping.get(n, n) for n in columns(rows)))
    table = [
        [worst(cell) for cell in cells_of(checks, names, grouping)] for checks in rows
    ]
    return names, table


def cells_of(
    checks: Sequence[Check],
    names: Sequence[str],
    grouping: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[list[Check]]:
    """Yield a block's checks column by column."""
    groups = [grouping.get(column(check), column(check)) for check in checks]
    for name in names:
        yield [c for c, g in zip(checks, groups, strict=True) if g == name]
