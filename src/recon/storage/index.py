"""The index of a directory of captures: JSON lines, and only whole lines count.

The first line says what ran; then, for each source of prompts, a line that names it, a
line for each shard, and one that ends it. A shard is part of the captures once its line
stands here, and not before. A last line without its newline was cut off by a kill and
says nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from recon.errors import UsageError
from recon.files import replacing, sync

FORMAT = "recon-captures"
VERSION = 1
NAME = "index.jsonl"


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Run(_Line):
    """What ran, and what is kept of it: the same for all captures of a directory.

    ``weights`` is the SHA-256 of the model's weights, ``run_dtype`` what it ran in,
    ``dtype`` what is stored where that differs; ``sites`` says how each was had.
    """

    kind: Literal["run"] = "run"
    format: str = FORMAT
    version: int = VERSION
    model: str
    revision: str | None
    architecture: str
    weights: str
    torch: str
    transformers: str
    device: str
    attention: str
    training: bool
    run_dtype: str
    dtype: str | None
    sites: dict[str, str]


class Source(_Line):
    """One source of prompts. ``crop``: the context to which prompts may be cut."""

    kind: Literal["source"] = "source"
    name: str
    digest: str
    prompts: int
    field: str | None
    crop: int | None

    def same(self, other: Source) -> bool:
        """Whether both yield the same prompts, whatever their files are called."""
        return self.model_copy(update={"name": other.name}) == other


class Shard(_Line):
    """One file: prompts ``first`` to ``first + count - 1`` of the directory."""

    kind: Literal["shard"] = "shard"
    file: str = Field(pattern=r"^captures-\d{5,}\.safetensors$")
    first: int
    count: int = Field(gt=0)
    tokens: int
    bytes: int
    digest: str
    threads: int


class End(_Line):
    """A source whose prompts are all there."""

    kind: Literal["end"] = "end"
    prompts: int


Line: TypeAlias = Annotated[Run | Source | Shard | End, Field(discriminator="kind")]
_LINE: TypeAdapter[Run | Source | Shard | End] = TypeAdapter(Line)


@dataclass(frozen=True)
class Part:
    """The shards of one source."""

    source: Source
    shards: tuple[Shard, ...] = ()
    complete: bool = False

    @property
    def count(self) -> int:
        """Prompts that are there."""
        return sum(shard.count for shard in self.shards)


@dataclass(frozen=True)
class Index:
    """All that a directory holds."""

    run: Run
    parts: tuple[Part, ...]

    @property
    def shards(self) -> tuple[Shard, ...]:
        """All shards, in the order of their prompts."""
        return tuple(shard for part in self.parts for shard in part.shards)

    @property
    def count(self) -> int:
        """Prompts that are there."""
        return sum(part.count for part in self.parts)

    @property
    def complete(self) -> bool:
        """Whether every prompt of every source is there."""
        return all(part.complete for part in self.parts)


# -- reading -------------------------------------------------------------------


def read(folder: Path) -> Index:
    """Read an index; raises UsageError where it is missing, foreign or damaged."""
    path = folder / NAME
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such directory; expected captures")
    if not path.is_file():
        raise UsageError(f"{folder} holds no captures: there is no {NAME} in it")
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    return _put_together(list(_parsed(lines[:-1], path)), path)


def _parsed(lines: Iterable[bytes], path: Path) -> Iterator[Run | Source | Shard | End]:
    for number, line in enumerate(lines, 1):
        try:
            yield _LINE.validate_json(line)
        except ValidationError as error:
            found = error.errors()[0]
            where = ".".join(map(str, found["loc"]))
            raise UsageError(
                f"{path} is damaged, or no index of captures: line {number}: {where} "
                f"{found['msg']}"
            ) from error


def _put_together(lines: list[Run | Source | Shard | End], path: Path) -> Index:
    """Build the index; raises UsageError for lines out of order."""
    if not lines or not isinstance(lines[0], Run):
        raise UsageError(f"{path} is damaged: its first line does not say what ran")
    run = lines[0]
    if run.format != FORMAT:
        raise UsageError(f"{path} is no index of captures, but of {run.format!r}")
    if run.version != VERSION:
        raise UsageError(
            f"{path} has format version {run.version}, this recon reads {VERSION}"
        )
    parts: list[Part] = []
    for number, line in enumerate(lines[1:], 2):
        if not _add(parts, line):
            raise UsageError(
                f"{path} is damaged: line {number} ({line.kind}) does not follow from "
                "the lines above it"
            )
    return Index(run, tuple(parts))


def _add(parts: list[Part], line: Run | Source | Shard | End) -> bool:
    """Add a line to what is known; says whether it fits."""
    last = parts[-1] if parts else None
    if isinstance(line, Source):
        parts.append(Part(line))
        return last is None or last.complete
    if last is None or last.complete or isinstance(line, Run):
        return False
    if isinstance(line, End):
        parts[-1] = Part(last.source, last.shards, complete=True)
        return line.prompts == last.count == last.source.prompts
    parts[-1] = Part(last.source, (*last.shards, line))
    fits = line.first == sum(part.count for part in parts[:-1]) + last.count
    return fits and parts[-1].count <= last.source.prompts


# -- writing -------------------------------------------------------------------


def create(folder: Path, lines: Iterable[Run | Source | Shard | End]) -> None:
    """Put an index in place, whole or not at all; one that is there is replaced."""
    with replacing(folder / NAME) as draft:
        _write(draft, _text(lines), os.O_WRONLY)


def append(folder: Path, lines: Iterable[Run | Source | Shard | End]) -> None:
    """Add lines at the end; where that fails halfway, the half is taken back."""
    path = folder / NAME
    before = path.stat().st_size
    try:
        _write(path, _text(lines), os.O_WRONLY | os.O_APPEND)
    except OSError:
        os.truncate(path, before)
        raise


def drop_torn_line(folder: Path) -> None:
    """Cut off what a kill left of a line, so that the next one begins its own."""
    path = folder / NAME
    whole = path.read_bytes().rfind(b"\n") + 1
    if whole < path.stat().st_size:
        os.truncate(path, whole)
        sync(path)


def _text(lines: Iterable[Run | Source | Shard | End]) -> bytes:
    return "".join(f"{line.model_dump_json()}\n" for line in lines).encode()


def _write(path: Path, text: bytes, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        while text:
            text = text[os.write(handle, text) :]
        os.fsync(handle)
    finally:
        os.close(handle)
