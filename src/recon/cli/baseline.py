"""``recon baseline``: record a run's fingerprint, and check what moved since."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recon.cli import completing, streams
from recon.cli.ending import CLEAN, FINDINGS, Traceback
from recon.cli.options import (
    Attention,
    Attn,
    Device,
    Dtype,
    Html,
    InputIds,
    Json,
    ModelOption,
    Seed,
    Text,
    ToDtype,
)
from recon.cli.starting import load, silence_libraries
from recon.errors import ReconciliationError, UsageError

if TYPE_CHECKING:
    from recon.baseline.document import Asked, Baseline
    from recon.baseline.findings import BaselineReport
    from recon.inputs import Batch
    from recon.models import Loaded

app = typer.Typer(
    help="Record what a model computes, and tell later what moved.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

File = Annotated[
    Path, typer.Argument(metavar="FILE", help="The baseline, a JSON file.")
]


@dataclass(frozen=True)
class Choice:
    """The model as the command line asks for it; None where it does not say."""

    model: str | None
    dtype: Dtype | None
    attn: Attn | None
    device: str | None
    seed: int | None

    def over(self, recorded: Asked) -> Asked:
        """Return what to load: what was recorded, but for what is asked for."""
        from recon.baseline.document import Asked

        return Asked(
            name=self.model or recorded.name,
            dtype=recorded.dtype if self.dtype is None else self.dtype.value,
            attention=recorded.attention if self.attn is None else self.attn.value,
            device=self.device or recorded.device,
            seed=recorded.seed if self.seed is None else self.seed,
        )


@app.command(
    "record", epilog="Example: recon baseline record baselines/gpt2.json --model gpt2"
)
def record(
    file: File,
    model: ModelOption = "bundled",
    text: Text = None,
    input_ids: InputIds = None,
    dtype: ToDtype = None,
    attn: Attention = None,
    device: Device = "cpu",
    seed: Seed = 0,
    overhead: Annotated[
        bool, typer.Option("--overhead", help="Measure the time of capture, too.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a file that is there.")
    ] = False,
    traceback: Traceback = False,
) -> None:
    """Run a model and keep the fingerprint of every site in FILE.

    Exit codes: 0 recorded, 1 the run is wrong by itself and nothing is written, 2 bad
    usage or input.
    """
    if text is not None and input_ids is not None:
        raise UsageError("give one of --text and --input-ids")
    if file.exists() and not force:
        raise UsageError(
            f"{file} exists; recon baseline check {file} --update shows what it "
            "accepts, --force replaces it unseen"
        )
    streams.require_writable(str(file), "FILE")
    silence_libraries()
    from recon.baseline.document import Asked

    asked = Choice(model, dtype, attn, device, seed).over(
        Asked(name=model, dtype=None, attention=None, seed=seed, device=device)
    )
    loaded = _load(asked)
    try:
        found = _record(
            file, loaded, asked, _inputs(loaded, asked, text, input_ids), overhead
        )
    except ReconciliationError as error:
        print(f"nothing recorded, the run is wrong by itself: {error}")
        raise typer.Exit(FINDINGS) from error
    from recon.report.baseline import render_recorded

    streams.show(streams.output(), render_recorded(str(file), found))


def _inputs(
    loaded: Loaded, asked: Asked, text: str | None, input_ids: Path | None
) -> Batch:
    from recon.inputs import batches

    return next(batches(loaded, text=text, ids_file=input_ids, seed=asked.seed))


def _record(
    file: Path, loaded: Loaded, asked: Asked, batch: Batch, overhead: bool
) -> Baseline:
    from recon.baseline.checking import record_baseline

    with streams.waiting("recording"):
        return record_baseline(
            file,
            loaded.model,
            asked=asked,
            source=batch.source,
            overhead=overhead,
            **batch.inputs,
        )


def _load(asked: Asked) -> Loaded:
    return load(
        asked.name,
        dtype=None if asked.dtype is None else Dtype(asked.dtype),
        attn=None if asked.attention is None else Attn(asked.attention),
        device=asked.device,
        seed=asked.seed,
    )


@app.command(
    "check", epilog="Example: recon baseline check baselines/gpt2.json --junit out.xml"
)
def check(
    file: File,
    model: Annotated[
        str | None,
        typer.Option(
            help="Another model than the recorded one.",
            autocompletion=completing.models,
        ),
    ] = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Another dtype than the recorded one.")
    ] = None,
    attn: Annotated[
        Attn | None, typer.Option(help="Another attention than the recorded one.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Another device than the recorded one.")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**32 - 1, metavar="N", help="Other random weights."),
    ] = None,
    allow_bytes: Annotated[
        float,
        typer.Option(
            min=0, metavar="SHARE", help="How much more captures may keep: 0.1 is 10 %."
        ),
    ] = 0.1,
    allow_overhead: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="SHARE",
            help="Measure the time of capture, and how much more it may take; default: "
            "not measured.",
        ),
    ] = None,
    json: Json = None,
    html: Html = None,
    junit: Annotated[
        str | None, typer.Option(metavar="FILE|-", help="Write JUnit XML.")
    ] = None,
    sarif: Annotated[
        str | None, typer.Option(metavar="FILE|-", help="Write SARIF 2.1.0.")
    ] = None,
    update: Annotated[
        bool,
        typer.Option("--update", help="Show what moved, accept it, and rewrite FILE."),
    ] = False,
    traceback: Traceback = False,
) -> None:
    """Run the recorded model on the recorded inputs, and say what moved.

    A site is bit-equal, moved by rounding that is proven, or changed; the first that
    changed is told first. In a GitHub job the findings become annotations.

    Exit codes: 0 equal, rounding or accepted, 1 findings, 2 bad usage or input.
    """
    outputs = {"--json": json, "--html": html, "--junit": junit, "--sarif": sarif}
    streams.require_distinct({"FILE": str(file), **outputs})
    silence_libraries()
    from recon.baseline import files
    from recon.baseline.checking import Allowances, check_baseline

    asked = Choice(model, dtype, attn, device, seed).over(files.read(file).model)
    loaded = _load(asked)
    with streams.waiting("checking"):
        report = check_baseline(
            file,
            loaded.model,
            asked=asked,
            allowances=Allowances(bytes=allow_bytes, overhead=allow_overhead),
        )
    _show(report, outputs)
    accepted = update and _accept(report, quiet="-" in outputs.values())
    raise typer.Exit(CLEAN if accepted or not report.findings else FINDINGS)


def _accept(report: BaselineReport, *, quiet: bool) -> bool:
    """Rewrite the file if anything moved; say so, and whether the run may count."""
    from recon.baseline.checking import accept_baseline

    if report.wrong:
        words = f"{report.file} stays as it was: this run is wrong by itself"
    elif report.verdict == "equal" and not report.notes:
        words = f"{report.file} stays as it was: nothing moved"
    else:
        accept_baseline(report)
        words = (
            f"{report.file} rewritten: {len(report.findings)} findings and "
            f"{len(report.moved)} moved sites accepted"
        )
    print(words, file=sys.stderr if quiet else sys.stdout)
    return not report.wrong


def _show(report: BaselineReport, outputs: Mapping[str, str | None]) -> None:
    from recon.baseline.files import lines_of
    from recon.report.baseline import commands, render
    from recon.report.html import baseline_html
    from recon.report.json import baseline_text
    from recon.report.junit import baseline_junit_text
    from recon.report.sarif import baseline_sarif_text

    lines = lines_of(Path(report.file))
    quiet = "-" in outputs.values()
    if not quiet:
        console = streams.output()
        streams.show(console, render(report, console=console))
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for command in commands(report, lines):
            # GitHub reads both streams.
            print(command, file=sys.stderr if quiet else sys.stdout, flush=True)
    texts = {
        "--json": lambda: baseline_text(report),
        "--html": lambda: baseline_html(report, again=streams.command_line()),
        "--junit": lambda: baseline_junit_text(report, lines),
        "--sarif": lambda: baseline_sarif_text(report, lines),
    }
    for option, place in outputs.items():
        if place is not None:
            streams.write(texts[option](), place, option)
