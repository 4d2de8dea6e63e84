"""Matrices times random weights: what a screen of their products keeps of them.

Each column of R holds random weights on one block of outputs, a sign times a size in
[1/2, 1), and zeros elsewhere. See docs/numerics.md, *The sketch*.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from recon.ops import Linear, Unembed
from recon.rounding import Arithmetic, lost

# A block of one row of a correct run fails with this probability.
FALSE_ALARM = 1e-15
LAMBDA = math.sqrt(2 * math.log(2 / FALSE_ALARM))
# Outputs to a block: fewer see smaller faults, and cost more.
BLOCK = 192
# Outputs of a matrix that are projected at once, in float64.
_CHUNK = 4 * BLOCK

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
    bias: Float[Tensor, " blocks"]
    signs: Float[Tensor, "whole 1 block"]
    rest: Float[Tensor, "1 1 _"]
    steep: Float[Tensor, "blocks 1"]
    floor: Float[Tensor, "blocks 1"]
    stored: float
    out: int
    key: tuple[object, ...]


def project(
    op: Map,
    key: tuple[object, ...],
    arithmetic: Arithmetic,
    sums: torch.dtype,
    seed: int,
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
    rows, whole = torch.cat(into), out - out % BLOCK
    steep, floor = _fixed_bounds(torch.cat(norms), rows, out, arithmetic)
    return Projected(
        into=rows.to(sums),
        bias=torch.cat(biases).to(sums),
        signs=signs[:whole].view(-1, 1, BLOCK).to(sums),
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
    blocks: Tensor = torch.block_diag(*signs.split(BLOCK))
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
    steep = steep + s * BLOCK * root
    floor = s * (math.sqrt(inputs * BLOCK) * norms + 2 * inputs + 2)
    # The bias is a product with 1, which lengthens a row of x by at most 1.
    floor = floor + steep
    # Results that are stored, and squares that vanish from a norm.
    floor = floor + math.sqrt(BLOCK) * lost(arithmetic.store)
    floor = floor + arithmetic.u * math.sqrt(out * s)
    return LAMBDA * steep, LAMBDA * floor


def _stored(arithmetic: Arithmetic) -> float:
    """Return the bound for each unit of a row's length: stored, and summed."""
    own = math.sqrt(2 * BLOCK) * Arithmetic(arithmetic.accumulator).u
    return LAMBDA * (own if measured_by_block(arithmetic) else own + arithmetic.u)


def measured_by_block(arithmetic: Arithmetic) -> bool:
    """Whether storing Y weighs so much that the length of each block is measured.

    Elsewhere that of the row stands for it, which costs little sharpness.
    """
    return arithmetic.u > arithmetic.a
