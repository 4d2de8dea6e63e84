"""Do two passes of a model agree, and if not, from where on and in which rows?

Never bit by bit: the same numbers come out with other last bits where a cache lays k
out differently, another kernel runs, or other rows share the batch. What two passes
differ by is held against rounding; whether an *edit* lies between two sites is asked of
one pass alone, whose local identity fails there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from recon import gpt2
from recon.auditing.near import allowance, apart
from recon.certify import check as certified
from recon.errors import CaptureError
from recon.facts import Identity
from recon.sites import Site
from recon.trace import Trace

# A gap up to this size may be rounding that grew through many blocks; then the local
# identity decides. What is edited on purpose moves values by more.
_GROWN = 1e-3
_NARROW = (torch.bfloat16, torch.float16)


def alike(found: Tensor, known: Tensor) -> bool:
    """Whether two tensors are equal, or differ as rounding of one step lets them."""
    if found.shape != known.shape or found.dtype != known.dtype:
        return False
    return torch.equal(found, known) or apart(known, found) <= allowance(known.dtype)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same values, NaN in the same places."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one, other) or not bool(changed_values(one, other).any())


def changed_values(one: Tensor, other: Tensor) -> Tensor:
    """Return where two tensors differ; NaN equals NaN here."""
    return (one != other) & ~(one.isnan() & other.isnan())


def same_inputs(trace: Trace, clean: Trace) -> bool:
    """Whether two passes looked up the same tokens and positions."""
    ours, theirs = trace.facts.ids, clean.facts.ids
    return all(
        place in theirs and torch.equal(ours[place], theirs[place]) for place in ours
    )


def first_changed(
    trace: Trace, clean: Trace, mask: Tensor | None = None
) -> Site | None:
    """Return the first site at which a pass computes something else than ``clean``.

    Tokens before the first that ``mask`` (B T) shows see no key at all, and each
    implementation of attention gives them something else: they are left out.
    """
    idle = idle_tokens(mask)
    for place, tensor in trace.tensors.items():
        known = clean.tensors.get(place)
        if known is None:
            continue
        # Generation asks for the logits of the last token only.
        if place.part == "logits" and known.shape != tensor.shape:
            continue
        if idle is not None:
            tensor, known = (less(one, place, idle) for one in (tensor, known))
        if not alike(tensor, known) and not _grown(trace, place, tensor, known):
            return place
    return None


def idle_tokens(mask: Tensor | None) -> Tensor | None:
    """Return where tokens (B T) see no key: before the first that a mask shows."""
    idle = None if mask is None else mask.cumsum(1) == 0
    return idle if idle is not None and bool(idle.any()) else None


def less(tensor: Tensor, place: Site, idle: Tensor) -> Tensor:
    """Return a tensor without the tokens of ``idle`` (B T)."""
    axes = place.row.shape.split()
    if axes[:1] != ["B"] or "T" not in axes:
        return tensor
    # Heads may be kept merged.
    rows = tensor.movedim(axes.index("T") if tensor.ndim == len(axes) else 1, 1)
    return rows[~idle] if rows.shape[:2] == idle.shape else tensor


def _grown(trace: Trace, place: Site, found: Tensor, known: Tensor) -> bool:
    """Whether a gap is rounding of earlier sites, carried on by a correct step."""
    if found.shape != known.shape or apart(known, found) > _GROWN:
        return False
    identity = gpt2.identity_of(trace, place)
    return identity is not None and certified(trace, identity).passed


def rows_changed(trace: Trace, clean: Trace, place: Site) -> list[int]:
    """Return the rows of the batch in which a pass was changed at a site.

    Those in which its own local identity fails; where that holds in all rows (a mask or
    a weight was changed, say) those that are off from ``clean``.
    """
    found = trace.tensors[place]
    expected = (_predicted(trace, place), clean.tensors[place])
    rows = (_rows_apart(found, one) for one in expected if one is not None)
    return next((some for some in rows if some), [])


def rows_edited(
    trace: Trace, clean: Trace | None = None
) -> tuple[Site, list[int]] | None:
    """Return where a pass first breaks a law of its own, and in which rows.

    Laws that the model breaks by itself, in the ``clean`` pass, are none of its own.
    """
    edits = _edits(trace)
    first = next(edits, None)
    if first is None or clean is None:
        return first
    own = {place for place, _ in _edits(clean)}
    return next((one for one in (first, *edits) if one[0] not in own), None)


def _edits(trace: Trace) -> Iterator[tuple[Site, list[int]]]:
    for identity in gpt2.identities(trace):
        found = trace.tensors.get(identity.site)
        made = None if found is None else _made(trace, identity)
        if found is None or made is None:
            continue
        rows = _rows_apart(found, made)
        if rows and certified(trace, identity).verdict == "diverged":
            yield identity.site, rows


def _predicted(trace: Trace, place: Site) -> Tensor | None:
    identity = gpt2.identity_of(trace, place)
    return None if identity is None else _made(trace, identity)


@torch.no_grad()
def _made(trace: Trace, identity: Identity) -> Tensor | None:
    if identity.dropout:
        return None
    try:
        inputs = [trace[one] for one in identity.inputs] + list(identity.extra)
        with trace.arithmetic():
            expected: Tensor = identity.op(*inputs)
    except (CaptureError, RuntimeError, ValueError, IndexError):
        return None
    return expected


def _rows_apart(found: Tensor, expected: Tensor) -> list[int]:
    if found.shape != expected.shape:
        return []
    size = float(expected.double().square().mean().sqrt())
    gaps = (found.double() - expected.double()).abs().flatten(1).amax(1)
    allowed = allowance(found.dtype) * size
    return [row for row, gap in enumerate(gaps.tolist()) if not gap <= allowed]


def replayed(
    trace: Trace, clean: Trace, earlier: Iterable[tuple[str, Trace]]
) -> tuple[Site, str] | None:
    """Say at which site a pass returned what an earlier one had, and which one.

    An earlier pass that was edited itself shows no replay: what an edit puts for whole
    states, zeros for one, makes every prompt's result the same.
    """
    last = list(trace.tensors)[-1]
    mine = trace.tensors[last]
    if last in clean.tensors and alike(mine, clean.tensors[last]):
        return None
    for run, other in earlier:
        held = other.tensors.get(last)
        if held is None or same_inputs(other, clean):
            continue
        if alike(mine, held) and rows_edited(other, clean) is None:
            return last, run
    return None


def put_from(trace: Trace, clean: Trace, place: Site, others: Iterable[Trace]) -> bool:
    """Whether what a pass has at a site is a tensor that another computed, unedited."""
    held = trace.tensors[place]
    return any(
        any(alike(held, one) for one in other.tensors.values())
        and rows_edited(other, clean) is None
        for other in others
        if other is not trace
    )


def rounded_to(found: Tensor, known: Tensor) -> torch.dtype | None:
    """Return the narrower dtype that every value was rounded to, which were not so."""
    for narrow in _NARROW:
        if torch.finfo(found.dtype).bits <= torch.finfo(narrow).bits:
            continue
        near = apart(known, found) <= 4 * torch.finfo(narrow).eps * _peak(known)
        if near and _fits(found, narrow) and not _fits(known, narrow):
            return narrow
    return None


def _peak(tensor: Tensor) -> float:
    """Return the largest element over the root mean square."""
    size = float(tensor.double().square().mean().sqrt())
    return float(tensor.abs().max()) / size if size else 0.0


def _fits(tensor: Tensor, narrow: torch.dtype) -> bool:
    return bool((tensor.to(narrow).to(tensor.dtype) == tensor).all())
