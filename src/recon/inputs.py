"""Where a model's inputs come from: text, files of prompts, files of token ids."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from recon.errors import UsageError
from recon.models import BUNDLED_PATH, Loaded

_RANDOM_TOKENS = 128
_BATCH = 8


@dataclass(frozen=True, eq=False)
class Batch:
    """Inputs of one forward pass, and where they came from in words."""

    inputs: dict[str, Tensor]
    source: str


def batches(
    loaded: Loaded,
    *,
    text: str | None = None,
    ids_file: Path | None = None,
    prompts_file: Path | None = None,
    seed: int = 0,
) -> Iterator[Batch]:
    """Yield the inputs asked for, at most one of the three; the default otherwise.

    Default: a paragraph of English that the bundled model has not seen; for random
    weights, random ids. Raises UsageError for a file that cannot be read.
    """
    given = [option for option in (text, ids_file, prompts_file) if option is not None]
    if len(given) > 1:
        raise UsageError("give one of --text, --input-ids and --prompts")
    device = loaded.model.device
    if ids_file is not None:
        yield Batch({"input_ids": read_ids(ids_file).to(device)}, str(ids_file))
    elif prompts_file is not None:
        yield from _prompts(loaded, prompts_file)
    elif text is not None:
        yield _encode(loaded, [text], "--text")
    elif loaded.random:
        yield Batch(
            {"input_ids": _random_ids(loaded, seed).to(device)},
            f"random ids, seed {seed}",
        )
    else:
        prompt = (BUNDLED_PATH / "prompt.txt").read_text(encoding="utf-8").strip()
        yield _encode(loaded, [prompt], "bundled prompt")


def _random_ids(loaded: Loaded, seed: int) -> Tensor:
    config = loaded.model.config
    tokens = min(_RANDOM_TOKENS, config.n_positions)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size, (1, tokens), generator=generator)


def _prompts(loaded: Loaded, path: Path) -> Iterator[Batch]:
    lines = [line.strip() for line in _read_text(path).splitlines() if line.strip()]
    if not lines:
        raise UsageError(f"{path} holds no prompt; expected one prompt a line")
    for start in range(0, len(lines), _BATCH):
        some = lines[start : start + _BATCH]
        yield _encode(loaded, some, f"{path}, prompts {start + 1}-{start + len(some)}")


def _encode(loaded: Loaded, texts: list[str], source: str) -> Batch:
    """Tokenize and pad on the right, with the attention mask that this needs."""
    if loaded.tokenizer is None:
        raise UsageError(
            f"{loaded.name} has no tokenizer; give token ids with --input-ids"
        )
    rows = [loaded.tokenizer(text)["input_ids"] for text in texts]
    for text, row in zip(texts, rows, strict=True):
        if not row:
            raise UsageError(f"the prompt {text!r} is empty: no token to run")
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, (line, seen) in zip(rows, zip(ids, mask, strict=True), strict=True):
        line[: len(row)] = torch.tensor(row)
        seen[: len(row)] = 1
    inputs = {"input_ids": ids}
    if not bool(mask.all()):
        inputs["attention_mask"] = mask
    return Batch({k: v.to(loaded.model.device) for k, v in inputs.items()}, source)


def read_ids(path: Path) -> Tensor:
    """Read token ids, B T, from json, npy, npz, safetensors, pt or text.

    Nothing is unpickled. Raises UsageError for what holds no integers of that shape.
    """
    if not path.is_file():
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
        SafetensorError,
        EOFError,
    ) as error:
        words = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{path}: cannot be read as token ids: {words}") from error
    except Exception as error:  # unpicklers raise whatever they like
        raise UsageError(
            f"{path}: refused: it is no plain file of tensors ({type(error).__name__})"
        ) from error
    ids = found[None] if found.ndim == 1 else found
    inexact = ids.dtype.is_floating_point or ids.dtype.is_complex
    if ids.ndim != 2 or inexact or ids.dtype == torch.bool:
        raise UsageError(
            f"{path}: expected integer token ids of shape (tokens) or (batch, tokens), "
            f"found {found.dtype} of shape {tuple(found.shape)}"
        )
    if not ids.numel():
        raise UsageError(f"{path}: holds no token id")
    return ids.long()


def _parse(path: Path) -> Tensor:
    suffix = path.suffix.lower()
    if suffix == ".json":
        return torch.tensor(json.loads(_read_text(path)))
    if suffix == ".npy":
        return torch.from_numpy(np.load(path, allow_pickle=False))
    if suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return torch.from_numpy(_one(path, {k: arrays[k] for k in arrays.files}))
    if suffix == ".safetensors":
        tensor: Tensor = _one(path, load_file(path))
        return tensor
    if suffix in (".pt", ".pth", ".bin"):
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        kept: Any = loaded if isinstance(loaded, Tensor) else _one(path, loaded)
        if isinstance(kept, Tensor):
            return kept
        raise UsageError(f"{path}: expected a tensor, found {type(kept).__name__}")
    return torch.tensor(
        [int(word) for word in _read_text(path).replace(",", " ").split()]
    )


def _one(path: Path, arrays: Any) -> Any:
    """Return the array called input_ids, or the only one."""
    if not isinstance(arrays, dict):
        raise UsageError(f"{path}: expected a tensor, found {type(arrays).__name__}")
    if "input_ids" in arrays:
        return arrays["input_ids"]
    if len(arrays) != 1:
        raise UsageError(
            f"{path}: expected one array called input_ids, found {sorted(arrays)}"
        )
    return next(iter(arrays.values()))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as text: {error}") from error
