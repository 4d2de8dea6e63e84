"""Tokens that a loop decoded one after the other, put together: was the loop right?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from recon.auditing.bench import Bench
from recon.auditing.handed import other_inputs
from recon.auditing.quantities import axes_of
from recon.sites import Site
from recon.trace import Trace


def decoded(bench: Bench, tensor: Tensor, place: Site) -> tuple[str, str] | None:
    """Say of which passes a tensor was put together, and what is odd in one of them.

    None for a tensor that is no such thing. A pass goes on where the one before it
    ended: on further tokens, at further positions, with a cache of what came before.
    """
    passes = [trace for trace in bench.call.passes if place in trace]
    axes = axes_of(place)
    if len(passes) < 2 or "T" not in axes:
        return None
    axis, mine = axes.index("T"), tensor.detach().cpu()
    for words, pieces in _ways([trace[place].cpu() for trace in passes], axis):
        if _equal(pieces, axis, mine):
            said = f"{place}, {words} of {len(passes)} passes put together"
            return said, _odd(bench, passes, single="last" in words)
    return None


def _ways(made: list[Tensor], axis: int) -> Iterator[tuple[str, list[Tensor]]]:
    last = [one.narrow(axis, one.shape[axis] - 1, 1) for one in made]
    yield "all tokens", made
    yield "the first and the last tokens of the others", [made[0], *last[1:]]
    yield "the last tokens", last
    yield "tokens after the first", made[1:]


def _equal(pieces: Sequence[Tensor], axis: int, mine: Tensor) -> bool:
    shapes = [[*one.shape[:axis], *one.shape[axis + 1 :]] for one in pieces]
    if len(pieces) < 2 or any(shape != shapes[0] for shape in shapes):
        return False
    whole = torch.cat(list(pieces), axis)
    return whole.shape == mine.shape and torch.equal(whole, mine)


def _odd(bench: Bench, passes: Sequence[Trace], *, single: bool) -> str:
    """Say which pass of a decoding loop does not go on where the last one ended.

    Without a cache each begins anew, of which a ``single`` token may be taken.
    """
    if words := other_inputs(passes[0], bench.call):
        return words
    seen = _read(passes[0], "wte")
    for number, trace in enumerate(passes[1:], 2):
        tokens, positions = _read(trace, "wte"), _read(trace, "wpe")
        if seen is None or tokens is None or len(tokens) != len(seen):
            return ""
        cached = max((one.past for one in trace.facts.attention.values()), default=0)
        count = seen.shape[1]
        again = torch.equal(tokens[:, :count], seen)
        if again and cached:
            return f"pass {number} on tokens that its cache holds already"
        if again and not single:
            return f"pass {number} on tokens that are there already"
        if again:
            seen = tokens
            continue
        if cached < count:
            return f"pass {number} with {cached} of {count} tokens in its cache"
        begins = None if positions is None else int(positions.flatten()[0])
        if not bench.padded and begins not in (None, count):
            return f"pass {number} at position {begins}, after {count} tokens"
        seen = torch.cat([seen, tokens], 1)
    return ""


def _read(trace: Trace, part: str) -> Tensor | None:
    """Return the tokens or positions that a pass looked up, B T."""
    ids = trace.facts.ids.get(Site(part))
    return None if ids is None else ids.reshape(-1, ids.shape[-1])
