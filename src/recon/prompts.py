"""Prompts of a file, one by one: text, JSON lines, Parquet, Hugging Face datasets.

Nothing is held but the prompt at hand, so that a file may be of any size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from recon.errors import UsageError

FIELD = "text"
_ROWS = 256

Words: TypeAlias = str | Sequence[int]
Numbered: TypeAlias = tuple[str, Words]


@dataclass(frozen=True)
class Prompts:
    """Where prompts come from; ``read(n)`` yields them from number ``n`` on.

    A prompt is text, or its token ids; with it comes where it stands, in words.
    ``digest`` is the SHA-256 of all of them, ``total`` their number.
    """

    name: str
    digest: str
    total: int
    read: Callable[[int], Iterator[Numbered]]


def listed(rows: Sequence[Words], name: str) -> Prompts:
    """Return prompts that are in memory, as ``name``; raises UsageError for none."""
    if not rows:
        raise UsageError(f"{name}: holds no prompt")
    plain = [row if isinstance(row, str) else list(row) for row in rows]
    digest = hashlib.sha256(json.dumps(plain).encode()).hexdigest()

    def read(start: int) -> Iterator[Numbered]:
        for number, row in enumerate(plain[start:], start):
            yield (name if len(plain) == 1 else f"{name}, prompt {number}"), row

    return Prompts(name, digest, len(plain), read)


def prompts_of(path: str | Path, field: str = FIELD) -> Prompts:
    """Return the prompts of a file, by its suffix, or of a saved dataset's folder.

    ``.jsonl`` holds a text, or an object with a ``field`` of text or of token ids, a
    line; ``.parquet`` and datasets have a column of that name; every other file is text
    with a prompt a line. Blank lines are no prompts. Raises UsageError for a file that
    cannot be read; for what stands in it, when that is reached.
    """
    path = Path(path)
    if path.is_dir():
        return _dataset(path, field)
    if not path.is_file():
        found = "is a pipe or a device" if path.exists() else "no such file"
        raise UsageError(f"{path}: {found}; expected a file of prompts")
    if path.suffix.lower() == ".parquet":
        return _parquet(path, field)
    parse = _json_line(field) if path.suffix.lower() in (".jsonl", ".ndjson") else _text
    digest, total = _scanned(path)
    if not total:
        raise UsageError(f"{path} holds no prompt; expected one prompt a line")

    def read(start: int) -> Iterator[Numbered]:
        for number, line in islice(_lines(path), start, None):
            where = f"{path}, line {number}"
            yield where, parse(line, where)

    return Prompts(str(path), digest, total, read)


# -- lines ---------------------------------------------------------------------


def _scanned(path: Path) -> tuple[str, int]:
    """Return the SHA-256 of a file, and how many lines of it are not blank."""
    digest, total = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            for line in file:
                digest.update(line)
                total += bool(line.strip())
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    return digest.hexdigest(), total


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, counted from 1 as an editor does."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line


def _text(line: bytes, where: str) -> str:
    try:
        # Editors of one system begin a file with a mark that is no part of the text.
        return line.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: is no UTF-8 text: {error.reason}") from error


def _json_line(field: str) -> Callable[[bytes, str], Words]:
    def parse(line: bytes, where: str) -> Words:
        try:
            row = json.loads(_text(line, where))
        except ValueError as error:
            raise UsageError(f"{where}: is no JSON: {error}") from error
        return _words(row.get(field) if isinstance(row, dict) else row, row, where)

    def _words(value: Any, row: Any, where: str) -> Words:
        if value is None and isinstance(row, dict):
            raise _no_field(field, list(row), where)
        return _checked(value, where)

    return parse


# -- tables --------------------------------------------------------------------


def _parquet(path: Path, field: str) -> Prompts:
    pq = _library("pyarrow.parquet", "pyarrow", path)
    try:
        file = pq.ParquetFile(path)
        columns = list(file.schema_arrow.names)
        total = file.metadata.num_rows
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as Parquet: {error}") from error
    if field not in columns:
        raise _no_field(field, columns, str(path))

    def read(start: int) -> Iterator[Numbered]:
        rows = (
            value
            for batch in pq.ParquetFile(path).iter_batches(_ROWS, columns=[field])
            for value in batch.column(0).to_pylist()
        )
        yield from _numbered(rows, start, str(path))

    return Prompts(str(path), _scanned(path)[0], _some(total, path), read)


def _dataset(path: Path, field: str) -> Prompts:
    datasets = _library("datasets", "datasets", path)
    try:
        data = datasets.load_from_disk(str(path))
    except (OSError, ValueError, FileNotFoundError) as error:
        raise UsageError(
            f"{path}: expected a file of prompts, or a folder made by "
            f"Dataset.save_to_disk: {error}"
        ) from error
    if not isinstance(data, datasets.Dataset):
        raise UsageError(f"{path}: holds several splits; name the folder of one")
    if field not in data.column_names:
        raise _no_field(field, data.column_names, str(path))

    def read(start: int) -> Iterator[Numbered]:
        # From its place on, nothing before it is read.
        rows = (data[number][field] for number in range(start, len(data)))
        for number, value in enumerate(rows, start):
            where = f"{path}, row {number}"
            yield where, _checked(value, where)

    digest = hashlib.sha256(data._fingerprint.encode()).hexdigest()
    return Prompts(str(path), digest, _some(len(data), path), read)


def _numbered(rows: Iterator[Any], start: int, name: str) -> Iterator[Numbered]:
    for number, value in enumerate(islice(rows, start, None), start):
        where = f"{name}, row {number}"
        yield where, _checked(value, where)


def _library(module: str, package: str, path: Path) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise UsageError(
            f"{path}: reading it needs {package}, which is not installed: "
            f"pip install {package}"
        ) from error


def _some(total: int, path: Path) -> int:
    if not total:
        raise UsageError(f"{path} holds no prompt")
    return total


def _checked(value: Any, where: str) -> Words:
    """Return text or token ids; raises UsageError for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(type(one) is int for one in value):
        return value
    raise UsageError(
        f"{where}: expected text or a list of token ids, found {type(value).__name__}"
    )


def _no_field(field: str, found: Sequence[str], where: str) -> UsageError:
    return UsageError(
        f"{where}: there is no field {field!r}; found {', '.join(map(str, found))} "
        "(choose with --field)"
    )
