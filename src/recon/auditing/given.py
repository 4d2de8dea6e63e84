"""What the model that is given runs of its own, before any code was called."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from recon import gpt2
from recon.auditing.effects import finding
from recon.auditing.findings import Finding
from recon.census import census, foreign
from recon.listed import listed

_MOST_SHOWN = 3


def of_its_own(model: nn.Module) -> Iterator[Finding]:
    """Note that a model runs another forward than its class: it is judged as it is."""
    replaced = [one for one in foreign(census(model)) if one.kind == "forward override"]
    others = [*map(str, replaced), *gpt2.of_its_own(model)]
    if others:
        yield finding(
            "forward-replaced",
            f"the model as it is given runs a forward of its own, and captures are "
            f"judged by what that computes: {listed(others, _MOST_SHOWN)}",
            places=[one.module for one in replaced],
            severity="note",
            mend="If that was not meant, give a model that was loaded anew.",
        )
