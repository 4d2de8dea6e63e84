"""Level ``sketch``: Freivalds' check of every linear map, cheap enough to leave on.

To check X W + b = Y it compares X (W R) + b R with Y R for the random weights R of
``recon.projection``. W R is computed once per model. A fault at one element is not
averaged away.

The two sides differ by a signed sum of the errors of Y. In the probabilistic model of
Higham & Mary (2019), errors of zero mean and independent, an element's error has scale
``sqrt(n) a |x||w|``, and a signed sum exceeds L times the root of the summed squares
with probability 2 exp(-L^2/2) (Hoeffding 1963, theorem 2). See docs/numerics.md.

X and Y are read map by map; all that is as small as rows times blocks is done for many
maps at once, since there the number of operations is what costs.
"""

from __future__ import annotations

import math
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from recon.compare import Check
from recon.errors import CaptureError
from recon.facts import Identity
from recon.ops import Linear, Unembed, merge_heads, product_rounding
from recon.projection import (
    BLOCK,
    LAMBDA,
    Map,
    Projected,
    measured_by_block,
    project,
)
from recon.rounding import Arithmetic
from recon.trace import Trace

LEVEL = "sketch"
# Elements of Y that are looked at together, in float32.
_AT_ONCE = 2**23

Sums: TypeAlias = Callable[[Arithmetic, torch.device], torch.dtype]


def sums_in(arithmetic: Arithmetic, device: torch.device) -> torch.dtype:
    """Return the dtype in which to add up: one whose products are not cheapened."""
    sums = arithmetic.accumulator
    return sums if product_rounding(sums, device) == 0.0 else torch.float64


@dataclass(frozen=True, eq=False)
class Sides:
    """What was read of one map's X and Y, rows by rows, and is still to be judged.

    ``gap`` is how far the two sides are apart; ``far`` and ``size`` are the lengths of
    the rows of X and Y, ``parts`` those of the blocks of Y, weighted, where they count.
    """

    x: Float[Tensor, "rows in"]
    y: Float[Tensor, "rows out"]
    made: Projected
    arithmetic: Arithmetic
    blank: Check
    gap: Float[Tensor, "blocks rows"]
    far: Float[Tensor, " rows"]
    size: Float[Tensor, " rows"]
    parts: Float[Tensor, "blocks rows"] | None

    @property
    def kind(self) -> tuple[object, ...]:
        """What maps must share to be judged together."""
        return self.x.shape[0], self.arithmetic, self.gap.dtype, self.gap.device


