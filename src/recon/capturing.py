"""``recon.capture``: a recorder for a model, with the options of a user."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from recon import gpt2
from recon.recorder import Keep, Options, Positions, Recorder


def capture(
    model: nn.Module,
    *,
    sites: str | Iterable[str] | None = None,
    positions: Positions | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    clone: bool = False,
    grad: bool = False,
    keep: Keep = "last",
    budget: int | None = None,
) -> Recorder:
    """Return a context manager that records every forward pass of ``model``.

    Tensors are kept by reference, detached, without a copy. ``sites`` narrows them by
    name or glob (``"h.*.attn.{q,k,v}"``), ``positions`` to some tokens; ``dtype``,
    ``device`` and ``clone`` make copies, ``grad`` keeps the graph. ``keep="last"``
    forgets a pass when the next begins, ``"all"`` accumulates them. ``budget`` is in
    bytes: capture stops with BudgetError before it is exceeded.

    Raises UnsupportedError for a model that is no GPT-2, UnknownSiteError for a
    pattern that matches no site of it.
    """
    options = Options(
        sites=sites,
        positions=positions,
        dtype=dtype,
        device=device,
        clone=clone,
        grad=grad,
        keep=keep,
        budget=budget,
    )
    return Recorder(gpt2.plan(model), options)
