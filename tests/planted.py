"""Faults to plant in a trace: what a wrong implementation would have captured.

Each takes a trace and a block and returns the site and the tensor that plausible but
wrong code would have put there, computed in the run's dtype from captured inputs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - as torch's own documentation has it
from torch import Tensor

from recon.gpt2 import identities
from recon.sites import Site
from recon.trace import Trace


@dataclass(frozen=True)
class Fault:
    """A name, the part that it falsifies, the false tensor, and the block to do it in.

    The LayerNorm's eps shows where the variance is small: in the first block.
    """

    name: str
    part: str
    make: Callable[[Trace, Site], Tensor]
    first_block: bool = False

    def place(self, trace: Trace) -> Site:
        """Return the site that it falsifies."""
        if self.part == "ln_f":
            return Site("ln_f")
        return Site(self.part, 0 if self.first_block else trace.facts.depth // 2)

    def plant(self, trace: Trace, share: float = 1.0) -> tuple[Site, Trace]:
        """Put the false tensor into the trace, or go a ``share`` of the way to it."""
        place = self.place(trace)
        false = self.make(trace, place)
        if share != 1.0:
            right = trace[place].double()
            false = right.lerp(false.double(), share).to(false.dtype)
        return place, trace.replace(place, false)


def _taken(trace, place):
    """Return the input of the module at a site."""
    identity = next(i for i in identities(trace) if i.site == place)
    return trace[identity.inputs[0]]


def _maker(trace, place):
    return trace.facts.makers[place]


def _erf_gelu(trace, place):
    return F.gelu(_taken(trace, place))


def _other_eps(trace, place):
    norm, x = _maker(trace, place), _taken(trace, place)
    return F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, 1e-6)


def _ddof_one(trace, place):
    norm, x = _maker(trace, place), _taken(trace, place).float()
    scale = (x.var(-1, keepdim=True, correction=1) + norm.eps).rsqrt()
    y = (x - x.mean(-1, keepdim=True)) * scale * norm.weight.float() + norm.bias.float()
    return y.to(trace[place].dtype)


def _attended(trace, place):
    call = trace.facts.attention[place.at("attn_out")]
    return call, *(trace[place.at(f"attn.{part}")] for part in "qkv")


def _mixed_as(call, q, k, v):
    """Return z of an attention with its scores or operands changed."""
    weights = F.softmax(call.scores(q, k), dim=-1).to(q.dtype)
    return torch.matmul(weights, v)


def _swapped(trace, place):
    call, q, k, v = _attended(trace, place)
    return _mixed_as(call, k, q, v)


def _scaled_by_width(trace, place):
    call, q, k, v = _attended(trace, place)
    return _mixed_as(call, q / q.shape[-1] ** 0.5, k, v)


def _without_bias(trace, place):
    out = _maker(trace, place)
    return type(out)(out.weight, torch.zeros_like(out.bias))(_taken(trace, place))


def _transposed(trace, place):
    out = _maker(trace, place)
    return type(out)(out.weight.t(), out.bias)(_taken(trace, place))


def _one_off(trace, place):
    """Change one element by a quarter of its row's root mean square."""
    y = trace[place].clone()
    y[0, -1, 1] += 0.25 * y[0, -1].float().square().mean().sqrt().to(y.dtype)
    return y


def _one_bit(trace, place):
    """Flip the highest bit of the fraction of the largest element of the last row."""
    y = trace[place].clone()
    row = y[(0, *[-1] * (y.ndim - 2))]
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[y.element_size()]
    fraction = {torch.bfloat16: 7, torch.float16: 10, torch.float32: 23}
    at = int(row.abs().argmax())
    row.view(kind)[at] ^= 1 << (fraction.get(y.dtype, 52) - 1)
    return y


FAULTS = (
    Fault("erf gelu for tanh gelu", "mlp.post", _erf_gelu),
    Fault("LayerNorm eps 1e-6 for 1e-5", "ln_1", _other_eps, first_block=True),
    Fault("variance with ddof 1", "ln_1", _ddof_one),
    Fault("q and k swapped", "attn.z", _swapped),
    Fault("scores over d for sqrt(d)", "attn.z", _scaled_by_width),
    Fault("missing output bias", "attn.out", _without_bias),
    Fault("transposed square weight", "attn.out", _transposed),
    Fault("one element off by a quarter of its row", "mlp.out", _one_off),
)
_BITS = ("ln_1", "attn.qkv", "attn.z", "attn.out", "mlp.pre", "mlp.post", "mlp.out")
# The same mistakes at the other sites where they can be made.
EVERYWHERE = (
    *FAULTS,
    *(
        Fault(name, part, make, first)
        for name, make, first in (
            ("LayerNorm eps 1e-6 for 1e-5", _other_eps, True),
            ("variance with ddof 1", _ddof_one, False),
        )
        for part in ("ln_2", "ln_f")
    ),
    *(
        Fault("missing output bias", part, _without_bias)
        for part in ("attn.qkv", "mlp.pre", "mlp.out")
    ),
    *(Fault("highest bit of one fraction", part, _one_bit) for part in _BITS),
)
