"""Bring a saved run back, with the model that it came from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from recon import gpt2, saving
from recon.errors import UsageError
from recon.facts import Facts
from recon.sites import site
from recon.trace import Trace


def load_trace(path: str | Path, model: nn.Module | None = None) -> Trace:
    """Return the trace that ``Trace.save`` wrote.

    With the ``model`` it came from (the same weights, checked by digest) it can be
    verified; without, it can be looked at and compared.

    Raises UsageError for a damaged or foreign file, or for other weights.
    """
    saved = saving.read(path)
    facts = replace(saved.facts, unsupported=(*saved.facts.unsupported, _WITHOUT))
    if model is not None:
        facts = _with_weights(saved, model, str(path))
    about = saved.about
    wanted = about["wanted"]
    return Trace(
        run=about["run"],
        tensors=saved.tensors,
        facts=facts,
        wanted=None if wanted is None else frozenset(map(site, wanted)),
        positions=None if about["positions"] is None else tuple(about["positions"]),
        absent=tuple(about["absent"]),
        fewer={site(place): tuple(rows) for place, rows in about["fewer"].items()},
        altered=about["altered"],
        never_ran=tuple(about["never_ran"]),
        repeated=tuple(about["repeated"]),
        failure=about["failure"],
    )


_WITHOUT = "a saved trace without its model (load it with model=)"


def _with_weights(saved: saving.Saved, model: nn.Module, path: str) -> Facts:
    facts = gpt2.with_weights(model, saved.facts, saved.keep)
    if facts.weights_at_run and not saved.weights:
        raise UsageError(
            f"{path}: saved from a trace that was loaded without its model, so it does "
            "not tell the weights; load that one with model= before saving it"
        )
    for name, weight, _ in facts.weights_at_run:
        if saved.weights.get(name) != saving.digest([weight]):
            raise UsageError(
                f"{path}: {name} of this model differs from the one it was run with"
            )
    return facts