class Sketcher:
    """Reads linear maps; keeps the projections of the weights it has seen.

    What it draws for a map depends on the map and the seed alone, so that results do
    not depend on what was checked before. Threads may share it.

    A projection is made anew when its parameter is another object, lies elsewhere or
    was edited in place. Edits through ``.data`` raise no version: ``forget`` the
    projection of a map that fails, and read it again.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._seen = WeakTensorKeyDictionary()
        self._lock = threading.RLock()

    def check(
        self, op: Map, x: Tensor, found: Tensor, arithmetic: Arithmetic, blank: Check
    ) -> Check:
        """Compare both sides of one map: x (rows, in), found (rows, out)."""
        (judged,) = _judged([self.read(op, x, found, arithmetic, blank, sums_in)])
        return judged

    def read(
        self,
        op: Map,
        x: Tensor,
        found: Tensor,
        arithmetic: Arithmetic,
        blank: Check,
        sums: Sums,
    ) -> Sides | Check:
        """Read both sides, or say at once that the shapes do not fit."""
        made = self._projected(op, arithmetic, sums(arithmetic, op.weight.device))
        if x.shape[0] != found.shape[0] or found.shape[1] != made.out:
            return replace(
                blank,
                verdict="diverged",
                reason=f"wrong shape {tuple(found.shape)} from {tuple(x.shape)}",
            )
        return _read(x, found, made, arithmetic, blank)

    def forget(self, op: Map) -> None:
        """Drop what is kept of one map, to be projected anew."""
        with self._lock:
            self._seen.pop(op.weight, None)

    def _projected(
        self, op: Map, arithmetic: Arithmetic, sums: torch.dtype
    ) -> Projected:
        key = (_state(op.weight), _state(op.bias), id(op.bias), arithmetic, sums)
        # One at a time: several threads may check passes of one model.
        with self._lock:
            made: Projected | None = self._seen.get(op.weight)
            if made is None or made.key != key:
                made = project(op, key, arithmetic, sums, _seed(op, self._seed))
                self._seen[op.weight] = made
            return made


def _seed(op: Map, salt: int) -> int:
    """Return what the random weights of a map are drawn from: the map, not history.

    A few numbers tell the maps of a model apart; no more are read, to stay cheap.
    """
    some = op.weight.detach()[:1].flatten()[:64].to("cpu", torch.float32)
    shape = zlib.crc32(str(tuple(op.weight.shape)).encode(), salt)
    return zlib.crc32(some.numpy().tobytes(), shape)


def _state(tensor: Tensor | None) -> tuple[int, int]:
    """Tell one state of a weight from another: where it lies, and how often edited."""
    if tensor is None:
        return 0, -1
    return tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version


def sketch(
    trace: Trace, identities: Iterable[Identity], sketcher: Sketcher
) -> list[Check]:
    """Return one check for each linear map among the identities, in their order.

    One that fails is checked against its weight as it is now before that is said.
    """
    with torch.inference_mode(), trace.plain_arithmetic():
        sums = cache(sums_in)  # settings do not change while a pass is checked
        linear = [i for i in identities if isinstance(i.op, Linear | Unembed)]
        checks = _judged([_sides(trace, i, sketcher, sums) for i in linear])
        for at, identity in enumerate(linear):
            if checks[at].verdict == "diverged":
                assert isinstance(identity.op, Linear | Unembed)
                sketcher.forget(identity.op)
                checks[at : at + 1] = _judged([_sides(trace, identity, sketcher, sums)])
        return checks


def _sides(
    trace: Trace, identity: Identity, sketcher: Sketcher, sums: Sums
) -> Sides | Check:
    """Read one linear map of what was captured, or say why that cannot be."""
    blank = Check(str(identity.site), identity.name, LEVEL, "unverified")
    op = identity.op
    assert isinstance(op, Linear | Unembed)
    try:
        inputs = [trace[place] for place in identity.inputs] + list(identity.extra)
        found = trace.captured(identity.site)
    except CaptureError as error:
        return replace(blank, verdict="missing", reason=str(error))
    environment = trace.facts.environment
    if environment.reduced:
        return replace(blank, reason="half-precision products may be summed in half")
    arithmetic = Arithmetic(found.dtype, inputs=environment.product_rounding)
    try:
        x = op.rows(inputs[0]) if isinstance(op, Unembed) else inputs[0]
        # Under autocast both operands are first cast to the dtype of the product.
        x = _rows(x).to(found.dtype)
        return sketcher.read(op, x, _rows(found), arithmetic, blank, sums)
    except (RuntimeError, ValueError, IndexError) as error:
        words = str(error).splitlines()[0]
        return replace(blank, reason=f"cannot be sketched from its inputs: {words}")


def _rows(x: Tensor) -> Tensor:
    x = merge_heads(x) if x.ndim == 4 else x
    return x.reshape(-1, x.shape[-1])


# -- reading X and Y -----------------------------------------------------------


def _read(
    x: Tensor, y: Tensor, made: Projected, arithmetic: Arithmetic, blank: Check
) -> Sides:
    """Read both sides and the lengths of their rows, in O(rows)."""
    sums = made.into.dtype
    # Products first: they bring x and Y from memory better than the lengths would.
    predicted = torch.nn.functional.linear(x.to(sums), made.into, made.bias)
    gap = _over_blocks(y, made).sub_(predicted.t())
    far = torch.linalg.vector_norm(x, dim=1, dtype=sums)
    size = torch.linalg.vector_norm(y, dim=1, dtype=sums)
    parts = None
    if measured_by_block(arithmetic):
        parts = _over_blocks(y, made, torch.square).sqrt_()
    return Sides(x, y, made, arithmetic, blank, gap, far, size, parts)


def _over_blocks(
    y: Float[Tensor, "rows out"],
    made: Projected,
    of: Callable[[Tensor], Tensor] = lambda factor: factor,
) -> Float[Tensor, "blocks rows"]:
    """Return weighted sums over the blocks of each row, or sums ``of`` both factors."""
    pieces = [torch.bmm(of(signs), of(part))[:, 0] for signs, part in _parts(y, made)]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _parts(
    y: Float[Tensor, "rows out"], made: Projected
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the signs of some blocks, and the part of Y they look at.

    The signs are (blocks, 1, outputs to a block), the part (blocks, outputs, rows): a
    batch of one product for each block takes a quarter of the time of one product with
    zeros between the blocks.
    """
    sums, rows, whole = made.into.dtype, y.shape[0], made.signs.numel()
    at_once = max(1, _AT_ONCE // (rows * BLOCK))
    for start in range(0, made.signs.shape[0], at_once):
        signs = made.signs[start : start + at_once]
        part = y[:, start * BLOCK : start * BLOCK + signs.numel()].to(sums)
        yield signs, part.view(rows, -1, BLOCK).permute(1, 2, 0)
    if whole < made.out:
        yield made.rest, y[:, whole:].to(sums).t()[None]


# -- judging -------------------------------------------------------------------


def _judged(read: Sequence[Sides | Check]) -> list[Check]:
    """Judge what was read; what is a check already stays as it is."""
    checks = {at: one for at, one in enumerate(read) if isinstance(one, Check)}
    alike: dict[tuple[object, ...], list[tuple[int, Sides]]] = {}
    for at, one in enumerate(read):
        if isinstance(one, Sides):
            alike.setdefault(one.kind, []).append((at, one))
    for pairs in alike.values():
        places, sides = zip(*pairs, strict=True)
        checks |= zip(places, _together(sides), strict=True)
    return [checks[at] for at in range(len(read))]


def _together(sides: Sequence[Sides]) -> Iterator[Check]:
    """Judge each block of each row of maps that are alike.

    The bound is Cauchy-Schwarz's, from the lengths of the rows of X and Y.
    """
    counts = [one.gap.shape[0] for one in sides]
    size = torch.stack([one.size for one in sides])
    bound = _bounds(sides, size, counts)
    gap = torch.cat([one.gap for one in sides]).abs_()
    ratio = gap / bound
    # What is no number is ordered with infinity: above all that is finite.
    peaks = ratio.amax(1).nan_to_num_(nan=math.inf).tolist()
    sharp = (bound / _each(size, counts)).amax(1).nan_to_num_(nan=math.inf).tolist()
    ends = accumulate(counts)
    maps = [slice(end - n, end) for end, n in zip(ends, counts, strict=True)]
    blocks = [max(range(m.start, m.stop), key=peaks.__getitem__) for m in maps]
    # Rows are looked for in the worst blocks only: it takes torch long.
    ratios, rows = ratio[blocks].max(1)
    picked = [ratios, rows, gap[blocks, rows], bound[blocks, rows], size.amax(1)]
    numbers = zip(*(t.tolist() for t in picked), strict=True)
    sharps = [max(sharp[m]) for m in maps]
    for one, m, block, (most, row, off, allowed, top), fine in zip(
        sides, maps, blocks, numbers, sharps, strict=True
    ):
        worst = _Worst(most, block - m.start, row, off, allowed, fine, top)
        yield _verdict(one, worst, bound[m])


def _each(rows: Float[Tensor, "maps rows"], counts: list[int]) -> Tensor:
    """Repeat what belongs to a map for each of its blocks: (blocks, rows)."""
    times = torch.tensor(counts, device=rows.device)
    return rows.repeat_interleave(times, dim=0, output_size=sum(counts))


def _bounds(
    sides: Sequence[Sides], size: Float[Tensor, "maps rows"], counts: list[int]
) -> Float[Tensor, "blocks rows"]:
    """Return the bound by block and row, for all blocks of all maps."""
    made = [one.made for one in sides]
    far = torch.stack([one.far for one in sides])
    steep, floor = (
        torch.cat([getattr(m, name) for m in made]) for name in ("steep", "floor")
    )
    bound = torch.addcmul(floor, steep, _each(far, counts))
    bound.add_(_each(size, counts), alpha=made[0].stored)
    if parts := [one.parts for one in sides if one.parts is not None]:
        bound.add_(torch.cat(parts), alpha=LAMBDA * sides[0].arithmetic.u)
    return bound


@dataclass(frozen=True, slots=True)
class _Worst:
    """One map at its worst: the largest error over bound, where it is, and both.

    ``sharp`` is the largest bound over the length of a row of Y, ``top`` the largest
    such length.
    """

    ratio: float
    block: int
    row: int
    gap: float
    bound: float
    sharp: float
    top: float


def _verdict(
    sides: Sides, worst: _Worst, bounds: Float[Tensor, "blocks rows"]
) -> Check:
    """Judge one map."""
    blank, arithmetic, sharp = sides.blank, sides.arithmetic, worst.sharp
    if not math.isfinite(worst.ratio):
        x, y = sides.x[worst.row], sides.y[worst.row]
        if bool(x.isfinite().all() & y.isfinite().all()):
            reason = "too large for the sums of the sketch"
            return replace(blank, index=(worst.row,), reason=reason)
        reason = "not finite, somewhere in the row"
        return replace(blank, verdict="diverged", index=(worst.row,), reason=reason)
    # No element, and no bound, is larger than this times what the margin multiplies.
    largest = torch.finfo(arithmetic.store).max
    near = not worst.top * (2 + _margin(sides.made) * sharp) < largest
    if near and worst.ratio <= 1.0 and _may_overflow(sides, bounds):
        return replace(blank, reason="no finite bound: the results may overflow")
    if not math.isfinite(sharp):
        if not bool(bounds.isfinite().all()):
            return replace(blank, reason="too large for the norms of the sketch")
        least = torch.finfo(bounds.dtype).tiny
        sharp = (bounds / sides.size.clamp(min=least)).amax().item()
    return replace(
        blank,
        verdict="rounding" if worst.ratio <= 1.0 else "diverged",
        max_abs=worst.gap,
        index=(worst.row, worst.block * BLOCK),
        allowed=worst.bound,
        bound_ratio=worst.ratio,
        sharpness=4 * math.sqrt(sides.made.out) * sharp,
    )


def _may_overflow(sides: Sides, bounds: Float[Tensor, "blocks rows"]) -> bool:
    """Whether an exact result may exceed the largest number, wherever it does so."""
    arithmetic = sides.arithmetic
    most = max(abs(end.item()) for end in sides.y.aminmax())
    far = _margin(sides.made) * bounds.amax().item()
    return not most * (1 + 4 * arithmetic.u) + far < torch.finfo(arithmetic.store).max


def _margin(made: Projected) -> float:
    """Return how many bounds of its block an element's exact result may lie beyond it.

    The proven bound is at most sqrt(n+1)/L times that of the block, once for weights
    that may be 1/2 and once for the gap from what was found.
    """
    return 5 * max(1.0, math.sqrt(made.into.shape[1] + 1) / LAMBDA)
