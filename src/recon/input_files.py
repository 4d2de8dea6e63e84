"""The inputs of a pass out of a file: token ids, and what goes with them by name.

Nothing is unpickled, and nothing that a file holds is left out in silence.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from recon.errors import UsageError

BESIDE = ("attention_mask", "position_ids", "token_type_ids")
_EXPECTED = f"expected input_ids and, if wanted, {', '.join(BESIDE)}"


def read_inputs(path: Path) -> dict[str, Tensor]:
    """Read token ids, B T, and those of ``BESIDE`` that come along, by name.

    From json, npy, npz, safetensors, pt or text; an array without a name, or the only
    one, is the ids. Raises UsageError for a file that cannot be read, holds something
    else, or no integers of that shape.
    """
    # A pipe is read as a file is.
    if path.is_dir() or not path.exists():
        raise UsageError(f"{path}: no such file")
    try:
        found = _parse(path)
    except UsageError:
        raise
    except (
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
        TypeError,
        SafetensorError,
        EOFError,
    ) as error:
        words = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{path}: cannot be read as token ids: {words}") from error
    except Exception as error:  # unpicklers raise whatever they like
        raise UsageError(
            f"{path}: refused: it is no plain file of tensors ({type(error).__name__})"
        ) from error
    return _checked(_named(found, path), f"{path}: ")


def take_inputs(tensors: dict[str, Any]) -> dict[str, Tensor]:
    """Take the inputs of the run out of captures, where they were saved along."""
    if not isinstance(tensors.get("input_ids"), Tensor):
        return {}
    names = [name for name in ("input_ids", *BESIDE) if name in tensors]
    return _checked({name: tensors.pop(name) for name in names}, "")


# -- what a file holds ---------------------------------------------------------


def _parse(path: Path) -> Any:
    """Return the tensor that a file holds, or its tensors by name."""
    suffix = path.suffix.lower()
    if suffix == ".json":
        return _from_json(json.loads(_read_text(path)))
    if suffix == ".npy":
        return torch.from_numpy(np.load(path, allow_pickle=False))
    if suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    if suffix == ".safetensors":
        return load_file(path)
    if suffix in (".pt", ".pth", ".bin"):
        return torch.load(path, map_location="cpu", weights_only=True)
    text = _read_text(path)
    if text.lstrip().startswith(("[", "{")):
        return _from_json(json.loads(text))
    return torch.tensor([int(word) for word in text.replace(",", " ").split()])


def _from_json(found: Any) -> Any:
    """Return lists as tensors: one, or one a name as tokenizers return them."""
    if isinstance(found, dict):
        return {name: torch.tensor(value) for name, value in found.items()}
    return torch.tensor(found)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as text: {error}") from error


def _named(found: Any, path: Path) -> dict[str, Tensor]:
    """Return what a file holds by name; raises UsageError for what is no input."""
    several = dict(found) if isinstance(found, Mapping) else {"input_ids": found}
    if len(several) == 1 and not several.keys() & set(BESIDE):
        several = {"input_ids": next(iter(several.values()))}
    if "input_ids" not in several:
        names = sorted(map(str, several))
        raise UsageError(f"{path}: {_EXPECTED}, found {names}")
    for name, tensor in several.items():
        if name not in ("input_ids", *BESIDE):
            raise UsageError(
                f"{path}: {name!r} is no input that recon runs: {_EXPECTED}"
            )
        if not isinstance(tensor, Tensor):
            raise UsageError(
                f"{path}: {name}: expected a tensor, found {type(tensor).__name__}"
            )
    return several


# -- whether it fits -----------------------------------------------------------


def _checked(given: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    if not given["input_ids"].numel():
        raise UsageError(f"{where}holds no token id")
    ids = _integers(given["input_ids"], f"{where}input_ids")
    beside = {name: tensor for name, tensor in given.items() if name != "input_ids"}
    return {"input_ids": ids} | {
        name: _fitting(name, tensor, ids.shape, f"{where}{name}")
        for name, tensor in beside.items()
    }


def _integers(tensor: Tensor, where: str) -> Tensor:
    """Return integers as B T; raises UsageError for anything else."""
    rows = tensor[None] if tensor.ndim == 1 else tensor
    inexact = rows.dtype.is_floating_point or rows.dtype.is_complex
    if rows.ndim != 2 or inexact or rows.dtype == torch.bool:
        raise UsageError(
            f"{where}: expected integers of shape (tokens) or (batch, tokens), "
            f"found {tensor.dtype} of shape {tuple(tensor.shape)}"
        )
    return rows.long()


def _fitting(name: str, tensor: Tensor, shape: torch.Size, where: str) -> Tensor:
    """Return what stands beside the ids in their shape, one row repeated for all."""
    if name == "attention_mask" and not tensor.dtype.is_complex:
        if not bool(((tensor == 0) | (tensor == 1)).all()):
            raise UsageError(f"{where}: expected 0 and 1 only, 1 for tokens to be seen")
        tensor = tensor.long()
    rows = _integers(tensor, where)
    if len(rows) == 1:
        rows = rows.expand(shape[0], -1)
    if rows.shape != shape:
        raise UsageError(
            f"{where}: shape {tuple(tensor.shape)}, but input_ids has {tuple(shape)}"
        )
    return rows
