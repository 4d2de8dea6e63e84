"""Level ``certify``: recompute each identity in float64, with a bound.

The bound says, element by element, how far *any* correct implementation in the run's
dtype may stray. No module and no kernel of the model is called, so captures made
elsewhere are judged as well. Attention and wide products are done a piece at a time, so
that memory stays bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from recon.activations import activation, known
from recon.compare import Check, not_finite
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
from recon.rounding import Arithmetic, Bounded, Form, Rows, layer_norm, product, summed
from recon.softmax import Softmax, attention_weights, mixed
from recon.tally import Piece, Place, idle_rows, judge
from recon.trace import Trace

LEVEL = "certify"

# Elements of a float64 work tensor. A rule holds a few, and makes one pass over them
# after another: they are to stay in the cache of a core. At most this many rows meet a
# matrix at once, so that a piece has many of its columns.
_AT_ONCE = 3 * 2**15
_ROWS = 256


def certify(
    trace: Trace, identities: Iterable[Identity], form: Form = "deterministic"
) -> Iterator[Check]:
    """Yield one check for each identity, in the given order."""
    for identity in identities:
        yield check(trace, identity, form)


def check(trace: Trace, identity: Identity, form: Form = "deterministic") -> Check:
    """Bound one site from its captured inputs, and judge what was captured there."""
    with torch.no_grad(), trace.plain_arithmetic():
        return _checked(trace, identity, form)


def _checked(trace: Trace, identity: Identity, form: Form) -> Check:
    blank = Check(str(identity.site), identity.name, LEVEL, "unverified")
    op = identity.op
    try:
        inputs = [trace[place] for place in identity.inputs] + list(identity.extra)
        found = trace.captured(identity.site)
        if reason := unknown(identity, trace.facts.environment):
            return replace(blank, reason=reason)
        arithmetic = of(trace.facts.environment, found.dtype, form)
        rule = _RULES.get(type(op))
        if rule is None:
            return _moved(op(*inputs), found, identity, arithmetic, blank)
        pieces = rule(op, inputs, found, arithmetic)
        return judge(pieces, found, identity, inputs, blank)
    except CaptureError as error:
        return replace(blank, verdict="missing", reason=str(error))
    except (RuntimeError, ValueError, IndexError) as error:
        words = str(error).splitlines()[0]
        return replace(blank, reason=f"cannot be recomputed from its inputs: {words}")


@torch.no_grad()
def bounds(
    trace: Trace, identity: Identity, form: Form = "deterministic"
) -> Tensor | None:
    """Return how far each element of one site may stray; float64, the site's shape.

    Rows that may attend to no key have the bound 0: they are nobody's to judge. None
    where nothing can be bounded; ``check`` says why.
    """
    if unknown(identity, trace.facts.environment):
        return None
    inputs = [trace[place] for place in identity.inputs] + list(identity.extra)
    found = trace.captured(identity.site)
    arithmetic = of(trace.facts.environment, found.dtype, form)
    rule = _RULES.get(type(identity.op))
    pieces = (
        _stored(identity.op(*inputs), arithmetic)
        if rule is None
        else rule(identity.op, inputs, found, arithmetic)
    )
    allowed = torch.zeros_like(found, dtype=torch.float64)
    for place, bounded in pieces:
        allowed[place] = bounded.error
    idle = idle_rows(identity, inputs)
    return allowed if idle is None else allowed.masked_fill(idle[..., None], 0.0)


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
    half = (environment.autocast or environment.dtype) in (
        torch.bfloat16,
        torch.float16,
    )
    if isinstance(op, Fused) and half and op.attention.reduced:
        return (
            "half-precision scores may be kept in half precision here "
            "(torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp)"
        )
    if isinstance(op, Fused) and op.attention.dropout and not op.attention.rng:
        return "dropout inside a fused kernel, whose random state was not recorded"
    return ""


# -- one rule an op ------------------------------------------------------------


def _moved(
    value: Tensor,
    found: Tensor,
    identity: Identity,
    arithmetic: Arithmetic,
    blank: Check,
) -> Check:
    """Judge what is moved, not computed: it may only be stored more coarsely."""
    strict = not identity.dropout and value.dtype == found.dtype
    same = strict and value.shape == found.shape and torch.equal(value, found)
    if same and found.numel():
        return _exact(found, blank)
    return judge(_stored(value, arithmetic), found, identity, [], blank)


def _stored(value: Tensor, arithmetic: Arithmetic) -> Iterator[Piece]:
    exact = Arithmetic(value.dtype, arithmetic.form)
    for place in _places(value.shape):
        yield place, exact.exact(value[place]).to(arithmetic)


def _exact(found: Tensor, blank: Check) -> Check:
    if broken := not_finite(found):
        return replace(blank, verdict="diverged", reason=broken[0], index=broken[1])
    return replace(
        blank,
        verdict="exact",
        max_abs=0.0,
        max_ulp=0,
        index=(0,) * found.ndim,
        allowed=0.0,
        bound_ratio=0.0,
        sharpness=0.0,
    )


def _places(shape: torch.Size, rows: int = 0) -> Iterator[Place]:
    """Cut B ... T n into pieces of whole rows.

    A piece is some tokens of one row of the batch, or all tokens of some; ``rows`` says
    how many, or as many as fit.
    """
    batch, seq = shape[0], shape[-2] if len(shape) > 2 else 1
    rows = rows or max(1, _AT_ONCE * batch * seq // max(1, shape.numel()))
    between = (slice(None),) * (len(shape) - 3)
    some, step = max(1, rows // max(1, seq)), min(rows, max(1, seq))
    for first in range(0, batch, some):
        for start in range(0, seq, step):
            place = slice(first, min(first + some, batch)), *between
            tokens = slice(start, min(start + step, seq))
            yield (*place, tokens) if len(shape) > 2 else place


def _add(
    op: Add, inputs: list[Tensor], found: Tensor, arithmetic: Arithmetic
) -> Iterator[Piece]:
    inputs = list(torch.broadcast_tensors(*inputs))
    for place in _places(inputs[0].shape):
        yield place, summed([term[place] for term in inputs], arithmetic)


def _linear(
    op: Linear, inputs: list[Tensor], found: Tensor, arithmetic: Arithmetic
) -> Iterator[Piece]:
    x = merge_heads(inputs[0]) if inputs[0].ndim == 4 else inputs[0]
    width = op.weight.shape[1] // op.heads if op.heads else 1
    for place, part in _products(x, op.weight, op.bias, width, arithmetic):
        batch, seq, some = place
        if op.heads:
            heads = slice(some.start // width, some.stop // width)
            split = _shaped(part, lambda t: split_heads(t, t.shape[-1] // width))
            yield (batch, heads, seq), split
        else:
            yield place, part


def _unembed(
    op: Unembed, inputs: list[Tensor], found: Tensor, arithmetic: Arithmetic
) -> Iterator[Piece]:
    yield from _products(op.rows(inputs[0]), op.weight.t(), op.bias, 1, arithmetic)


def _products(
    x: Float[Tensor, "batch seq in"],
    weight: Float[Tensor, "in out"],
    bias: Float[Tensor, " out"] | None,
    width: int,
    arithmetic: Arithmetic,
) -> Iterator[tuple[tuple[slice, slice, slice], Bounded]]:
    """Yield x W + b, some columns at a time, a multiple of ``width``.

    Under autocast both operands are first cast to the dtype of the product.
    """
    store, out = arithmetic.store, weight.shape[1]
    for batch, seq in _places(x.shape, _ROWS):
        part = x[batch, seq].to(store)
        rows = Rows(part.reshape(-1, part.shape[-1]), arithmetic)
        step = max(1, _AT_ONCE // (part.shape[0] * part.shape[1] * width)) * width
        for start in range(0, out, step):
            some = slice(start, min(start + step, out))
            offset = None if bias is None else bias[some].to(store)
            result = rows.times(weight[:, some].to(store), offset)
            whole = _shaped(result, partial(_unflattened, part.shape))
            yield (batch, seq, some), whole


def _unflattened(shape: torch.Size, rows: Tensor) -> Tensor:
    return rows.view(*shape[:2], -1)


def _layer_norm(
    op: LayerNorm, inputs: list[Tensor], found: Tensor, arithmetic: Arithmetic
) -> Iterator[Piece]:
    for place in _places(inputs[0].shape):
        rows = inputs[0][place]
        yield place, layer_norm(rows, op.weight, op.bias, op.eps, arithmetic)


def _activation(
    op: Activation, inputs: list[Tensor], found: Tensor, arithmetic: Arithmetic
) -> Iterator[Piece]:
    for place in _places(inputs[0].shape):
        yield place, activation(op.module, inputs[0][place], arithmetic)


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
            yield place, _shaped(one, lambda t: t[None, None])


def _fused(
    op: Fused, inputs: list[Tensor], found: Tensor, arithmetic: Arithmetic
) -> Iterator[Piece]:
    q, k, v = inputs
    call = op.attention
    alive = call.survivors(q, k) if call.dropout else None
    for place, soft in _soft(call, q, k, arithmetic):
        batch, heads, _ = place
        if alive is not None:
            scale = 1.0 / (1.0 - call.dropout) if call.dropout < 1 else 0.0
            gain = alive[place].double() * scale
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
        right = k[one].double()
        for start in range(0, queries, step):
            rows = slice(start, min(start + step, queries))
            soft = attention_weights(
                q[one, :, rows],
                right,
                scale,
                allowed[one, :, rows],
                None if bias is None else bias[one, :, rows],
                stored,
            )
            place = (slice(one, one + 1), slice(None), rows)
            yield place, Softmax(soft.weights[None], soft.error[None], soft.sums)


def _shaped(result: Bounded, view: Callable[[Tensor], Tensor]) -> Bounded:
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
