"""Faults to plant in a trace: what a wrong implementation would have captured.

Each takes a trace and a block and returns the site and the tensor that plausible but
wrong code would have put there, computed in the run's dtype from captured inputs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - as torch's own documentation has it
from torch import Tensor

from recon.sites import Site
from recon.trace import Trace


@dataclass(frozen=True)
class Fault:
    """A name, the site that it falsifies, the false tensor, and the block to do it in.

    The LayerNorm's eps shows where the variance is small: in the first block.
    """

    name: str
    part: str
    make: Callable[[Trace, int], Tensor]
    first_block: bool = False

    def plant(self, trace: Trace) -> tuple[Site, Trace]:
        layer = 0 if self.first_block else trace.facts.depth // 2
        place = Site(self.part, layer)
        return place, trace.replace(place, self.make(trace, layer))


def _maker(trace, part, layer):
    return trace.facts.makers[Site(part, layer)]


def _erf_gelu(trace, layer):
    return F.gelu(trace[Site("mlp.pre", layer)])


def _other_eps(trace, layer):
    norm = _maker(trace, "ln_1", layer)
    x = trace[Site("resid_pre", layer)]
    return F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, 1e-6)


def _ddof_one(trace, layer):
    norm = _maker(trace, "ln_1", layer)
    x = trace[Site("resid_pre", layer)].float()
    scale = (x.var(-1, keepdim=True, correction=1) + norm.eps).rsqrt()
    y = (x - x.mean(-1, keepdim=True)) * scale * norm.weight.float() + norm.bias.float()
    return y.to(trace[Site("ln_1", layer)].dtype)


def _mixed_as(trace, layer, call, q, k, v):
    """Return z of an attention with its scores or operands changed."""
    weights = F.softmax(call.scores(q, k), dim=-1).to(q.dtype)
    return torch.matmul(weights, v)


def _swapped(trace, layer):
    call = trace.facts.attention[Site("attn_out", layer)]
    q, k, v = (trace[Site(f"attn.{p}", layer)] for p in "qkv")
    return _mixed_as(trace, layer, call, k, q, v)


def _scaled_by_width(trace, layer):
    call = trace.facts.attention[Site("attn_out", layer)]
    q, k, v = (trace[Site(f"attn.{p}", layer)] for p in "qkv")
    return _mixed_as(trace, layer, call, q / q.shape[-1] ** 0.5, k, v)


def _without_bias(trace, layer):
    out = _maker(trace, "attn.out", layer)
    return type(out)(out.weight, torch.zeros_like(out.bias))(
        trace[Site("attn.z", layer)]
    )


def _transposed(trace, layer):
    out = _maker(trace, "attn.out", layer)
    return type(out)(out.weight.t(), out.bias)(trace[Site("attn.z", layer)])


def _one_bit(trace, layer):
    """Change one element by a quarter of its row's root mean square."""
    y = trace[Site("mlp.out", layer)].clone()
    y[0, -1, 1] += 0.25 * y[0, -1].float().square().mean().sqrt().to(y.dtype)
    return y


FAULTS = (
    Fault("erf gelu for tanh gelu", "mlp.post", _erf_gelu),
    Fault("LayerNorm eps 1e-6 for 1e-5", "ln_1", _other_eps, first_block=True),
    Fault("variance with ddof 1", "ln_1", _ddof_one),
    Fault("q and k swapped", "attn.z", _swapped),
    Fault("scores over d for sqrt(d)", "attn.z", _scaled_by_width),
    Fault("missing output bias", "attn.out", _without_bias),
    Fault("transposed square weight", "attn.out", _transposed),
    Fault("one element off by a quarter of its row", "mlp.out", _one_bit),
)
