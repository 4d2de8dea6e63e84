"""``recon diff``: two runs of one model side by side."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from recon.cli import completing, streams
from recon.cli.ending import DIVERGED, RECONCILED, Traceback
from recon.cli.options import Bound, Html, InputIds, Json, Text
from recon.cli.starting import silence_libraries
from recon.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from recon.differences import Difference
    from recon.models import Loaded
    from recon.trace import Trace

Inputs: TypeAlias = "Mapping[str, Tensor]"
_SETTINGS = "attn, dtype, device, seed and mode=train"


@dataclass(frozen=True)
class Spec:
    """One run as it was asked for: a model with settings, or a saved trace."""

    asked: str
    model: str
    settings: dict[str, str]

    @classmethod
    def parse(cls, asked: str) -> Spec:
        """Read ``gpt2@attn=sdpa,dtype=bfloat16``; raises UsageError if it is none."""
        model, _, rest = asked.partition("@")
        settings: dict[str, str] = {}
        for part in filter(None, rest.split(",")):
            key, equals, value = part.partition("=")
            if not equals or key not in ("attn", "dtype", "device", "seed", "mode"):
                raise UsageError(
                    f"{asked}: {part!r} is no setting; there are {_SETTINGS}"
                )
            settings[key] = value
        return cls(asked, model or "bundled", settings)

    @property
    def saved(self) -> Path | None:
        """The file of a saved trace, if that is what was asked for."""
        return Path(self.asked) if self.asked.endswith(".safetensors") else None


def command(
    first: Annotated[
        str,
        typer.Argument(metavar="A", help="MODEL@attn=..,dtype=.. or a saved trace."),
    ],
    second: Annotated[str, typer.Argument(metavar="B", help="The other run.")],
    text: Text = None,
    input_ids: InputIds = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="The model of saved traces; without it none is certified.",
            autocompletion=completing.models,
        ),
    ] = None,
    bound: Annotated[
        Bound,
        typer.Option(help="Form of the error bounds; probabilistic: no proof."),
    ] = Bound.deterministic,
    json: Json = None,
    html: Html = None,
    traceback: Traceback = False,
) -> None:
    """Say where two runs part, how the difference grows, and whether each is right.

    Exit codes: 0 equal or rounding, 1 diverged or unverified, 2 bad usage or input.
    """
    specs = Spec.parse(first), Spec.parse(second)
    outputs = {"--json": json, "--html": html}
    streams.require_distinct(outputs)
    silence_libraries()
    from recon.differences import diff

    given = _given(text, input_ids)
    traces = [_trace(spec, model, text, given) for spec in specs]
    with streams.waiting("certifying both runs"):
        found = diff(traces[0], traces[1], names=(first, second), bound=bound.value)
    _show(found, outputs)
    right = found.verdict in ("equal", "rounding")
    raise typer.Exit(RECONCILED if right else DIVERGED)


def _show(found: Difference, outputs: Mapping[str, str | None]) -> None:
    if "-" not in outputs.values():
        from recon.report.difference import render

        console = streams.output()
        streams.show(console, render(found, console=console))
    if (place := outputs["--json"]) is not None:
        from recon.report.json import difference_text

        streams.write(difference_text(found), place)
    if (place := outputs["--html"]) is not None:
        from recon.report.html import difference_html

        text = difference_html(found, again=streams.command_line())
        streams.write(text, place, "--html")


def _given(text: str | None, input_ids: Path | None) -> Inputs | None:
    """Read the inputs of both runs at once: a pipe can be read once."""
    from recon.input_files import read_inputs

    if text is not None and input_ids is not None:
        raise UsageError("give one of --text and --input-ids")
    return None if input_ids is None else read_inputs(input_ids)


def _trace(
    spec: Spec, model: str | None, text: str | None, given: Inputs | None
) -> Trace:
    if spec.saved is not None:
        from recon.loading import load_trace

        loaded = None if model is None else _load(Spec.parse(model))
        return load_trace(spec.saved, None if loaded is None else loaded.model)
    loaded = _load(spec)
    return _run(loaded, spec, text, given)


def _load(spec: Spec) -> Loaded:
    from recon.models import DTYPES, load_model

    dtype = spec.settings.get("dtype")
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(
            f"{spec.asked}: dtype {dtype!r}; there are {', '.join(DTYPES)}"
        )
    with streams.waiting(f"loading {spec.model}"):
        loaded = load_model(
            spec.model,
            dtype=None if dtype is None else DTYPES[dtype],
            attention=spec.settings.get("attn"),
            device=spec.settings.get("device", "cpu"),
            seed=_seed(spec),
        )
    if spec.settings.get("mode", "eval") not in ("train", "eval"):
        raise UsageError(f"{spec.asked}: mode is train or eval")
    loaded.model.train(spec.settings.get("mode") == "train")
    return loaded


def _seed(spec: Spec) -> int:
    words = spec.settings.get("seed", "0")
    if not re.fullmatch("[0-9]{1,10}", words) or int(words) >= 2**32:
        raise UsageError(
            f"{spec.asked}: seed {words!r} is no number from 0 to {2**32 - 1}"
        )
    return int(words)


def _run(loaded: Loaded, spec: Spec, text: str | None, given: Inputs | None) -> Trace:
    import torch

    from recon.inputs import batches
    from recon.verification import record

    inputs = given or next(batches(loaded, text=text)).inputs
    torch.manual_seed(_seed(spec))
    device = loaded.model.device
    return record(loaded.model, **{k: v.to(device) for k, v in inputs.items()})
