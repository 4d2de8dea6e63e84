"""``recon plot``: pictures of a model's activations."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recon.cli import completing, streams
from recon.cli.ending import Traceback
from recon.cli.options import Attention, Device, ModelOption, Seed, Text, ToDtype
from recon.cli.starting import load, silence_libraries
from recon.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from recon.models import Loaded
    from recon.sites import Site
    from recon.trace import Trace


class Kind(StrEnum):
    """The plots there are."""

    scatter = "scatter"
    correlations = "correlations"
    sizes = "sizes"
    attention = "attention"
    histogram = "histogram"
    prefix = "prefix"


_SITES = {
    Kind.scatter: "h.{last}.resid_post",
    Kind.correlations: "h.*.resid_post",
    Kind.sizes: "h.*.resid_post",
    Kind.attention: "h.0.attn.pattern",
    Kind.histogram: "h.{last}.resid_post",
    Kind.prefix: "h.*.resid_post",
}


def command(
    kind: Annotated[
        Kind,
        typer.Argument(
            help="scatter: two tokens; correlations: all tokens, a matrix a site; "
            "sizes: norms and largest neurons; attention: by head; histogram: over "
            "prompts; prefix: two prompts that begin alike."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="A .png or an .svg.")],
    model: ModelOption = "bundled",
    sites: Annotated[
        str | None,
        typer.Option(
            metavar="SITE",
            autocompletion=completing.sites,
            help="A site or a glob; each kind has its own.",
        ),
    ] = None,
    text: Text = None,
    other: Annotated[
        str | None, typer.Option(metavar="TEXT", help="prefix: the second prompt.")
    ] = None,
    tokens: Annotated[
        tuple[int, int], typer.Option(metavar="A B", help="scatter: which two.")
    ] = (0, -1),
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="histogram: prompts, as recon capture has."),
    ] = None,
    dtype: ToDtype = None,
    attn: Attention = None,
    device: Device = "cpu",
    seed: Seed = 0,
    traceback: Traceback = False,
) -> None:
    """Draw activations of one prompt, or of many.

    Exit codes: 0 drawn, 2 bad usage or input.
    """
    _require_fitting(kind, out, other, prompts)
    silence_libraries()
    loaded = load(model, dtype=dtype, attn=attn, device=device, seed=seed)

    from recon.plotting.figures import save

    pattern = sites or _SITES[kind].format(last=loaded.model.config.n_layer - 1)
    if kind is Kind.prefix:
        figure = _prefix(loaded, pattern, text, other or "", seed)
    elif kind is Kind.histogram and prompts is not None:
        figure = _histogram(loaded, pattern, prompts)
    else:
        figure = _one(kind, loaded, pattern, text, tokens, seed)
    save(figure, out)


def _require_fitting(
    kind: Kind, out: Path, other: str | None, prompts: Path | None
) -> None:
    streams.require_writable(str(out), "--out")
    if out.suffix.lower() not in (".png", ".svg"):
        raise UsageError(f"--out {out}: expected a name that ends with .png or .svg")
    if (kind is Kind.prefix) != (other is not None):
        raise UsageError("prefix compares two prompts: give --text and --other with it")
    if prompts is not None and kind is not Kind.histogram:
        raise UsageError("--prompts is for histogram; give --text")


def _run(
    loaded: Loaded, pattern: str, text: str | None, seed: int
) -> tuple[Trace, list[int], tuple[str, ...]]:
    """Run one prompt; return captures, ids and the tokens to print."""
    import torch

    from recon.capturing import capture
    from recon.inputs import batches
    from recon.plotting.figures import token_labels

    batch = next(batches(loaded, text=text, seed=seed))
    ids = batch.inputs["input_ids"]
    if ids.shape[1] > loaded.model.config.n_positions:
        raise UsageError(
            f"{batch.source}: {ids.shape[1]} tokens, and the model's context has "
            f"{loaded.model.config.n_positions}; shorten it"
        )
    with torch.no_grad(), capture(loaded.model, sites=pattern) as recorder:
        loaded.model(**batch.inputs)
    plain: list[int] = ids[0].tolist()
    words = (
        [str(one) for one in plain]
        if loaded.tokenizer is None or (loaded.random and text is None)
        else [loaded.tokenizer.decode([one]) for one in plain]
    )
    return recorder.trace, plain, token_labels(words)


def _one(
    kind: Kind,
    loaded: Loaded,
    pattern: str,
    text: str | None,
    tokens: tuple[int, int],
    seed: int,
) -> Figure:
    from recon.plotting import data, figures

    trace, _, labels = _run(loaded, pattern, text, seed)
    places = trace.sites
    if kind is Kind.correlations:
        return figures.draw_correlations(
            [data.correlations(trace, place, labels) for place in places]
        )
    if kind is Kind.sizes:
        return figures.draw_sizes(data.sizes(trace, places, labels))
    place = _only(places, kind)
    if kind is Kind.scatter:
        return figures.draw_scatter(data.scatter(trace, place, tokens, labels))
    if kind is Kind.histogram:
        return figures.draw_histogram(data.histogram(lambda: [trace], place))
    if place.part != "attn.pattern" or place.layer is None:
        raise UsageError(f"attention draws h.0.attn.pattern and its like, not {place}")
    return figures.draw_patterns(data.patterns(trace, place.layer, labels))


def _only(places: Iterable[Site], kind: Kind) -> Site:
    first, *more = places
    if more:
        raise UsageError(f"{kind} draws one site, found {first}, {more[0]}; name one")
    return first


def _prefix(
    loaded: Loaded, pattern: str, text: str | None, other: str, seed: int
) -> Figure:
    from recon.plotting import data, figures

    first, ids, labels = _run(loaded, pattern, text, seed)
    second, more_ids, more_labels = _run(loaded, pattern, other, seed)
    found = data.prefix(
        (first, second), first.sites, (ids, more_ids), (labels, more_labels)
    )
    return figures.draw_prefix(found)


def _histogram(loaded: Loaded, pattern: str, prompts: Path) -> Figure:
    """Capture every prompt with keep="all", on the CPU, and count."""
    import torch

    from recon.capturing import capture
    from recon.inputs import batches
    from recon.plotting import data, figures
    from recon.prompts import prompts_of

    recorder = capture(loaded.model, sites=pattern, keep="all", clone=True)
    with torch.no_grad(), recorder:
        for where, words in prompts_of(prompts).read(0):
            if not isinstance(words, str):
                raise UsageError(f"{where}: expected text")
            loaded.model(**next(batches(loaded, text=words)).inputs)
    traces = recorder.traces
    place = _only(traces[0].sites, Kind.histogram)
    return figures.draw_histogram(data.histogram(lambda: traces, place))
