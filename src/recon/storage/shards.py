"""One shard: a safetensors file with the captures of some prompts.

A tensor is called ``12/h.3.attn.q``: the number of its prompt in the directory, then
its site; ``12/input_ids`` are the tokens. The header holds each prompt's text and the
SHA-256 of each tensor, which is compared when the tensor is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from recon.errors import UsageError
from recon.saving import digest, write_atomically
from recon.sites import Site
from recon.storage.index import FORMAT, VERSION, Shard

IDS = "input_ids"


@dataclass(frozen=True, eq=False)
class Captured:
    """One prompt: its ids, 1 T, its tensors by site, and the text it was made from.

    ``found`` is how many tokens it had before it was cropped.
    """

    ids: Tensor
    tensors: Mapping[Site, Tensor]
    text: str | None
    found: int

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(t.nbytes for t in (self.ids, *self.tensors.values()))


def write(folder: Path, number: int, first: int, prompts: Sequence[Captured]) -> Shard:
    """Write one shard, whole or not at all, and return its line of the index.

    Raises UsageError where it cannot be written.
    """
    path = folder / f"captures-{number:05}.safetensors"
    tensors = {
        f"{place}/{name}": tensor
        for place, prompt in enumerate(prompts, first)
        for name, tensor in ({IDS: prompt.ids} | _named(prompt)).items()
    }
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "prompts": json.dumps([{"text": p.text, "found": p.found} for p in prompts]),
        "digests": json.dumps({name: digest([t]) for name, t in tensors.items()}),
    }
    write_atomically(path, tensors, metadata)
    return Shard(
        file=path.name,
        first=first,
        count=len(prompts),
        tokens=sum(prompt.ids.shape[1] for prompt in prompts),
        bytes=path.stat().st_size,
        digest=_digest(metadata),
        threads=torch.get_num_threads(),
    )


def _named(prompt: Captured) -> dict[str, Tensor]:
    return {str(place): tensor for place, tensor in prompt.tensors.items()}


def _digest(metadata: Mapping[str, str]) -> str:
    """Return the SHA-256 of a header, and so of all that its digests vouch for."""
    words = metadata.get("prompts", "") + metadata.get("digests", "")
    return hashlib.sha256(words.encode()).hexdigest()


class OpenShard:
    """A shard that is mapped into memory; tensors are views of the file.

    Raises UsageError for a file that is missing, damaged, or not the one of the index.
    """

    def __init__(self, folder: Path, entry: Shard) -> None:
        self.entry, self.path = entry, folder / entry.file
        require_size(folder, entry)
        try:
            self._file = _mapped(self.path)
            metadata: dict[str, str] = self._file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise self._damaged(str(error)) from error
        if _digest(metadata) != entry.digest:
            raise self._damaged("its header is not the one that the index has")
        self.prompts: list[dict[str, Any]] = json.loads(metadata["prompts"])
        self._digests: dict[str, str] = json.loads(metadata["digests"])
        self._checked: set[str] = set()

    def tensor(self, number: int, name: str) -> Tensor:
        """Return a tensor by prompt and site, checked the first time it is read."""
        key = f"{number}/{name}"
        try:
            found: Tensor = self._file.get_tensor(key)
        except SafetensorError as error:
            raise self._damaged(str(error)) from error
        if key not in self._checked:
            if digest([found]) != self._digests.get(key):
                raise self._damaged(f"{key} does not match its digest")
            self._checked.add(key)
        return found

    def check(self) -> None:
        """Read everything; raises UsageError where a tensor is not what was written."""
        if set(self._file.keys()) != set(self._digests):
            raise self._damaged("it holds other tensors than its header names")
        for key in self._digests:
            number, _, name = key.partition("/")
            self.tensor(int(number), name)

    def _damaged(self, why: str) -> UsageError:
        return damaged(self.path, why)


def _mapped(path: Path) -> Any:
    """Open a file whose methods have no annotations."""
    return safe_open(path, framework="pt")


def require_size(folder: Path, entry: Shard) -> None:
    """Raise UsageError for a shard that is missing, cut off or grown."""
    path = folder / entry.file
    try:
        size = path.stat().st_size
    except OSError as error:
        raise damaged(path, f"{error.strerror}") from error
    if size != entry.bytes:
        raise damaged(path, f"{size:,} bytes, expected {entry.bytes:,}")


def damaged(path: Path, why: str) -> UsageError:
    """Return the error for one bad shard: the others are not touched."""
    return UsageError(
        f"{path} is damaged: {why}; the other shards are as they were, restore this "
        "one or capture into another directory"
    )
