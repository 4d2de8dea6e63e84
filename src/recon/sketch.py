"""Level ``sketch``: Freivalds' check of every linear map, cheap enough to leave on.

To check X W + b = Y it compares X (W R) + b R with Y R, where each column of R holds
random weights on one block of outputs, a sign times a size in [1/2, 1), and zeros
elsewhere. W R is computed once per model. A fault at one element is not averaged away.

The two sides differ by a signed sum of the errors of Y. In the probabilistic model of
Higham & Mary (2019), errors of zero mean and independent, an element's error has scale
``sqrt(n) a |x||w|``, and a signed sum exceeds L times the root of the summed squares
with probability 2 exp(-L^2/2) (Hoeffding 1963, theorem 2). See docs/numerics.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from recon.compare import Check
from recon.errors import CaptureError
from recon.facts import Identity
from recon.ops import Linear, Unembed, merge_heads, product_rounding
from recon.rounding import Arithmetic, lost
from recon.trace import Trace

LEVEL = "sketch"
# A block of one row of a correct run fails with this probability.
FALSE_ALARM = 1e-15
_LAMBDA = math.sqrt(2 * math.log(2 / FALSE_ALARM))
# Outputs to a block: fewer see smaller faults, and cost more.
_BLOCK = 192
# Outputs of a matrix that are projected at once, in float64; elements of Y that are
# looked at together, in float32.
_CHUNK = 4 * _BLOCK
_AT_ONCE = 2**23

Map: TypeAlias = Linear | Unembed


@dataclass(frozen=True, eq=False)
class Projected:
    """One matrix times random weights: all that a check needs of it.

    ``into`` is (W R)^T and ``bias`` (b R)^T; ``signs`` are the weights of whole blocks,
    ``rest`` those of the outputs that are left over. ``steep`` times the length of a
    row of x, and ``floor``, are the parts of the bound that the matrix decides,
    ``stored`` times the length of a row of Y the third. ``key`` tells whether the
    weights are still those that were projected.
    """

    into: Float[Tensor, "blocks in"]
    bias: Float[Tensor, "blocks 1"]
    signs: Float[Tensor, "whole 1 block"]
    rest: Float[Tensor, "1 1 _"]
    steep: Float[Tensor, "blocks 1"]
    floor: Float[Tensor, "blocks 1"]
    stored: float
    out: int
    key: tuple[object, ...]


class Sketcher:
    """Checks linear maps; keeps the projections of the weights it has seen.

    A projection is made anew when its parameter is another object, lies elsewhere or
    was edited in place (edits through ``.data`` raise no version and go unnoticed).
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._seen = WeakTensorKeyDictionary()

    def check(
        self, op: Map, x: Tensor, found: Tensor, arithmetic: Arithmetic, blank: Check
    ) -> Check:
        """Compare both sides for one map: x (rows, in), found (rows, out)."""
        made = self._projected(op, arithmetic)
        if x.shape[0] != found.shape[0] or found.shape[1] != made.out:
            return replace(
                blank,
                verdict="diverged",
                reason=f"wrong shape {tuple(found.shape)} from {tuple(x.shape)}",
            )
        return _judged(x, found, made, arithmetic, blank)

    def _projected(self, op: Map, arithmetic: Arithmetic) -> Projected:
        sums = _sums(arithmetic, op.weight.device)
        key = (_state(op.weight), _state(op.bias), id(op.bias), arithmetic, sums)
        made: Projected | None = self._seen.get(op.weight)
        if made is None or made.key != key:
            made = _project(op, key, arithmetic, self._seed + len(self._seen))
            self._seen[op.weight] = made
        return made


def _state(tensor: Tensor | None) -> tuple[int, int]:
    """Tell one state of a weight from another: where it lies, and how often edited."""
    if tensor is None:
        return 0, -1
    return tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version


def _sums(arithmetic: Arithmetic, device: torch.device) -> torch.dtype:
    """Return the dtype in which to add up: one whose products are not cheapened."""
    sums = arithmetic.accumulator
    return sums if product_rounding(sums, device) == 0.0 else torch.float64


def sketch(
    trace: Trace, identities: Iterable[Identity], sketcher: Sketcher
) -> Iterator[Check]:
    """Yield one check for each linear map among the identities."""
    for identity in identities:
        if isinstance(identity.op, Linear | Unembed):
            yield check(trace, identity, sketcher)


def check(trace: Trace, identity: Identity, sketcher: Sketcher) -> Check:
    """Check one linear map on what was captured of it."""
    with torch.no_grad(), trace.plain_arithmetic():
        return _checked(trace, identity, sketcher)


def _checked(trace: Trace, identity: Identity, sketcher: Sketcher) -> Check:
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
        return sketcher.check(op, x, _rows(found), arithmetic, blank)
    except (RuntimeError, ValueError, IndexError) as error:
        words = str(error).splitlines()[0]
        return replace(blank, reason=f"cannot be sketched from its inputs: {words}")


