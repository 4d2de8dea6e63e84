"""Options that several commands have, so that each means the same everywhere."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from recon.cli import completing


class Dtype(StrEnum):
    """The floats that a model may run in."""

    float64 = "float64"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Attn(StrEnum):
    """The attention implementations of transformers that recon checks."""

    eager = "eager"
    sdpa = "sdpa"


class Bound(StrEnum):
    """The forms of the error bounds."""

    deterministic = "deterministic"
    probabilistic = "probabilistic"


_MODELS = (
    "bundled, random:tiny, random:gpt2 (-medium, -large, -xl), a local directory or a "
    "hub id."
)
ModelArgument: TypeAlias = Annotated[
    str, typer.Argument(help=_MODELS, autocompletion=completing.models)
]
ModelOption: TypeAlias = Annotated[
    str, typer.Option(help=_MODELS, autocompletion=completing.models)
]
Text: TypeAlias = Annotated[
    str | None, typer.Option(metavar="TEXT", help="Run this prompt.")
]
InputIds: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Run these token ids: json, npy, npz, safetensors, pt or plain text; an "
        "attention_mask, position_ids or token_type_ids beside them are used.",
    ),
]
PromptsFile: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Run every prompt of this .txt (one a line), .jsonl, .parquet, or "
        "folder of a saved dataset.",
    ),
]
Field: TypeAlias = Annotated[
    str, typer.Option(help="Where in .jsonl, .parquet or a dataset prompts are.")
]
ToDtype: TypeAlias = Annotated[
    Dtype | None, typer.Option(help="Convert the model; default: as it is stored.")
]
Attention: TypeAlias = Annotated[
    Attn | None, typer.Option(help="Attention; default: what the model chooses.")
]
Seed: TypeAlias = Annotated[
    int,
    typer.Option(
        min=0, max=2**32 - 1, metavar="N", help="For random weights and random ids."
    ),
]
Device: TypeAlias = Annotated[
    str, typer.Option(help="Where to run, as torch names it.")
]
Json: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="FILE|-", help="Write JSON to a file too, or to stdout only."),
]
Html: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Write a report for a browser, in one file."),
]
