"""Do gradients still flow back through everything that a pass computed?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from recon.sites import Site
from recon.trace import Trace

# What each later step of a pass is computed from, as the tensor that was captured.
_PASSED_ON = frozenset(
    {"embed", "resid_pre", "attn.qkv", "attn.out", "attn_out", "resid_mid"}
    | {"mlp.pre", "mlp.post", "mlp.out", "mlp_out", "ln_f"}
)


@dataclass(frozen=True)
class Cut:
    """The last site that the gradient of the result does not reach.

    ``meant`` says that what follows is a leaf that wants a gradient: the code put it
    there to have the gradient at that place, and no further.
    """

    place: Site
    meant: bool


def gradients_stop(trace: Trace) -> Cut | None:
    """Say where gradients stop on their way back from the result, if they do.

    A hook that returns ``output.detach()`` changes no value, and cuts the graph there.
    """
    held = {s: t for s, t in trace.tensors.items() if s.part in (*_PASSED_ON, "logits")}
    last = next(reversed(held.values()), None)
    if last is None or last.grad_fn is None:
        return None
    reached = _behind(last)
    after = last
    for place, tensor in reversed(held.items()):
        if tensor.grad_fn is not None and tensor.grad_fn not in reached:
            return Cut(place, meant=after.is_leaf and after.requires_grad)
        after = tensor
    return None


def _behind(tensor: Tensor) -> set[Any]:
    """Return the nodes of the graph that a backward pass from a tensor visits."""
    seen: set[Any] = set()
    left = [tensor.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            left += [following for following, _ in node.next_functions]
    return seen
