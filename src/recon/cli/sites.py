"""``recon sites``: the vocabulary, as one model has it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from recon.cli import completing, streams
from recon.cli.ending import Traceback
from recon.cli.options import Json
from recon.cli.starting import silence_libraries
from recon.sites import PARTS, Part, all_sites, select

if TYPE_CHECKING:
    from recon.models import Skeleton
    from recon.report.vocabulary import Row, Vocabulary


def command(
    model: Annotated[
        str,
        typer.Argument(
            help="bundled, random:SIZE, a local directory or a hub id; its weights are "
            "not loaded.",
            autocompletion=completing.models,
        ),
    ] = "bundled",
    sites: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SITE",
            autocompletion=completing.sites,
            help="Show only this site or glob, in any of the three vocabularies; "
            "may be repeated.",
        ),
    ] = None,
    json: Json = None,
    traceback: Traceback = False,
) -> None:
    """List the places that recon can name, with their shapes in one model.

    Shows also the names that TransformerLens and Hugging Face have for them: all three
    are accepted wherever a site is named.
    """
    streams.require_writable(json)
    silence_libraries()
    listing = _listing(model, sites or [])
    if json != "-":
        from recon.report.vocabulary import render

        console = streams.output()
        streams.show(console, render(listing, console))
    if json is not None:
        from recon.report.json import vocabulary_text

        streams.write(vocabulary_text(listing), json)


def _listing(name: str, patterns: list[str]) -> Vocabulary:
    from recon.models import skeleton
    from recon.report.vocabulary import Vocabulary

    shape = skeleton(name)
    blocks, sizes = shape.model.config.n_layer, shape.sizes
    origins = _origins(shape)
    if patterns:
        held = [place for place in all_sites(blocks) if place.part in origins]
        asked = select(patterns, held)
        rows = [_row(place.row, place.layer, sizes, origins) for place in asked]
    else:
        parts = [part for part in PARTS if _short(part) in origins]
        rows = [_row(part, "l", sizes, origins) for part in parts]
    if "logits" not in origins:
        # Without a head the modules stand at the top.
        bare = [row.hf.removeprefix("transformer.") for row in rows]
        rows = [replace(row, hf=hf) for row, hf in zip(rows, bare, strict=True)]
    architecture = type(shape.model).__name__
    return Vocabulary(name, architecture, blocks, sizes, tuple(rows))


def _origins(shape: Skeleton) -> dict[str, str]:
    """Run the model without its weights, and see where each site comes from."""
    import torch

    from recon.capturing import capture

    with torch.no_grad(), capture(shape.model) as recorder:
        shape.model(**shape.inputs)
    trace = recorder.trace
    return {place.part: trace.origin(place) or "" for place in trace.sites}


def _short(part: Part) -> str:
    return part.name.removeprefix("h.{l}.")


def _row(
    part: Part,
    layer: int | str | None,
    sizes: Mapping[str, int],
    origins: Mapping[str, str],
) -> Row:
    from recon.report.vocabulary import Row

    def at(name: str) -> str:
        return name.replace("{l}", str(layer))

    return Row(
        site=at(part.name),
        shape=part.shape,
        here=_with_sizes(part.shape, sizes),
        origin=origins[_short(part)],
        meaning=part.meaning,
        lens=at(part.lens),
        hf=at(part.hf),
    )


def _with_sizes(shape: str, sizes: Mapping[str, int]) -> str:
    """Put a model's sizes into ``B T 3D``; what depends on the input stays a letter."""

    def number(axis: re.Match[str]) -> str:
        return str(int(axis[1] or 1) * sizes[axis[2]])

    return re.sub(rf"\b(\d*)([{''.join(sizes)}])\b", number, shape)
