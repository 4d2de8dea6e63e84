"""``recon.capture``: a recorder for a model, with the options of a user."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from recon import gpt2
from recon.checks import Level, Levels
from recon.errors import UsageError
from recon.recorder import Keep, Options, Positions, Recorder
from recon.streaming import CheckingRecorder


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
    check: Level | Sequence[Level] | None = None,
) -> Recorder:
    """Return a context manager that records every forward pass of ``model``.

    Tensors are kept by reference, detached, without a copy. ``sites`` narrows them by
    name or glob (``"h.*.attn.{q,k,v}"``), ``positions`` to some tokens of each pass;
    ``dtype``, ``device`` and ``clone`` make copies of all that is kept, ``grad`` keeps
    the graph. ``keep="last"`` forgets a pass when the next begins in its thread,
    ``"all"`` accumulates them. ``budget`` is in bytes: the forward pass stops with
    BudgetError, the only error that capture raises in it, before it is exceeded.

    ``check="sketch"`` (or any levels) checks each block as soon as it has run and keeps
    no tensor: ``recorder.reports`` then holds a report for each pass.

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
    if check is None:
        return Recorder(gpt2.plan(model), options)
    narrowed = sites is not None or bool(options.altered)
    if narrowed or grad or clone or device is not None:
        raise UsageError(
            "check= looks at whole passes as they are; leave out sites=, positions=, "
            "dtype=, device=, clone= and grad="
        )
    names = (check,) if isinstance(check, str) else tuple(check)
    return CheckingRecorder(gpt2.plan(model), options, Levels(names))
