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
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from recon.compare import Check
from recon.errors import CaptureError
from recon.facts import Identity
from recon.ops import Linear, Unembed, merge_heads
from recon.rounding import Arithmetic, lost
from recon.trace import Trace

LEVEL = "sketch"
# A block of one row of a correct run fails with this probability.
FALSE_ALARM = 1e-15
_LAMBDA = math.sqrt(2 * math.log(2 / FALSE_ALARM))
# Outputs to a block, and blocks to one product: fewer outputs see smaller faults.
_BLOCK, _TOGETHER = 96, 8
_CHUNK = _BLOCK * _TOGETHER

Map: TypeAlias = Linear | Unembed


@dataclass(frozen=True, eq=False)
class Projected:
    """One matrix times random weights: all that a check needs of it.

    ``into`` is W R (in, blocks) and ``bias`` b R (blocks); ``signs`` are the pieces of
    R, block-diagonal (chunk, blocks of the chunk); ``norms`` the Frobenius norm of each
    block of W with its bias, ``reach`` that of each column of ``into``. ``key`` tells
    whether the weights are still the ones that were projected.
    """

    into: Tensor
    bias: Tensor
    signs: tuple[Tensor, ...]
    norms: Tensor
    reach: Tensor
    out: int
    key: tuple[object, ...]


class Sketcher:
    """Checks linear maps; keeps the projections of the weights it has seen.

    A projection is made anew when its parameter is another object or was edited in
    place (edits through ``.data`` raise no version and go unnoticed).
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._seen = WeakTensorKeyDictionary()

    def check(
        self, op: Map, x: Tensor, found: Tensor, arithmetic: Arithmetic, blank: Check
    ) -> Check:
        """Compare both sides for one map: x (rows, in), found (rows, out)."""
        made = self._projected(op, arithmetic.store)
        if x.shape[0] != found.shape[0] or found.shape[1] != made.out:
            return replace(
                blank,
                verdict="diverged",
                reason=f"wrong shape {tuple(found.shape)} from {tuple(x.shape)}",
            )
        return _judged(x, found, made, arithmetic, blank)

    def _projected(self, op: Map, dtype: torch.dtype) -> Projected:
        key = (_version(op.weight), _version(op.bias), id(op.bias), dtype)
        made: Projected | None = self._seen.get(op.weight)
        if made is None or made.key != key:
            made = _project(op, key, dtype, self._seed + len(self._seen))
            self._seen[op.weight] = made
        return made


def _version(tensor: Tensor | None) -> int:
    return -1 if tensor is None or tensor.is_inference() else tensor._version


def sketch(
    trace: Trace, identities: Iterable[Identity], sketcher: Sketcher
) -> Iterator[Check]:
    """Yield one check for each linear map among the identities."""
    for identity in identities:
        if isinstance(identity.op, Linear | Unembed):
            yield check(trace, identity, sketcher)


@torch.no_grad()
def check(trace: Trace, identity: Identity, sketcher: Sketcher) -> Check:
    """Check one linear map on what was captured of it."""
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
    op: Map, key: tuple[object, ...], dtype: torch.dtype, seed: int
) -> Projected:
    """Draw the signs and multiply, in float64; kept in the dtype that sums are in.

    Weights are first rounded to ``dtype``, that of the product under autocast.
    """
    weight = op.weight.detach().to(dtype)
    weight = weight.t() if isinstance(op, Unembed) else weight
    bias = None if op.bias is None else op.bias.detach().to(dtype)
    out, sums = weight.shape[1], Arithmetic(dtype).accumulator
    generator = torch.Generator().manual_seed(seed)
    signs, into, biases, norms = [], [], [], []
    for start in range(0, out, _CHUNK):
        some = slice(start, min(start + _CHUNK, out))
        flips = _block_signs(some.stop - start, generator).to(weight.device)
        part = weight[:, some].double()
        offset = torch.zeros_like(part[0]) if bias is None else bias[some].double()
        square = part.square().sum(0) + offset.square()
        into.append(part @ flips)
        biases.append(offset @ flips)
        norms.append((square @ flips.square()).sqrt())
        signs.append(flips.to(sums))
    columns = torch.cat(into, 1)
    return Projected(
        into=columns.to(sums),
        bias=torch.cat(biases).to(sums),
        signs=tuple(signs),
        norms=torch.cat(norms).to(sums),
        reach=columns.square().sum(0).sqrt().to(sums),
        out=out,
        key=key,
    )


def _block_signs(length: int, generator: torch.Generator) -> Tensor:
    """Return random weights (length, blocks), a block in each column; float64.

    Signs alone miss two columns that were swapped whenever their signs agree; with a
    size in [1/2, 1) to each, no two weights agree.
    """
    signs = torch.randint(0, 2, (length,), generator=generator).double() * 2 - 1
    # Drawn in float32, in which they multiply Y: both sides use the same weights.
    signs = signs * ((torch.rand(length, generator=generator) + 1) / 2).double()
    block = torch.arange(length) // _BLOCK
    return signs[:, None] * torch.nn.functional.one_hot(block)


def _judged(
    x: Tensor, found: Tensor, made: Projected, arithmetic: Arithmetic, blank: Check
) -> Check:
    """Judge each block of each row; the bound is Cauchy-Schwarz's, in O(rows)."""
    sums = made.into.dtype
    x, y = x.to(sums), found.to(sums)
    left = torch.addmm(made.bias, x, made.into)
    right = torch.cat(
        [y[:, c * _CHUNK : (c + 1) * _CHUNK] @ s for c, s in enumerate(made.signs)], 1
    )
    gap = (left - right).abs_()
    bound, size = _bound(x, y, made, arithmetic)
    ratio = gap / bound
    worst = int(ratio.argmax())
    row, block = divmod(worst, gap.shape[1])
    biggest = float(ratio[row, block])
    if not math.isfinite(biggest):
        reason = "not finite, somewhere in the row"
        return replace(blank, verdict="diverged", index=(row,), reason=reason)
    if not bool(bound.isfinite().all()):
        return replace(blank, reason="too large for the norms of the sketch")
    sharp = (4 * bound / size.clamp(min=torch.finfo(sums).tiny)).amax()
    return replace(
        blank,
        verdict="rounding" if biggest <= 1.0 else "diverged",
        max_abs=float(gap[row, block]),
        index=(row, block * _BLOCK),
        allowed=float(bound[row, block]),
        bound_ratio=biggest,
        sharpness=float(sharp),
    )


