"""``recon verify``: prove the captures of one model on some inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recon.cli import streams
from recon.cli.ending import DIVERGED, RECONCILED, Traceback
from recon.cli.options import (
    Attention,
    Bound,
    Device,
    Field,
    Html,
    InputIds,
    Json,
    ModelArgument,
    PromptsFile,
    Text,
    ToDtype,
)
from recon.cli.starting import load, silence_libraries
from recon.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    from recon.checks import Level
    from recon.inputs import Batch
    from recon.models import Loaded
    from recon.results import Report


class Proof(StrEnum):
    """The levels of proof, and all of them."""

    ledger = "ledger"
    sketch = "sketch"
    replay = "replay"
    certify = "certify"
    all = "all"


@dataclass(frozen=True)
class How:
    """What to check, and how."""

    level: Proof | None
    bound: Bound
    stream: bool

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels by name; without a choice, those that expect bit-equality."""
        from recon.checks import DEFAULT, LEVELS

        if self.level is None:
            return DEFAULT
        return tuple(name for name in LEVELS if self.level in ("all", name))


def command(
    model: ModelArgument = "bundled",
    text: Text = None,
    input_ids: InputIds = None,
    prompts: PromptsFile = None,
    field: Field = "text",
    dtype: ToDtype = None,
    attn: Attention = None,
    level: Annotated[
        Proof | None,
        typer.Option(
            help="ledger sums the residual stream, replay runs each operation again, "
            "certify bounds how far any correct one may stray, sketch screens "
            "products; default: ledger and replay."
        ),
    ] = None,
    bound: Annotated[
        Bound,
        typer.Option(help="Form of certify's error bounds; probabilistic: no proof."),
    ] = Bound.deterministic,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream", help="Check each block as it runs; keep one block's tensors."
        ),
    ] = False,
    train: Annotated[
        bool, typer.Option("--train", help="Train mode: dropout is on, and checked.")
    ] = False,
    seed: Annotated[
        int,
        typer.Option(
            min=0,
            max=2**32 - 1,
            metavar="N",
            help="For random weights, random ids and dropout.",
        ),
    ] = 0,
    device: Device = "cpu",
    json: Json = None,
    html: Html = None,
    traceback: Traceback = False,
) -> None:
    """Run a model, rebuild its hidden states from captures, check every identity.

    Exit codes: 0 reconciled, 1 diverged, 2 bad usage or input.
    """
    if sum(given is not None for given in (text, input_ids, prompts)) > 1:
        raise UsageError("give one of --text, --input-ids and --prompts")
    outputs = {"--json": json, "--html": html}
    streams.require_distinct(outputs)
    silence_libraries()
    loaded = load(model, dtype=dtype, attn=attn, device=device, seed=seed)
    batches = _batches(loaded, text, input_ids, prompts, field, seed)
    if train:
        _train(loaded, seed)
    report = _verify(loaded, batches, How(level, bound, stream))
    source = batches[0].source if len(batches) == 1 else str(prompts)
    _show(report, loaded.name, source, outputs)
    raise typer.Exit(RECONCILED if report.verdict == "reconciled" else DIVERGED)


def _batches(
    loaded: Loaded,
    text: str | None,
    input_ids: Path | None,
    prompts: Path | None,
    field: str,
    seed: int,
) -> list[Batch]:
    from recon.inputs import batches

    return list(
        batches(
            loaded,
            text=text,
            ids_file=input_ids,
            prompts_file=prompts,
            field=field,
            seed=seed,
        )
    )


def _train(loaded: Loaded, seed: int) -> None:
    import torch

    loaded.model.train()
    torch.manual_seed(seed)


def _verify(loaded: Loaded, batches: Sequence[Batch], how: How) -> Report:
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

    from recon.results import merge

    columns = (
        SpinnerColumn(streams.spinner()),
        TextColumn("verifying"),
        MofNCompleteColumn(),
    )
    with Progress(*columns, console=streams.progress(), transient=True) as bar:
        done = bar.add_task("", total=len(batches))
        reports: list[Report] = []
        for batch in batches:
            report = _verify_one(loaded, batch, how, warm=bool(reports))
            if len(batches) > 1 and report.failures:
                note = f"{batch.source}: {len(report.failures)} checks fail"
                report = replace(report, notes=(*report.notes, note))
            reports.append(report)
            bar.advance(done)
    return merge(reports)


def _verify_one(loaded: Loaded, batch: Batch, how: How, *, warm: bool) -> Report:
    """Verify one batch; a cold model runs once before, so that times compare."""
    from recon.verification import verify, warm_up

    inputs: dict[str, Any] = dict(batch.inputs)
    try:
        if not warm:
            warm_up(loaded.model, **inputs)
        return verify(
            loaded.model,
            levels=how.levels,
            bound=how.bound.value,
            stream=how.stream,
            **inputs,
        )
    except UnsupportedError:
        raise
    except UsageError as error:
        raise UsageError(f"{batch.source}: {error}") from error


def _show(
    report: Report, model: str, source: str, outputs: Mapping[str, str | None]
) -> None:
    if "-" not in outputs.values():
        from recon.report.terminal import render

        console = streams.output()
        page = render(report, model=model, source=source, console=console)
        streams.show(console, page)
    if (place := outputs["--json"]) is not None:
        from recon.report.json import verification_text

        streams.write(verification_text(report, model=model, source=source), place)
    if (place := outputs["--html"]) is not None:
        from recon.report.html import verification_html

        again = streams.command_line()
        text = verification_html(report, model=model, source=source, again=again)
        streams.write(text, place, "--html")
