"""Is a tensor what was stored in 8 bits and read back, and on the right scale?"""

from __future__ import annotations

import torch
from torch import Tensor

_LEVELS = 127
# A value is at most half a step off; that the step was rounded itself is in the rest.
_STEPS = 0.51
_FEWEST_SAMPLES = 8
# Rounding to steps of r/255 has the variance (r/255)^2 / 12: so much of a feature's own
# where the range r is 62 times its deviation, as one scale for all features may be.
_UNEXPLAINED = 5e-3
# How far a factor and an offset for each feature must bring two tensors together, in
# squares: of mere noise, two of n numbers for a feature take 2/n away, at n = 8 a
# quarter.
_MUCH_CLOSER = 16.0


def within_eight_bits(found: Tensor, known: Tensor, allowed: float) -> bool:
    """Whether all values are within half a step of 8 bits, one scale for them all.

    That is the coarsest of the usual ways; a scale for each feature or token is finer.
    """
    step = float(known.abs().amax()) / _LEVELS
    return float((found.double() - known.double()).abs().amax()) <= _STEPS * step


def on_other_scales(found: Tensor, known: Tensor, allowed: float) -> bool:
    """Whether each feature is the known one times a factor plus an offset.

    So it is where codes of 8 bits were read back with the scale of others.
    """
    mine, theirs = (t.double().flatten(0, -2) for t in (found, known))
    if len(mine) < _FEWEST_SAMPLES:
        return False
    mean, other = mine.mean(0), theirs.mean(0)
    spread = (theirs - other).square().sum(0).clamp_min(1e-300)
    factor = ((theirs - other) * (mine - mean)).sum(0) / spread
    left = (mine - mean - factor * (theirs - other)).square().sum(0)
    total = (mine - mean).square().sum(0)
    fits = (left <= _UNEXPLAINED * total) & (factor > 0)
    gap = (mine - theirs).square().sum()
    close = bool(torch.quantile(fits.double(), 0.1) > 0)
    return close and float(gap) > _MUCH_CLOSER * float(left.sum())
