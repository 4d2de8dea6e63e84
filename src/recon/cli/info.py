"""``recon info``: what a file of recon's holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recon.cli import streams
from recon.cli.ending import Traceback
from recon.cli.options import Json
from recon.cli.starting import silence_libraries

if TYPE_CHECKING:
    from recon.describing import Description


def command(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A directory of captures, a shard of it, a saved run, a baseline, or "
            "a report: what --json, --html, --junit or --sarif wrote.",
        ),
    ],
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Do not read captures to compare their digests."),
    ] = False,
    json: Json = None,
    traceback: Traceback = False,
) -> None:
    """Say what a file of recon's holds, and whether it is whole.

    Exit codes: 0 it is, 2 it is damaged, or no file of recon's.
    """
    streams.require_writable(json)
    silence_libraries()

    from recon.describing import describe

    show(describe(file, thorough=not quick), json)


def show(found: Description, json: str | None) -> None:
    """Print a description, and write it as JSON where that is asked for."""
    if json != "-":
        from recon.report.description import render

        streams.show(streams.output(), render(found.path, found.kind, found.facts))
    if json is not None:
        from recon.report.json import description_text

        streams.write(description_text(found.path, found.kind, found.facts), json)