def _rows(x: Tensor) -> Tensor:
    x = merge_heads(x) if x.ndim == 4 else x
    return x.reshape(-1, x.shape[-1])


def _project(
    op: Map, key: tuple[object, ...], arithmetic: Arithmetic, seed: int
) -> Projected:
    """Draw the signs and multiply, in float64; kept in the dtype that sums are in.

    Weights are first rounded to the dtype of the product, as under autocast.
    """
    weight = op.weight.detach()
    weight = weight.t() if isinstance(op, Unembed) else weight
    out, store = weight.shape[1], arithmetic.store
    generator = torch.Generator().manual_seed(seed)
    signs = _signs(out, generator).to(weight.device)
    into, biases, norms = [], [], []
    for start in range(0, out, _CHUNK):
        some = slice(start, min(start + _CHUNK, out))
        flips = _by_blocks(signs[some])
        part = weight[:, some].to(store).double()
        offset = torch.zeros_like(part[0])
        if op.bias is not None:
            offset = op.bias.detach()[some].to(store).double()
        square = part.square().sum(0) + offset.square()
        into.append(flips @ part.t())
        biases.append(flips @ offset)
        norms.append((flips.square() @ square).sqrt())
    rows, whole = torch.cat(into), out - out % _BLOCK
    steep, floor = _fixed_bounds(torch.cat(norms), rows, out, arithmetic)
    sums = _sums(arithmetic, weight.device)
    return Projected(
        into=rows.to(sums),
        bias=torch.cat(biases).to(sums)[:, None],
        signs=signs[:whole].view(-1, 1, _BLOCK).to(sums),
        rest=signs[None, None, whole:].to(sums),
        steep=steep.to(sums)[:, None],
        floor=floor.to(sums)[:, None],
        stored=_stored(arithmetic),
        out=out,
        key=key,
    )


def _signs(length: int, generator: torch.Generator) -> Float[Tensor, " _"]:
    """Return a random weight for each output; float64.

    Signs alone miss two columns that were swapped whenever their signs agree; with a
    size in [1/2, 1) to each, no two weights agree.
    """
    signs = torch.randint(0, 2, (length,), generator=generator).double() * 2 - 1
    # Drawn in float32, in which they multiply Y: both sides use the same weights.
    return signs * ((torch.rand(length, generator=generator) + 1) / 2).double()


def _by_blocks(signs: Float[Tensor, " _"]) -> Float[Tensor, "blocks _"]:
    """Put each block of weights in a row of its own, with zeros elsewhere."""
    blocks: Tensor = torch.block_diag(*signs.split(_BLOCK))
    return blocks


def _fixed_bounds(
    norms: Tensor, into: Tensor, out: int, arithmetic: Arithmetic
) -> tuple[Tensor, Tensor]:
    """Return what the bound has for each unit of a row's length, and what at least.

    ``norms`` (blocks) are the Frobenius norms of each block of the matrix with its
    bias, each column times its weight; ``into`` is (W R)^T.
    """
    inputs, own = into.shape[1], Arithmetic(arithmetic.accumulator).u
    root, s = math.sqrt(inputs + 1), lost(arithmetic.accumulator)
    operands = 2 * arithmetic.inputs + arithmetic.inputs**2
    reach = into.square().sum(1).sqrt()
    steep = (root * arithmetic.a + operands) * norms + root * own * reach
    # What is lost near zero. bfloat16 products flush operands: s |w| or s |x| is lost
    # with each term, and the sum of |x| is at most root times its length.
    steep = steep + s * _BLOCK * root
    floor = s * (math.sqrt(inputs * _BLOCK) * norms + 2 * inputs + 2)
    # The bias is a product with 1, which lengthens a row of x by at most 1.
    floor = floor + steep
    # Results that are stored, and squares that vanish from a norm.
    floor = floor + math.sqrt(_BLOCK) * lost(arithmetic.store)
    floor = floor + arithmetic.u * math.sqrt(out * s)
    return _LAMBDA * steep, _LAMBDA * floor


def _stored(arithmetic: Arithmetic) -> float:
    """Return the bound for each unit of a row's length: stored, and summed."""
    own = math.sqrt(2 * _BLOCK) * Arithmetic(arithmetic.accumulator).u
    return _LAMBDA * (own if _by_block(arithmetic) else own + arithmetic.u)


def _by_block(arithmetic: Arithmetic) -> bool:
    """Whether storing Y weighs so much that the length of each block is measured.

    Elsewhere that of the row stands for it, which costs little sharpness.
    """
    return arithmetic.u > arithmetic.a


