"""Values that were captured, beside what bounds say: judged piece by piece.

A piece is a place in a captured tensor and its prediction with a bound. The verdict is
that of the worst element of all pieces.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from recon.compare import Check, Verdict, compare, most_ulps, odd_share
from recon.facts import Identity
from recon.ops import Fused, Mix, Pattern
from recon.rounding import Bounded, ignored, lost

Place: TypeAlias = tuple[slice, ...]
Piece: TypeAlias = tuple[Place, Bounded]


@dataclass
class _Tally:
    """The worst of what was seen so far."""

    seen: int = 0
    max_abs: float = 0.0
    ratio: float = 0.0
    max_ulp: int = 0
    worst: tuple[Place, Tensor, Tensor] | None = None
    sharpness: float = 0.0
    survived: int = 0
    alive: int = 0
    unbounded: int = 0

    def add(
        self, place: Place, bounded: Bounded, found: Tensor, rows: Tensor, p: float
    ) -> None:
        """Take one piece; ``rows`` are the root mean squares of its whole rows."""
        value, error = bounded.value, bounded.error
        if p > 0:
            value, error = self._dropped(bounded, found, p)
        gap = found.to(torch.float64, copy=True).sub_(value).abs_()
        most = float(gap.amax())
        self.seen += gap.numel()
        self.max_abs = max(self.max_abs, most)
        if most != 0:
            self.max_ulp = max(self.max_ulp, most_ulps(value.to(found.dtype), found))
        if self.worst is None or most != 0:
            self._rate(place, gap, error)
        # What a fault must exceed to be caught: the bound, and the error already there.
        caught = torch.add(error, gap, out=gap).amax(-1, keepdim=True)
        if not math.isfinite(float(caught.amax())):
            self.unbounded += int((~error.isfinite()).sum())
        sharp = torch.where(rows > 0, caught / rows, 0.0)
        self.sharpness = max(self.sharpness, float(sharp.amax()))

    def _dropped(
        self, bounded: Bounded, found: Tensor, p: float
    ) -> tuple[Tensor, Tensor]:
        """Count what dropout kept, and scale the prediction of it."""
        value, kept = bounded.value, found != 0
        scale, near = 1.0 / (1.0 - p) if p < 1 else 0.0, lost(found.dtype)
        # What may be lost near zero says nothing about dropout.
        alive = value.abs() > near
        self.alive += int(alive.sum())
        self.survived += int((alive & kept).sum())
        value = (value * scale).masked_fill_(~kept, 0.0)
        # Scaling rounds the factor and the product, of an operand that may be lost.
        off = bounded.error * scale + 2 * bounded.arithmetic.u * value.abs()
        return value, off.add_(near + scale * ignored(found.dtype))

    def _rate(self, place: Place, gap: Tensor, error: Tensor) -> None:
        """Keep the piece with the largest error over its bound."""
        ratio = gap / error
        biggest = float(ratio.amax())
        if not math.isfinite(biggest):
            # No error is none even where none is allowed, and an infinite bound allows
            # any; a prediction that is not a number vouches for nothing.
            free = (gap == 0) | (error == math.inf)
            ratio = ratio.masked_fill_(free, 0.0).nan_to_num_(nan=math.inf)
            biggest = float(ratio.amax())
        if self.worst is None or biggest > self.ratio:
            self.ratio, self.worst = biggest, (place, ratio, error)

    def where(self) -> tuple[tuple[int, ...], float]:
        """Return where the largest error over its bound is, and that bound."""
        assert self.worst is not None
        place, ratio, error = self.worst
        # By rows first: torch looks for one maximum of many elements in one thread.
        width = ratio.shape[-1]
        row = int(ratio.amax(-1).argmax())
        flat = row * width + int(ratio.reshape(-1, width)[row].argmax())
        return _global_index(place, flat, ratio.shape), float(error.flatten()[flat])


def judge(
    pieces: Iterable[Piece],
    found: Tensor,
    identity: Identity,
    inputs: list[Tensor],
    blank: Check,
) -> Check:
    """Compare a captured tensor with its bounds, piece by piece."""
    idle = idle_rows(identity, inputs)
    strict = compare(
        found,
        found,
        site=blank.site,
        identity=blank.identity,
        level=blank.level,
        idle=idle,
    )
    if not strict.passed:
        return strict
    tally = _Tally()
    size = _row_sizes(found)
    for place, bounded in pieces:
        some = found[place]
        if bounded.value.shape != some.shape:
            reason = f"wrong shape {tuple(found.shape)}"
            return replace(blank, verdict="diverged", reason=reason)
        if idle is not None:
            rows = idle.expand(-1, found.shape[1], -1)[place][..., None]
            some = some.masked_fill(rows, 0)
            bounded = replace(
                bounded,
                value=bounded.value.masked_fill(rows, 0.0),
                error=bounded.error.masked_fill(rows, 0.0),
            )
        # A piece may be a part of its rows; they are measured whole.
        tally.add(place, bounded, some, size[place[: found.ndim - 1]], identity.dropout)
    return _verdict(tally, found, identity, replace(blank, excluded=strict.excluded))


def _row_sizes(found: Float[Tensor, "*lead width"]) -> Float[Tensor, "*lead 1"]:
    """Return the root mean square of each row."""
    kind = torch.promote_types(found.dtype, torch.float32)
    norms = torch.linalg.vector_norm(found, dim=-1, keepdim=True, dtype=kind)
    low, high = (float(t) for t in norms.aminmax())
    if kind != torch.float64 and not 1e-12 < low <= high < 1e15:
        # Squares that overflow float32, or vanish from it.
        norms = torch.linalg.vector_norm(
            found, dim=-1, keepdim=True, dtype=torch.float64
        )
    size: Tensor = norms.double() / math.sqrt(found.shape[-1])
    return size


def _verdict(tally: _Tally, found: Tensor, identity: Identity, blank: Check) -> Check:
    if tally.seen != found.numel():
        reason = f"{found.numel()} elements captured, {tally.seen} predicted"
        return replace(blank, verdict="diverged", reason=f"wrong shape: {reason}")
    index, allowed = tally.where()
    reason = odd_share(tally.alive, tally.survived, identity.dropout)
    verdict: Verdict = "exact" if tally.max_abs == 0.0 else "rounding"
    if reason or not tally.ratio <= 1.0:
        verdict = "diverged"
    elif tally.unbounded:
        verdict = "unverified"
        why = _no_number(identity) or "they may overflow"
        reason = f"no finite bound for {tally.unbounded} elements: {why}"
    return replace(
        blank,
        verdict=verdict,
        reason=reason,
        max_abs=tally.max_abs,
        max_ulp=tally.max_ulp,
        index=index,
        allowed=allowed,
        bound_ratio=tally.ratio if math.isfinite(tally.ratio) else math.inf,
        sharpness=tally.sharpness,
    )


def _no_number(identity: Identity) -> str:
    """Say which weight of an operation holds NaN, if one does."""
    held = ((name, getattr(identity.op, name, None)) for name in ("weight", "bias"))
    return next(
        (
            f"the {name} that makes them holds NaN"
            for name, tensor in held
            if isinstance(tensor, Tensor) and bool(tensor.isnan().any())
        ),
        "",
    )


def idle_rows(identity: Identity, inputs: list[Tensor]) -> Tensor | None:
    """Return which rows may attend to no key (B 1 T); None if there are none."""
    op = identity.op
    if not isinstance(op, Pattern | Mix | Fused):
        return None
    idle = op.idle(*inputs)
    return idle if bool(idle.any()) else None


def _global_index(place: Place, flat: int, shape: torch.Size) -> tuple[int, ...]:
    local = [int(i) for i in torch.unravel_index(torch.tensor(flat), shape)]
    starts = [part.start or 0 for part in place] + [0] * (len(local) - len(place))
    return tuple(at + start for at, start in zip(local, starts, strict=True))