def _bound(
    x: Tensor, y: Tensor, made: Projected, arithmetic: Arithmetic
) -> tuple[Tensor, Tensor]:
    """Return the bound by row and block, and the root mean square of each row of Y."""
    inputs = 2 * arithmetic.inputs + arithmetic.inputs**2
    own = Arithmetic(made.into.dtype).u
    root = math.sqrt(x.shape[1] + 1)
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    # The bias is a product with 1, which lengthens x by one element.
    longer = (norm.square() + 1).sqrt_()
    size = torch.linalg.vector_norm(y, dim=1, keepdim=True)
    stored = (arithmetic.u + math.sqrt(2 * _BLOCK) * own) * _by_block(
        y, size, made, arithmetic
    )
    products = (root * arithmetic.a + inputs) * longer * made.norms
    projected = root * own * longer * made.reach
    bound = (products + projected + stored + _near_zero(x, y, made, arithmetic)).mul_(
        _LAMBDA
    )
    # Norms that overflow say nothing; inf * 0 above is not a number.
    return bound.nan_to_num(nan=math.inf), size / math.sqrt(made.out)


def _near_zero(x: Tensor, y: Tensor, made: Projected, arithmetic: Arithmetic) -> Tensor:
    """Return what is lost near zero: stored, flushed, or squared for a norm."""
    s = lost(arithmetic.accumulator)
    # bfloat16 products flush operands: s |w| or s |x| is lost with each term.
    into = math.sqrt(x.shape[1] * _BLOCK) * made.norms
    flushed = s * (x.abs().sum(1, keepdim=True) * _BLOCK + into + 2 * x.shape[1] + 2)
    squares = arithmetic.u * math.sqrt(made.out * s)
    return flushed + math.sqrt(_BLOCK) * lost(arithmetic.store) + squares


def _by_block(
    y: Tensor, size: Tensor, made: Projected, arithmetic: Arithmetic
) -> Tensor:
    """Return the norm of each block of Y; of the row where that costs no sharpness."""
    if arithmetic.u <= arithmetic.a:
        return size
    chunks = [
        y[:, c * _CHUNK : (c + 1) * _CHUNK].square() @ signs.square()
        for c, signs in enumerate(made.signs)
    ]
    return torch.cat(chunks, 1).sqrt_()
