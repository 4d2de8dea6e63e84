"""What a model is run on: text, prompts and token ids, as batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from recon.errors import UsageError
from recon.input_files import read_inputs
from recon.models import BUNDLED_PATH, Loaded
from recon.prompts import FIELD, Numbered, Words, prompts_of

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
    field: str = FIELD,
    seed: int = 0,
) -> Iterator[Batch]:
    """Yield the inputs asked for, at most one of the three; the default otherwise.

    Default: a paragraph of English that the bundled model has not seen; for random
    weights, random ids. ``field`` is where prompts stand in files that have fields.
    Raises UsageError for a file that cannot be read.
    """
    given = [option for option in (text, ids_file, prompts_file) if option is not None]
    if len(given) > 1:
        raise UsageError("give one of --text, --input-ids and --prompts")
    for batch in _batches(loaded, text, ids_file, prompts_file, field, seed):
        device = loaded.model.device
        yield Batch({k: v.to(device) for k, v in batch.inputs.items()}, batch.source)


def _batches(
    loaded: Loaded,
    text: str | None,
    ids_file: Path | None,
    prompts_file: Path | None,
    field: str,
    seed: int,
) -> Iterator[Batch]:
    if ids_file is not None:
        yield Batch(read_inputs(ids_file), str(ids_file))
    elif prompts_file is not None:
        yield from _prompts(loaded, prompts_file, field)
    elif text is not None:
        yield _padded([encoded(loaded, text, "--text")], "--text")
    elif loaded.random:
        yield Batch(
            {"input_ids": _random_ids(loaded, seed)}, f"random ids, seed {seed}"
        )
    else:
        source = "bundled prompt"
        prompt = (BUNDLED_PATH / "prompt.txt").read_text(encoding="utf-8").strip()
        yield _padded([encoded(loaded, prompt, source)], source)


def _random_ids(loaded: Loaded, seed: int) -> Tensor:
    config = loaded.model.config
    tokens = min(_RANDOM_TOKENS, config.n_positions)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size, (1, tokens), generator=generator)


def _prompts(loaded: Loaded, path: Path, field: str) -> Iterator[Batch]:
    prompts: Iterator[Numbered] = prompts_of(path, field).read(0)
    start = 1
    while some := list(islice(prompts, _BATCH)):
        rows = [encoded(loaded, words, where) for where, words in some]
        end = start + len(some) - 1
        yield _padded(rows, f"{path}, prompts {start}-{end}")
        start = end + 1


def encoded(loaded: Loaded, words: Words, where: str) -> list[int]:
    """Return a prompt's token ids; raises UsageError for one that has none.

    Also for what is no text: bytes of a command line that are no UTF-8.
    """
    if not isinstance(words, str):
        ids = list(words)
    elif loaded.tokenizer is None:
        raise UsageError(
            f"{loaded.name} has no tokenizer; give token ids with --input-ids"
        )
    elif not _is_text(words):
        raise UsageError(
            f"{where}: {words!r} is no text: it cannot be written as UTF-8"
        )
    else:
        ids = loaded.tokenizer(words)["input_ids"]
    if not ids:
        raise UsageError(f"{where}: the prompt {words!r} is empty: no token to run")
    return ids


def _is_text(words: str) -> bool:
    """Whether a string holds no surrogate, which by itself stands for nothing."""
    return not any("\ud800" <= mark <= "\udfff" for mark in words)


def _padded(rows: list[list[int]], source: str) -> Batch:
    """Pad on the right, with the attention mask that this needs."""
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, (line, seen) in zip(rows, zip(ids, mask, strict=True), strict=True):
        line[: len(row)] = torch.tensor(row)
        seen[: len(row)] = 1
    inputs = {"input_ids": ids}
    if not bool(mask.all()):
        inputs["attention_mask"] = mask
    return Batch(inputs, source)
