"""How alike the states of all blocks are: linear CKA, rightly and wrongly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from recon.auditing.quantities import Quantity
from recon.sites import Site
from recon.trace import Trace

_Centre = Callable[[Tensor], Tensor]


def linear_cka(trace: Trace, place: Site) -> Iterator[Quantity]:
    """Yield ``|X'Y|^2 / (|X'X| |Y'Y|)`` of all pairs of states, columns centred.

    Kornblith et al. 2019, Similarity of Neural Network Representations Revisited.
    """
    for states in _states(trace):
        yield _quantity(place, states, lambda x: x - x.mean(0), "linear CKA")


def other_cka(trace: Trace, place: Site) -> Iterator[Quantity]:
    """Yield what comes of states that are not centred, or along the wrong axis."""
    for states in _states(trace):
        words = "linear CKA of states that are not centred"
        yield _quantity(place, states, lambda x: x, words)
        words = "linear CKA of states centred over the width"
        yield _quantity(place, states, lambda x: x - x.mean(1, keepdim=True), words)


def _states(trace: Trace) -> Iterator[list[Tensor]]:
    """Yield what may be called the states: of all blocks, and what enters the first.

    The last is that of the last block, or what ln_f makes of it.
    """
    depth = trace.facts.depth
    posts = [Site("resid_post", n) for n in range(depth)]
    normed = [*posts[:-1], Site("ln_f")]
    for sites in (
        [Site("embed"), *normed], [Site("embed"), *posts], posts, normed
    ):  # fmt: skip
        if all(one in trace for one in sites):
            yield [trace[one].detach().double().flatten(0, -2) for one in sites]


def _quantity(
    place: Site, states: Sequence[Tensor], centre: _Centre, words: str
) -> Quantity:
    made = [centre(x) for x in states]
    rows = [torch.stack([_alike(x, y) for y in made]) for x in made]
    return Quantity(place, torch.stack(rows).float(), ("L", "M"), words)


def _alike(x: Tensor, y: Tensor) -> Tensor:
    both: Tensor = (x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())
    return both
