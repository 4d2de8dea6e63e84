"""Level ``certify``: recompute each identity in float64, with a bound.

The bound says, element by element, how far *any* correct implementation in the run's
dtype may stray. No module and no kernel of the model is called, so captures made
elsewhere are judged as well. Attention and wide products are done a piece at a time, so
that memory stays bounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from recon.activations import activation, known
from recon.compare import Check, compare, odd_share, ulps
from recon.errors import CaptureError
from recon.facts import Environment, Identity
from recon.ops import (
    Activation,
    Add,
    Attention,
    Fused,
    LayerNorm,
    Linear,
    Mix,
    Pattern,
    Unembed,
    merge_heads,
    split_heads,
)
from recon.rounding import (
    Arithmetic,
    Bounded,
    Form,
    Softmax,
    attention_weights,
    layer_norm,
    mixed,
    product,
)
from recon.trace import Trace

LEVEL = "certify"
Place: TypeAlias = tuple[slice, ...]
Piece: TypeAlias = tuple[Place, Bounded]

# Elements of a float64 work tensor: 2^22 of them are 32 MB, and a rule holds a few.
_AT_ONCE = 2**22


def certify(
    trace: Trace, identities: Iterable[Identity], form: Form = "deterministic"
) -> Iterator[Check]:
    """Yield one check for each identity, in the given order."""
    for identity in identities:
        yield check(trace, identity, form)


@torch.no_grad()
def check(trace: Trace, identity: Identity, form: Form = "deterministic") -> Check:
    """Bound one site from its captured inputs, and judge what was captured there."""
    blank = Check(str(identity.site), identity.name, LEVEL, "unverified")
    try:
        inputs = [trace[place] for place in identity.inputs] + list(identity.extra)
        found = trace.captured(identity.site)
        if reason := unknown(identity, trace.facts.environment):
            return replace(blank, reason=reason)
        arithmetic = of(trace.facts.environment, found.dtype, form)
        pieces = _rule(identity)(identity.op, inputs, found, arithmetic)
        return judge(pieces, found, identity, inputs, blank)
    except CaptureError as error:
        return replace(blank, verdict="missing", reason=str(error))
    except (RuntimeError, ValueError, IndexError) as error:
        words = str(error).splitlines()[0]
        return replace(blank, reason=f"cannot be recomputed from its inputs: {words}")


def of(environment: Environment, store: torch.dtype, form: Form) -> Arithmetic:
    """Return the arithmetic of a site: it stores in the dtype that was captured."""
    return Arithmetic(store, form, environment.product_rounding)


def unknown(identity: Identity, environment: Environment) -> str:
    """Say which assumption of the bound does not hold, or nothing."""
    op = identity.op
    if isinstance(op, Activation) and not known(op.module):
        return f"the activation {op.name} has no error bound in recon"
    if isinstance(op, Linear | Unembed | Mix | Fused | Pattern) and environment.reduced:
        return (
            "half-precision products may be summed in half precision here "
            "(torch.backends.cuda.matmul.allow_*_reduced_precision_reduction)"
        )
    if isinstance(op, Fused) and op.attention.dropout and not op.attention.rng:
        return "dropout inside a fused kernel, whose random state was not recorded"
    return ""


# -- one rule an op ------------------------------------------------------------


def _rule(identity: Identity) -> Callable[..., Iterator[Piece]]:
    return _RULES.get(type(identity.op), _exact)


def _exact(
    op: Any, inputs: list[Tensor], found: Tensor, arithmetic: Arithmetic
) -> Iterator[Piece]:
    """Yield what is moved, not computed: it may only be stored more coarsely."""
    moved = op(*inputs)
    exact = Arithmetic(moved.dtype, arithmetic.form).exact(moved)
    yield (), exact.to(arithmetic)


def _add(
    op: Add, inputs: list[Tensor], found: Tensor, arithmetic: Arithmetic
) -> Iterator[Piece]:
    total = arithmetic.exact(inputs[0])
    for term in inputs[1:]:
        total = total + arithmetic.exact(term)
    yield (), total


def _linear(
    op: Linear, inputs: list[Tensor], found: Tensor, arithmetic: Arithmetic
) -> Iterator[Piece]:
    # Under autocast both operands are first cast to the dtype of the product.
    x = _as_rows(inputs[0]).to(arithmetic.store)
    weight, bias = op.weight.to(arithmetic.store), op.bias.to(arithmetic.store)
    shape = inputs[0].shape
    batch, seq = shape[0], shape[2 if inputs[0].ndim == 4 else 1]
    result = product(x, weight, bias, arithmetic)
    yield (), _shaped(result, (batch, seq, -1), op.heads)


def _unembed(
    op: Unembed, inputs: list[Tensor], found: Tensor, arithmetic: Arithmetic
) -> Iterator[Piece]:
    rows = op.rows(inputs[0]).to(arithmetic.store)
    weight = op.weight.to(arithmetic.store)
    bias = None if op.bias is None else op.bias.to(arithmetic.store)
    step = max(1, _AT_ONCE // (rows.shape[0] * rows.shape[1]))
    for start in range(0, weight.shape[0], step):
        some = slice(start, start + step)
        part = product(
            _as_rows(rows),
            weight[some].t(),
            None if bias is None else bias[some],
            arithmetic,
        )
        yield (slice(None), slice(None), some), _shaped(part, (*rows.shape[:2], -1))


def _layer_norm(
    op: LayerNorm, inputs: list[Tensor], found: Tensor, arithmetic: Arithmetic
) -> Iterator[Piece]:
    rows = _as_rows(inputs[0])
    result = layer_norm(rows, op.weight, op.bias, op.eps, arithmetic)
    yield (), _shaped(result, inputs[0].shape)


def _activation(
    op: Activation, inputs: list[Tensor], found: Tensor, arithmetic: Arithmetic
) -> Iterator[Piece]:
    yield (), activation(op.module, inputs[0], arithmetic)


def _pattern(
    op: Pattern, inputs: list[Tensor], found: Tensor, arithmetic: Arithmetic
) -> Iterator[Piece]:
    q, k = inputs
    for place, soft in _soft(op.attention, q, k, arithmetic):
        yield place, Bounded(soft.weights, soft.error, arithmetic).rounded()


def _mix(
    op: Mix, inputs: list[Tensor], found: Tensor, arithmetic: Arithmetic
) -> Iterator[Piece]:
    pattern, v = inputs
    for batch in range(pattern.shape[0]):
        for head in range(pattern.shape[1]):
            place = (slice(batch, batch + 1), slice(head, head + 1))
            one = product(pattern[batch, head], v[batch, head], None, arithmetic)
            yield place, _shaped(one, (1, 1, *one.value.shape))


def _fused(
    op: Fused, inputs: list[Tensor], found: Tensor, arithmetic: Arithmetic
) -> Iterator[Piece]:
    q, k, v = inputs
    call = op.attention
    alive = call.survivors(q, k) if call.dropout else None
    for place, soft in _soft(call, q, k, arithmetic):
        batch, heads, _ = place
        if alive is not None:
            gain = alive[place].double() / (1.0 - call.dropout)
            soft = Softmax(
                soft.weights * gain,
                (soft.error + 4 * arithmetic.u * soft.weights) * gain,
                soft.sums,
            )
        yield place, mixed(soft, v[batch, heads, : soft.weights.shape[-1]], arithmetic)


def _soft(
    call: Attention, q: Tensor, k: Tensor, arithmetic: Arithmetic
) -> Iterator[tuple[tuple[slice, slice, slice], Softmax]]:
    """Yield the weights of a few rows at a time, for one row of the batch each."""
    batch, heads, queries, width = q.shape
    keys = k.shape[2]
    scale = call.scale(width)
    allowed, bias = call.mask_parts(batch, queries, keys, q.device)
    stored = arithmetic.inside if call.kernel != "eager" else arithmetic
    step = max(1, _AT_ONCE // (heads * keys))
    for one in range(batch):
        left, right = q[one].double() * scale, k[one].double().transpose(-1, -2)
        for start in range(0, queries, step):
            rows = slice(start, min(start + step, queries))
            some = left[:, rows]
            soft = attention_weights(
                some @ right,
                some.abs() @ right.abs(),
                allowed[one, :, rows],
                None if bias is None else bias[one, :, rows],
                width,
                stored,
            )
            place = (slice(one, one + 1), slice(None), rows)
            yield place, Softmax(soft.weights[None], soft.error[None], soft.sums)


def _as_rows(x: Tensor) -> Tensor:
    x = merge_heads(x) if x.ndim == 4 else x
    return x.reshape(-1, x.shape[-1])


def _shaped(result: Bounded, shape: Iterable[int], heads: int = 0) -> Bounded:
    def view(t: Tensor) -> Tensor:
        t = t.view(*shape)
        return split_heads(t, heads) if heads else t

    return replace(result, value=view(result.value), error=view(result.error))


_RULES: dict[type, Callable[..., Iterator[Piece]]] = {
    Add: _add,
    Linear: _linear,
    Unembed: _unembed,
    LayerNorm: _layer_norm,
    Activation: _activation,
    Pattern: _pattern,
    Mix: _mix,
    Fused: _fused,
}


# -- judging -------------------------------------------------------------------


@dataclass
class _Tally:
    """The worst of what was seen so far."""

    seen: int = 0
    max_abs: float = 0.0
    ratio: float = 0.0
    max_ulp: int = 0
    index: tuple[int, ...] | None = None
    allowed: float = 0.0
    sharpness: float = 0.0
    survived: int = 0
    alive: int = 0

    def add(
        self, place: Place, bounded: Bounded, found: Tensor, rows: Tensor, p: float
    ) -> None:
        """Take one piece; ``rows`` are the root mean squares of its whole rows."""
        value, error = bounded.value, bounded.error
        real = found.double()
        if p > 0:
            self.alive += int((value != 0).sum())
            self.survived += int(((value != 0) & (real != 0)).sum())
            scale = 1.0 / (1.0 - p) if p < 1 else 0.0
            value = (value * scale).masked_fill(real == 0, 0.0)
            # Scaling rounds the factor and the product.
            error = error * scale + 2 * bounded.arithmetic.u * value.abs()
        gap = (real - value).abs()
        # A prediction that is not finite vouches for nothing: its ratio is infinite.
        ratio = torch.where(gap == 0, 0.0, gap / error).nan_to_num(nan=math.inf)
        worst = int(ratio.argmax())
        self.seen += gap.numel()
        self.max_abs = max(self.max_abs, float(gap.max()))
        self.max_ulp = max(self.max_ulp, int(ulps(value.to(found.dtype), found).max()))
        if self.index is None or float(ratio.flatten()[worst]) > self.ratio:
            self.ratio = float(ratio.flatten()[worst])
            self.allowed = float(error.flatten()[worst])
            self.index = _global_index(place, worst, gap.shape)
        caught = torch.where(rows > 0, (error + gap) / rows, 0.0)
        self.sharpness = max(self.sharpness, float(caught.max()))


def judge(
    pieces: Iterable[Piece],
    found: Tensor,
    identity: Identity,
    inputs: list[Tensor],
    blank: Check,
) -> Check:
    """Compare a captured tensor with its bounds, piece by piece."""
    idle = _idle(identity, inputs)
    strict = compare(
        found, found, site=blank.site, identity=blank.identity, level=LEVEL, idle=idle
    )
    if not strict.passed:
        return strict
    tally = _Tally()
    norms = torch.linalg.vector_norm(found, dim=-1, keepdim=True, dtype=torch.float64)
    size = norms / math.sqrt(found.shape[-1])
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


def _verdict(tally: _Tally, found: Tensor, identity: Identity, blank: Check) -> Check:
    if tally.seen != found.numel():
        reason = f"{found.numel()} elements captured, {tally.seen} predicted"
        return replace(blank, verdict="diverged", reason=f"wrong shape: {reason}")
    odd = odd_share(tally.alive, tally.survived, identity.dropout)
    inside = tally.ratio <= 1.0 and not odd
    exact = tally.max_abs == 0.0
    return replace(
        blank,
        verdict="diverged" if not inside else "exact" if exact else "rounding",
        reason=odd,
        max_abs=tally.max_abs,
        max_ulp=tally.max_ulp,
        index=tally.index,
        allowed=tally.allowed,
        bound_ratio=tally.ratio if math.isfinite(tally.ratio) else math.inf,
        sharpness=tally.sharpness,
    )


def _idle(identity: Identity, inputs: list[Tensor]) -> Tensor | None:
    op = identity.op
    return op.idle(*inputs) if isinstance(op, Pattern | Mix | Fused) else None


def _global_index(place: Place, flat: int, shape: torch.Size) -> tuple[int, ...]:
    local = [int(i) for i in torch.unravel_index(torch.tensor(flat), shape)]
    starts = [part.start or 0 for part in place] + [0] * (len(local) - len(place))
    return tuple(at + start for at, start in zip(local, starts, strict=True))
