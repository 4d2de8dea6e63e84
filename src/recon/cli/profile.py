"""``recon profile``: what capture costs, and whether its memory comes back."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recon.cli import streams
from recon.cli.ending import CLEAN, FINDINGS, Traceback
from recon.cli.options import (
    Attention,
    Device,
    Html,
    InputIds,
    Json,
    ModelArgument,
    Seed,
    Text,
    ToDtype,
)
from recon.cli.starting import load, silence_libraries
from recon.errors import UsageError
from recon.report.plot import FORMATS

if TYPE_CHECKING:
    from recon.inputs import Batch
    from recon.models import Loaded
    from recon.profiling.results import Profile
    from recon.profiling.session import Function


@dataclass(frozen=True)
class Rounds:
    """How often to time, and how often to look for leaks."""

    timed: int
    watched: int


def command(
    model: ModelArgument = "bundled",
    target: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.py:FUNCTION",
            help="Profile FUNCTION(model, input_ids); default: recon.capture.",
        ),
    ] = None,
    text: Text = None,
    input_ids: InputIds = None,
    rounds: Annotated[int, typer.Option(min=2, metavar="N", help="Timed rounds.")] = 20,
    leak_rounds: Annotated[
        int, typer.Option(min=3, metavar="N", help="Rounds of the leak watch.")
    ] = 10,
    dtype: ToDtype = None,
    attn: Attention = None,
    device: Device = "cpu",
    seed: Seed = 0,
    json: Json = None,
    html: Html = None,
    plot: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.svg|png", help="Draw bytes by site, and ratios of time."
        ),
    ] = None,
    traceback: Traceback = False,
) -> None:
    """Measure what capture costs in time and memory, and watch for leaks.

    Says whether the memory comes back, and names who holds what does not.

    Exit codes: 0 clean, 1 leaks, 2 bad usage or input.
    """
    if text is not None and input_ids is not None:
        raise UsageError("give one of --text and --input-ids")
    streams.require_distinct({"--json": json, "--html": html, "--plot": plot})
    kind = _picture_kind(plot)
    silence_libraries()
    with redirect_stdout(sys.stderr), _function(target) as function:
        loaded = load(model, dtype=dtype, attn=attn, device=device, seed=seed)
        batch = _batch(loaded, text, input_ids, seed)
        found = _profile(loaded, batch, function, target, Rounds(rounds, leak_rounds))
    _show(found, loaded.name, batch.source, json)
    if html is not None:
        from recon.report.html import profile_html

        again = streams.command_line()
        page = profile_html(found, model=loaded.name, source=batch.source, again=again)
        streams.write(page, html, "--html")
    if plot is not None and kind is not None:
        from recon.report.plot import profile_picture

        streams.write_bytes(profile_picture(found, kind), plot, "--plot")
    raise typer.Exit(CLEAN if found.verdict == "clean" else FINDINGS)


def _picture_kind(plot: str | None) -> str | None:
    """Return the format that a file's name asks for; raise UsageError for others."""
    if plot is None:
        return None
    kind = Path(plot).suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        expected = " or ".join(f".{one}" for one in FORMATS)
        raise UsageError(f"--plot {plot}: expected a file that ends in {expected}")
    return kind


@contextmanager
def _function(target: str | None) -> Iterator[Function | None]:
    """Import what is to be profiled, if it is not recon itself."""
    if target is None:
        yield None
        return
    from recon.target import load_function

    with load_function(target) as found:
        yield found.function


def _batch(
    loaded: Loaded, text: str | None, input_ids: Path | None, seed: int
) -> Batch:
    from recon.inputs import batches

    return next(batches(loaded, text=text, ids_file=input_ids, seed=seed))


def _profile(
    loaded: Loaded,
    batch: Batch,
    function: Function | None,
    target: str | None,
    rounds: Rounds,
) -> Profile:
    from recon.profiling.session import profile

    with _progress() as progress:
        return profile(
            loaded.model,
            target=function,
            inputs=batch.inputs,
            rounds=rounds.timed,
            leak_rounds=rounds.watched,
            target_name=target or "",
            model_name=loaded.name,
            progress=progress,
        )


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yield what tells a bar on stderr: what is measured, how far, of how much."""
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

    what = TextColumn("profiling: {task.description}", markup=False)
    columns = SpinnerColumn(streams.spinner()), what, MofNCompleteColumn()
    with Progress(*columns, console=streams.progress(), transient=True) as bar:
        task = bar.add_task("", total=None)

        def tell(doing: str, done: int, total: int) -> None:
            bar.update(task, description=doing, completed=done, total=total)

        yield tell


def _show(found: Profile, model: str, source: str, json: str | None) -> None:
    if json != "-":
        from recon.report.profile import render

        console = streams.output()
        page = render(found, model=model, source=source, console=console)
        streams.show(console, page)
    if json is not None:
        from recon.report.json import profile_text

        streams.write(profile_text(found, model=model, source=source), json)
