"""``recon capture``: captures of one prompt, or of a file of them, as files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from recon.cli import completing, info, streams
from recon.cli.ending import Traceback
from recon.cli.options import (
    Attention,
    Device,
    Dtype,
    Field,
    InputIds,
    Json,
    ModelArgument,
    PromptsFile,
    Seed,
    Text,
    ToDtype,
)
from recon.cli.starting import load, silence_libraries
from recon.errors import UsageError

if TYPE_CHECKING:
    from recon.models import Loaded
    from recon.prompts import Prompts

Tell: TypeAlias = Callable[[int, int], None]


class How(StrEnum):
    """What to do where captures are already."""

    resume = "resume"
    accumulate = "accumulate"
    overwrite = "overwrite"


def command(
    model: ModelArgument = "bundled",
    *,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where to write; made if need be.")
    ],
    sites: Annotated[
        list[str],
        typer.Option(
            metavar="SITE",
            autocompletion=completing.sites,
            help="A site or a glob, 'h.*.attn.{q,k}' for one; may be repeated.",
        ),
    ],
    text: Text = None,
    input_ids: InputIds = None,
    prompts: PromptsFile = None,
    field: Field = "text",
    mode: Annotated[
        How,
        typer.Option(
            help="resume begins, or goes on where a killed run stopped; accumulate "
            "adds other prompts to what is there; overwrite replaces it."
        ),
    ] = How.resume,
    crop: Annotated[
        bool,
        typer.Option(
            "--crop", help="Cut prompts to the model's context; else they are refused."
        ),
    ] = False,
    save_dtype: Annotated[
        Dtype | None,
        typer.Option(help="Store in this dtype; default: as the model computes."),
    ] = None,
    shard_size: Annotated[
        int, typer.Option(min=1, metavar="MIB", help="Captures a file, and in memory.")
    ] = 64,
    dtype: ToDtype = None,
    attn: Attention = None,
    device: Device = "cpu",
    seed: Seed = 0,
    json: Json = None,
    traceback: Traceback = False,
) -> None:
    """Run a model on prompts, one a pass, and store what is captured.

    DIR holds safetensors shards and an index. A run that was killed goes on when the
    same command is given again.

    Exit codes: 0 all prompts are stored, 2 bad usage or input, 130 interrupted.
    """
    if sum(given is not None for given in (text, input_ids, prompts)) > 1:
        raise UsageError("give one of --text, --input-ids and --prompts")
    streams.require_writable(json)
    silence_libraries()
    loaded = load(model, dtype=dtype, attn=attn, device=device, seed=seed)

    from recon.collecting import Storing, collect
    from recon.describing import describe
    from recon.models import DTYPES

    storing = Storing(
        mode=mode.value,
        crop=crop,
        field=field if prompts is not None else None,
        shard_bytes=shard_size * 2**20,
    )
    with _progress() as tell:
        collect(
            loaded,
            _prompts(loaded, text, input_ids, prompts, field, seed),
            out,
            sites=sites,
            dtype=None if save_dtype is None else DTYPES[save_dtype],
            storing=storing,
            tell=tell,
        )
    info.show(describe(out, thorough=False), json)


def _prompts(
    loaded: Loaded,
    text: str | None,
    input_ids: Path | None,
    prompts: Path | None,
    field: str,
    seed: int,
) -> Prompts:
    """Return the prompts that were asked for; as ``verify`` does, without any."""
    from recon.inputs import batches
    from recon.prompts import listed, prompts_of

    if prompts is not None:
        return prompts_of(prompts, field)
    if text is not None:
        return listed([text], "--text")
    batch = next(batches(loaded, ids_file=input_ids, seed=seed))
    if beside := [name for name in batch.inputs if name != "input_ids"]:
        raise UsageError(
            f"{input_ids}: holds {', '.join(beside)}, but prompts are captured one a "
            "pass, without a mask and at their own positions; give token ids only"
        )
    return listed(batch.inputs["input_ids"].tolist(), batch.source)


@contextmanager
def _progress() -> Iterator[Tell]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("capturing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("prompts"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=streams.progress(), transient=True) as bar:
        task = bar.add_task("", total=None)

        def tell(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield tell
