"""Every activation of transformers' GPT-2 as a formula on bounded values.

``composed`` ones run as separate operations in Python, so each result is stored in the
run's dtype; the others are one kernel, which stores once. The names are the classes'.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812 - as torch's own documentation has it
from torch import Tensor, nn

from recon.rounding import ELEMENTARY, Arithmetic, Bounded

Formula: TypeAlias = Callable[[Bounded, Any], Bounded]


@dataclass(frozen=True)
class _Rule:
    formula: Formula
    composed: bool = False


def known(module: nn.Module) -> bool:
    """Whether there is a formula for this activation."""
    return type(module).__name__ in _RULES


def activation(module: nn.Module, x: Tensor, arithmetic: Arithmetic) -> Bounded:
    """Return the activation of exact inputs, with its bound.

    Raises KeyError for a class that has no formula; see ``known``.
    """
    rule = _RULES[type(module).__name__]
    if rule.composed or _composed_by_option(module):
        return rule.formula(arithmetic.operand(x), module)
    return rule.formula(arithmetic.inside.operand(x), module).to(arithmetic)


def _composed_by_option(module: nn.Module) -> bool:
    """GELUActivation and GELUTanh run in Python where their options say so."""
    act = getattr(module, "act", None)
    return getattr(act, "__name__", "").endswith("_python")


# Beyond this tanh is 1 or -1 in float64 whatever the cube, which overflows float16 from
# 40 on, to an infinity of the same sign.
_SATURATED = 20.0


def _tanh_gelu(x: Bounded, module: Any) -> Bounded:
    near = x.clipped(-_SATURATED, _SATURATED)
    inner = (near + near.power(3) * 0.044715) * math.sqrt(2.0 / math.pi)
    return x * 0.5 * (inner.monotone(torch.tanh) + 1.0)


def _fast_gelu(x: Bounded, module: Any) -> Bounded:
    near = x.clipped(-_SATURATED, _SATURATED)
    inner = near * 0.7978845608 * (near * 0.044715 * near + 1.0)
    return x * 0.5 * (inner.monotone(torch.tanh) + 1.0)


# oneDNN, which runs torch's gelu on CPU, takes erf from Abramowitz & Stegun 7.1.26: off
# by 1.5e-7 (2.5 units of float32) and its roundings, relative to 1 and not to erf. At
# most 12 units were measured, those of the final products included.
_ERF = 16.0


def _erf(x: Bounded) -> Bounded:
    # Half-precision tensors are widened first: the loss is the accumulator's.
    erf = x.monotone(torch.erf)
    return replace(erf, error=erf.error + _ERF * x.arithmetic.a)


def _erf_gelu(x: Bounded, module: Any) -> Bounded:
    return x * 0.5 * (_erf(x * math.sqrt(0.5)) + 1.0)


def _clipped_gelu(x: Bounded, module: Any) -> Bounded:
    return _erf_gelu(x, module).clipped(float(module.min), float(module.max))


def _sigmoid(x: Bounded) -> Bounded:
    # A quotient: an exponential, to which 1 is added, and the division.
    return x.monotone(torch.sigmoid, ELEMENTARY + 2)


def _quick_gelu(x: Bounded, module: Any) -> Bounded:
    return x * _sigmoid(x * 1.702)


def _silu(x: Bounded, module: Any) -> Bounded:
    return x * _sigmoid(x)


def _mish(x: Bounded, module: Any) -> Bounded:
    # Kernels compute tanh(log1p(exp(x))) as a quotient of exponentials: more roundings.
    return x * x.monotone(_softplus, 2 * ELEMENTARY).monotone(torch.tanh)


def _laplace(x: Bounded, module: Any) -> Bounded:
    scaled = (x - 0.707107) * (1.0 / (0.282095 * math.sqrt(2.0)))
    return (_erf(scaled) + 1.0) * 0.5


def _relu(x: Bounded, module: Any) -> Bounded:
    return x.monotone(torch.relu, units=0.0)


def _squared_relu(x: Bounded, module: Any) -> Bounded:
    return x.monotone(torch.relu, units=0.0).power(2)


def _leaky_relu(x: Bounded, module: Any) -> Bounded:
    slope = float(module.negative_slope)
    return x.monotone(lambda t: F.leaky_relu(t, slope), units=2.0)


def _prelu(x: Bounded, module: Any) -> Bounded:
    slope = module.weight.detach().double()
    value = torch.where(x.value >= 0, x.value, x.value * slope)
    error = x.error * slope.abs().clamp(min=1.0)
    return Bounded(value, error, x.arithmetic).rounded()


def _hardswish(x: Bounded, module: Any) -> Bounded:
    return x * (x + 3.0).clipped(0.0, 6.0) * (1.0 / 6.0)


def _sqrt_softplus(x: Bounded, module: Any) -> Bounded:
    soft = x.monotone(_softplus, 2 * ELEMENTARY)
    # torch's own is the identity above 20: off by 2e-9, which float64 shows.
    cut = torch.where(x.value > 20.0, (-x.value).exp(), 0.0)
    soft = replace(soft, error=soft.error + cut)
    return soft.monotone(lambda t: t.clamp(min=0.0).sqrt())


def _xielu(x: Bounded, module: Any) -> Bounded:
    up = F.softplus(module.alpha_p.detach().double())
    beta, eps = module.beta.double(), module.eps.double()
    down = beta + F.softplus(module.alpha_n.detach().double())
    # The parameters are functions of stored tensors, computed in their own dtype.
    off = (ELEMENTARY + 2) * Arithmetic(module.alpha_p.dtype).u

    def constant(value: Tensor) -> Bounded:
        full = value.expand_as(x.value)
        return Bounded(full, off * full.abs(), x.arithmetic)

    above = constant(up) * x * x + x * constant(beta)
    low = x.monotone(lambda t: torch.minimum(t, eps), units=0.0)
    below = (low.monotone(torch.expm1) - x) * constant(down) + x * constant(beta)
    value = torch.where(x.value > 0, above.value, below.value)
    error = torch.where(x.value > 0, above.error, below.error)
    # The branches do not meet at 0, for which a subnormal may be taken.
    jump = (above.value - below.value).abs() + below.error
    unsure = (x.value > 0) & (x.value <= x.error)
    error = torch.where(unsure, torch.maximum(error, jump), error)
    return Bounded(value, error, x.arithmetic)


def _monotone(function: Callable[[Tensor], Tensor]) -> Formula:
    return lambda x, module: x.monotone(function)


def _softplus(x: Tensor) -> Tensor:
    return x.clamp(min=0) + (-x.abs()).exp().log1p()


_RULES: dict[str, _Rule] = {
    "NewGELUActivation": _Rule(_tanh_gelu, composed=True),
    "AccurateGELUActivation": _Rule(_tanh_gelu, composed=True),
    "FastGELUActivation": _Rule(_fast_gelu, composed=True),
    "GELUTanh": _Rule(_tanh_gelu),
    "PytorchGELUTanh": _Rule(_tanh_gelu),
    "GELUActivation": _Rule(_erf_gelu),
    "ClippedGELUActivation": _Rule(_clipped_gelu),
    "QuickGELUActivation": _Rule(_quick_gelu, composed=True),
    "SiLUActivation": _Rule(_silu),
    "SiLU": _Rule(_silu),
    "MishActivation": _Rule(_mish),
    "LaplaceActivation": _Rule(_laplace, composed=True),
    "LinearActivation": _Rule(lambda x, module: x),
    "ReLU": _Rule(_relu),
    "ReLUSquaredActivation": _Rule(_squared_relu, composed=True),
    "ReLU6": _Rule(lambda x, module: x.clipped(0.0, 6.0)),
    "LeakyReLU": _Rule(_leaky_relu),
    "PReLU": _Rule(_prelu),
    "Hardswish": _Rule(_hardswish),
    "Sigmoid": _Rule(lambda x, module: _sigmoid(x)),
    "Tanh": _Rule(_monotone(torch.tanh)),
    "SqrtSoftplusActivation": _Rule(_sqrt_softplus, composed=True),
    "XIELUActivation": _Rule(_xielu, composed=True),
}
