"""Captures for pandas and xarray, which are imported only here and only when asked.

Neither knows bfloat16: such values are handed over as float32, which holds them all.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from recon.errors import UsageError
from recon.sites import Site

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from recon.storage.captures import Captures, Column, StoredPrompt


def prompts(captures: Captures) -> pd.DataFrame:
    """Return a row a prompt, indexed by number: text, tokens, cropped."""
    rows = [
        {"text": p.text, "tokens": p.ids.shape[1], "cropped": p.cropped}
        for p in captures
    ]
    table: pd.DataFrame = _library("pandas").DataFrame(
        rows, columns=["text", "tokens", "cropped"]
    )
    return table.rename_axis("prompt")


def frame(column: Column) -> pd.DataFrame:
    """Return a row a token, indexed by prompt and position: its id, then its values.

    Axes besides B and T are flattened into columns 0, 1, ... Raises UsageError for a
    site whose shape has keys, since prompts differ in their number.
    """
    pandas = _library("pandas")
    blocks, places, ids = _by_token(column)
    values = np.concatenate([b.reshape(len(b), -1) for b in blocks])
    labels = pandas.MultiIndex.from_tuples(places, names=["prompt", "position"])
    table: pd.DataFrame = pandas.DataFrame(values, index=labels)
    table.insert(0, "id", ids)
    return table


def array(column: Column) -> xr.DataArray:
    """Return the tokens of all prompts along ``token``, then the other axes.

    Coordinates of a token are its prompt, position and id. Raises UsageError as
    ``frame`` does.
    """
    xarray = _library("xarray")
    blocks, places, ids = _by_token(column)
    axes = [axis for axis in _axes(column.site) if axis not in ("B", "T")]
    table: xr.DataArray = xarray.DataArray(
        np.concatenate(blocks),
        dims=["token", *axes],
        coords={
            "prompt": ("token", [prompt for prompt, _ in places]),
            "position": ("token", [position for _, position in places]),
            "id": ("token", ids),
        },
        name=str(column.site),
    )
    return table


def dataset(prompt: StoredPrompt) -> xr.Dataset:
    """Return every site of one prompt, its axes called by their letters."""
    sites = {str(s): (_axes(s), _plain(prompt[s])) for s in prompt.sites}
    ids = {"input_ids": (["B", "T"], prompt.ids.numpy())}
    made: xr.Dataset = _library("xarray").Dataset(sites | ids)
    return made


def _by_token(
    column: Column,
) -> tuple[list[np.ndarray[Any, Any]], list[tuple[int, int]], list[int]]:
    """Return each prompt's values, T first, and where each token stands."""
    axes = _axes(column.site)
    if "T" not in axes or {"S", "E"} & set(axes):
        raise UsageError(
            f"{column.site} has the axes {' '.join(axes)}, and prompts differ in their "
            "keys; take it prompt by prompt: captures[0].to_xarray()"
        )
    blocks, places, ids = [], [], []
    for prompt in column.captures:
        blocks.append(_plain(prompt[column.site][0].movedim(axes.index("T") - 1, 0)))
        ids += prompt.ids[0].tolist()
        places += [(prompt.number, t) for t in range(prompt.ids.shape[1])]
    return blocks, places, ids


def _axes(place: Site) -> list[str]:
    # One prompt a pass: where wpe may have 1 or B rows, it has one, as all have.
    return place.row.shape.replace("1|B", "B").split()


def _plain(tensor: Tensor) -> np.ndarray[Any, Any]:
    held = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    values: np.ndarray[Any, Any] = held.numpy()
    return values


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise UsageError(
            f"this needs {name}, which is not installed: pip install {name}"
        ) from error