def _judged(
    x: Tensor, y: Tensor, made: Projected, arithmetic: Arithmetic, blank: Check
) -> Check:
    """Judge each block of each row; the bound is Cauchy-Schwarz's, in O(rows)."""
    sums = made.into.dtype
    # Products first: they bring x and Y from memory better than the lengths would.
    gap = _gap(x.to(sums), y, made)
    far = torch.linalg.vector_norm(x, dim=1, dtype=sums)
    size = torch.linalg.vector_norm(y, dim=1, dtype=sums)
    bound = _bound(y, far, size, made, arithmetic)
    ratio = gap / bound
    worst = int(ratio.argmax())
    block, row = divmod(worst, len(x))
    biggest = ratio.view(-1)[worst].item()
    if not math.isfinite(biggest):
        if bool(x[row].isfinite().all() & y[row].isfinite().all()):
            reason = "too large for the sums of the sketch"
            return replace(blank, index=(row,), reason=reason)
        reason = "not finite, somewhere in the row"
        return replace(blank, verdict="diverged", index=(row,), reason=reason)
    sharp, top = (bound / size).amax().item(), size.amax().item()
    # No element, and no bound, is larger than this times what the margin multiplies.
    near = not top * (2 + _margin(made) * sharp) < torch.finfo(arithmetic.store).max
    if near and biggest <= 1.0 and _may_overflow(y, bound, made, arithmetic):
        return replace(blank, reason="no finite bound: the results may overflow")
    if not math.isfinite(sharp):
        if not bool(bound.isfinite().all()):
            return replace(blank, reason="too large for the norms of the sketch")
        sharp = (bound / size.clamp_(min=torch.finfo(sums).tiny)).amax().item()
    return replace(
        blank,
        verdict="rounding" if biggest <= 1.0 else "diverged",
        max_abs=gap.view(-1)[worst].item(),
        index=(row, block * _BLOCK),
        allowed=bound.view(-1)[worst].item(),
        bound_ratio=biggest,
        sharpness=4 * math.sqrt(made.out) * sharp,
    )


def _may_overflow(
    y: Float[Tensor, "rows out"],
    bound: Float[Tensor, "blocks rows"],
    made: Projected,
    arithmetic: Arithmetic,
) -> bool:
    """Whether an exact result may exceed the largest number, wherever it does so."""
    most = max(abs(end.item()) for end in y.aminmax())
    far = _margin(made) * bound.amax().item()
    return not most * (1 + 4 * arithmetic.u) + far < torch.finfo(arithmetic.store).max


def _margin(made: Projected) -> float:
    """Return how many bounds of its block an element's exact result may lie beyond it.

    The proven bound is at most sqrt(n+1)/L times that of the block, once for weights
    that may be 1/2 and once for the gap from what was found.
    """
    return 5 * max(1.0, math.sqrt(made.into.shape[1] + 1) / _LAMBDA)


def _gap(
    x: Float[Tensor, "rows in"], y: Float[Tensor, "rows out"], made: Projected
) -> Float[Tensor, "blocks rows"]:
    """Return the distance of the two sides.

    Transposed: with few blocks such products are up to three times faster.
    """
    gap = torch.addmm(made.bias, made.into, x.t())
    for blocks, signs, part in _parts(gap, y, made):
        blocks[:, None].baddbmm_(signs, part, alpha=-1)
    return gap.abs_()


def _parts(
    target: Float[Tensor, "blocks rows"], y: Float[Tensor, "rows out"], made: Projected
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield some blocks of ``target``, their signs, and the part of Y they look at.

    The signs are (blocks, 1, outputs to a block), the part (blocks, outputs, rows): a
    batch of one product for each block takes a quarter of the time of one product with
    zeros between the blocks.
    """
    sums, rows, whole = target.dtype, len(y), made.signs.numel()
    step = max(1, _AT_ONCE // (rows * _BLOCK))
    for start in range(0, len(made.signs), step):
        signs = made.signs[start : start + step]
        part = y[:, start * _BLOCK : start * _BLOCK + signs.numel()].to(sums)
        part = part.view(rows, -1, _BLOCK).permute(1, 2, 0)
        yield target[start : start + len(signs)], signs, part
    if whole < made.out:
        yield target[-1:], made.rest, y[:, whole:].to(sums).t()[None]


def _bound(
    y: Float[Tensor, "rows out"],
    far: Float[Tensor, " rows"],
    size: Float[Tensor, " rows"],
    made: Projected,
    arithmetic: Arithmetic,
) -> Float[Tensor, "blocks rows"]:
    """Return the bound by block and row, from the lengths of the rows of x and Y."""
    bound = torch.addcmul(made.floor, made.steep, far)
    bound.add_(size, alpha=made.stored)
    if _by_block(arithmetic):
        for blocks, signs, part in _parts(bound, y, made):
            length = torch.bmm(signs.square(), part.square())[:, 0].sqrt_()
            blocks.add_(length, alpha=_LAMBDA * arithmetic.u)
    return bound
