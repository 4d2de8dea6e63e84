"""Two tensors side by side: exact, or how far apart, and where."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from recon.display import Displayed
from recon.ops import kept

Verdict: TypeAlias = Literal["exact", "rounding", "diverged", "missing", "unverified"]
_FROM_BEST: tuple[Verdict, ...] = (
    "exact",
    "rounding",
    "unverified",
    "missing",
    "diverged",
)
PASSES: frozenset[str] = frozenset({"exact", "rounding"})

_ORDERED_AS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
# A fair dropout keeps a share of its elements that strays from 1-p by more than
# Hoeffding's inequality allows with this probability only (JASA 58, 1963, theorem 1).
_DROPOUT_CHANCE = 1e-12


@dataclass(frozen=True)
class Check(Displayed):
    """What one comparison found.

    ``max_abs`` is the largest absolute error, at ``index``; ``max_ulp`` the largest
    distance in units in the last place of the captured dtype. Both are None where
    nothing could be compared; ``reason`` then says why. ``excluded`` counts the rows
    left out because they may attend to no key. ``bound_ratio`` is the largest error
    over its bound, ``sharpness`` the size, relative to its row's root mean square, from
    which a fault at any one element is certain to be caught.
    """

    site: str
    identity: str
    level: str
    verdict: Verdict
    max_abs: float | None = None
    max_ulp: int | None = None
    index: tuple[int, ...] | None = None
    reason: str = ""
    allowed: float | None = None
    excluded: int = 0
    bound_ratio: float | None = None
    sharpness: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the check holds; only a proof counts, not an absence."""
        return self.verdict in PASSES

    @property
    def severity(self) -> tuple[int, float, int]:
        """Sorts checks from exact to worst; no measure counts as the worst."""
        error = math.inf if self.max_abs is None else self.max_abs
        return _FROM_BEST.index(self.verdict), error, self.max_ulp or 0

    def describe(self) -> str:
        """Say in one line what was found, where, and what was expected."""
        where = f" at {list(self.index)}" if self.index is not None else ""
        if self.reason:
            return f"{self.site}: {self.reason}{where} ({self.identity}, {self.level})"
        if self.verdict == "exact":
            return f"{self.site}: exact ({self.identity}, {self.level})"
        allowed = "0" if self.allowed is None else f"{self.allowed:.3g}"
        if self.bound_ratio is not None:
            return (
                f"{self.site}: {self.bound_ratio:.3g} of the bound{where}, off by at "
                f"most {self.max_abs:.3g} ({self.identity}, {self.level})"
            )
        return (
            f"{self.site}: off by {self.max_abs:.3g}{where}, {self.max_ulp:,} ulp, "
            f"allowed {allowed} ({self.identity}, {self.level})"
        )

    def __repr__(self) -> str:
        return f"Check({self.verdict}, {self.describe()})"


def compare(
    expected: Tensor,
    found: Tensor,
    *,
    site: str,
    identity: str,
    level: str,
    dropout: float = 0.0,
    idle: Tensor | None = None,
) -> Check:
    """Compare strictly: shape, dtype, finiteness, then every element.

    Equal means equal in value. With ``dropout`` each element is 0 or the expected value
    over 1-p; rows masked by ``idle`` (B 1 T, for B H T x) are left out and counted.
    """

    def verdict(kind: Verdict, **more: object) -> Check:
        return Check(site, identity, level, kind, **more)  # type: ignore[arg-type]

    if found.shape != expected.shape:
        shapes = f"{tuple(found.shape)}, expected {tuple(expected.shape)}"
        return verdict("diverged", reason=f"wrong shape {shapes}")
    if found.dtype != expected.dtype:
        return verdict(
            "diverged", reason=f"wrong dtype {found.dtype}, expected {expected.dtype}"
        )
    if found.numel() == 0:
        return verdict("missing", reason="empty: no element to compare")
    excluded = 0
    if idle is not None and (rows := int(idle.sum())):
        excluded = rows
        if rows == idle.numel():
            return verdict(
                "unverified",
                excluded=rows,
                reason="no row may attend to any key: nothing to compare",
            )
        expected = expected.masked_fill(idle[..., None], 0)
        found = found.masked_fill(idle[..., None], 0)
    if broken := not_finite(found):
        reason, index = broken
        return verdict("diverged", index=index, excluded=excluded, reason=reason)
    if dropout > 0:
        expected, odd = _as_dropped(expected, found, dropout)
        if odd:
            return verdict("diverged", reason=odd, excluded=excluded)
    if expected is found or torch.equal(expected, found):
        return verdict("exact", max_abs=0.0, max_ulp=0, excluded=excluded)
    gap = (found.double() - expected.double()).abs()
    gap = gap.nan_to_num(nan=math.inf, posinf=math.inf)
    index = _unravel(int(gap.argmax()), found.shape)
    return verdict(
        "diverged",
        max_abs=float(gap[index]),
        max_ulp=most_ulps(expected, found),
        index=index,
        excluded=excluded,
    )


def not_finite(found: Tensor) -> tuple[str, tuple[int, ...]] | None:
    """Say how many elements are not finite, and where the first is; None if all are."""
    # One pass, and no tensor: an infinity or nan stays one in any sum.
    if math.isfinite(float(found.sum())):
        return None
    broken = ~torch.isfinite(found)
    if not bool(broken.any()):
        return None
    index = _first(broken)
    count = int(broken.sum())
    return f"not finite: {count} elements, the first {found[index].item()}", index


def ulps(a: Tensor, b: Tensor) -> Tensor:
    """Distance in representable numbers between two tensors of one float dtype."""
    as_int = _ORDERED_AS[a.element_size()]

    def rank(x: Tensor) -> Tensor:
        bits = x.contiguous().view(as_int).long()
        lowest = torch.iinfo(as_int).min
        return torch.where(bits < 0, lowest - bits, bits)

    high, low = rank(a), rank(b)
    apart = high - low
    # Float64 of opposite signs may be 2**63 or more apart: the count then saturates.
    wrapped = (high >= low) != (apart >= 0)
    return torch.where(wrapped, torch.iinfo(torch.int64).max, apart.abs())


def most_ulps(a: Tensor, b: Tensor) -> int:
    """Return the largest of ``ulps``: in the bits themselves where all signs agree."""
    as_int = _ORDERED_AS[a.element_size()]
    left, right = a.view(as_int), b.view(as_int)
    if int((left ^ right).amin()) < 0:
        return int(ulps(a, b).max())
    return int((left - right).abs_().amax())


def _as_dropped(expected: Tensor, found: Tensor, p: float) -> tuple[Tensor, str]:
    """Expect 0 where zeros were found, else the scaled value; judge their share."""
    scaled = kept(expected, p)
    alive = scaled != 0
    odd = odd_share(int(alive.sum()), int((alive & (found != 0)).sum()), p)
    return torch.where(found == 0, torch.zeros_like(scaled), scaled), odd


def odd_share(count: int, survived: int, p: float) -> str:
    """Say if dropout of probability ``p`` cannot have left that many of ``count``."""
    slack = math.sqrt(count / 2 * math.log(2 / _DROPOUT_CHANCE))
    if p == 0 or abs(survived - count * (1.0 - p)) <= slack:
        return ""
    return f"dropout p={p} kept {survived} of {count} elements"


def _first(mask: Tensor) -> tuple[int, ...]:
    return _unravel(int(mask.flatten().int().argmax()), mask.shape)


def _unravel(flat: int, shape: torch.Size) -> tuple[int, ...]:
    return tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), shape))
