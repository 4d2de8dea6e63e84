"""Adding to a directory of captures, so that a kill at any moment costs no capture.

Two steps make a shard part of the captures: its file gets its name, and its line is
added to the index. A kill before the second leaves a file that the index does not name;
the next writer removes it, and captures those prompts again. No other order of events
exists, so nothing is half there, lost or there twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Literal, TypeAlias

from filelock import FileLock, Timeout

from recon.errors import UsageError
from recon.files import UNFINISHED
from recon.storage import index, shards
from recon.storage.index import End, Index, Run, Shard, Source
from recon.storage.shards import Captured

Mode: TypeAlias = Literal["resume", "accumulate", "overwrite"]
MODES: tuple[Mode, ...] = ("resume", "accumulate", "overwrite")
SHARD_BYTES = 64 * 2**20
_LOCK = ".lock"
_SHARD = re.compile(r"captures-(\d{5,})\.safetensors")


class Writer:
    """Adds the captures of one source of prompts to a directory.

    ``done`` of its prompts are there already; ``add`` takes those that follow. What is
    held in memory is at most ``shard_bytes``, and one prompt more. Only one process
    at a time writes to a directory. Every method raises UsageError where the disk
    refuses. It is entered once.
    """

    def __init__(
        self,
        folder: Path,
        run: Run,
        source: Source,
        *,
        mode: Mode = "resume",
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        if mode not in MODES:
            raise UsageError(f"mode={mode!r}: expected one of {', '.join(MODES)}")
        if shard_bytes < 1:
            raise UsageError(f"shard_bytes={shard_bytes}: expected a number above 0")
        self.folder, self._run, self._source = folder, run, source
        self._mode, self._limit = mode, shard_bytes
        self._held: list[Captured] = []
        self._held_bytes = 0
        self._stored = self._before = self._number = 0
        self._complete = False
        self._pending: list[Run | Source] = []
        self._lock = FileLock(folder / _LOCK, timeout=0)

    def __enter__(self) -> Writer:
        """Lock the directory, see what is there, and clear away what a kill left."""
        with self._disk():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._require_ours()
            try:
                self._lock.acquire()
            except Timeout as error:
                raise UsageError(
                    f"{self.folder}: another process is writing to it"
                ) from error
        try:
            with self._disk():
                self._begin()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the directory free; what was added and not yet written is dropped."""
        self._drop()
        self._lock.release()

    @property
    def done(self) -> int:
        """Prompts of the source that are stored, or held to be."""
        return self._stored + len(self._held)

    @property
    def complete(self) -> bool:
        """Whether the directory says that it has all prompts of the source."""
        return self._complete

    def add(self, prompt: Captured) -> None:
        """Take the next prompt; a full shard is written."""
        self._held.append(prompt)
        self._held_bytes += prompt.nbytes
        if self._held_bytes >= self._limit:
            self.flush()

    def flush(self) -> None:
        """Write what is held as a shard, and then its line."""
        if not self._held:
            return
        with self._disk():
            first = self._before + self._stored
            entry = shards.write(self.folder, self._number, first, self._held)
            self._commit([entry])
        self._number += 1
        self._stored += len(self._held)
        self._drop()

    def finish(self) -> None:
        """Write what is held, and that all prompts are there."""
        self.flush()
        if self._complete:
            return
        with self._disk():
            self._commit([End(prompts=self._stored)])
        self._complete = True

    def _drop(self) -> None:
        self._held.clear()
        self._held_bytes = 0

    # -- what is there ---------------------------------------------------------

    def _require_ours(self) -> None:
        """Raise UsageError for a directory with someone else's files in it."""
        if (self.folder / index.NAME).exists():
            return
        foreign = sorted(p.name for p in self.folder.iterdir() if not _is_rest(p.name))
        if foreign:
            raise UsageError(
                f"{self.folder} holds {foreign[0]} and no {index.NAME}; expected an "
                "empty or a new directory, or one with captures"
            )

    def _begin(self) -> None:
        """Find out where to go on."""
        there = (self.folder / index.NAME).exists()
        if self._mode == "overwrite" and there:
            # The old captures go when the first new ones are there.
            self._number = 1 + max(self._numbers(), default=-1)
            self._pending = [self._run, self._source]
            return
        if there:
            self._go_on()
        else:
            index.create(self.folder, [self._run, self._source])
        self._clear({shard.file for shard in index.read(self.folder).shards})

    def _go_on(self) -> None:
        index.drop_torn_line(self.folder)
        found = index.read(self.folder)
        for shard in found.shards:
            shards.require_size(self.folder, shard)
        _require_same(found.run, self._run, self.folder)
        self._number = 1 + max((_number(s.file) for s in found.shards), default=-1)
        for place, part in enumerate(found.parts):
            if part.source.same(self._source):
                self._before = sum(p.count for p in found.parts[:place])
                self._stored, self._complete = part.count, part.complete
                return
        self._require_may_add(found)
        self._before = found.count
        index.append(self.folder, [self._source])

    def _require_may_add(self, found: Index) -> None:
        last = found.parts[-1]
        if not last.complete:
            raise UsageError(
                f"{self.folder} holds {last.count} of {last.source.prompts} prompts of "
                f"{last.source.name}; finish those first, or overwrite"
            )
        if self._mode != "accumulate":
            raise UsageError(
                f"{self.folder} holds captures of {last.source.name}, and not of "
                f"{self._source.name}; add to them with mode accumulate, or overwrite"
            )

    # -- the disk --------------------------------------------------------------

    def _commit(self, lines: list[Shard | End]) -> None:
        if not self._pending:
            index.append(self.folder, lines)
            return
        index.create(self.folder, [*self._pending, *lines])
        self._pending = []
        self._clear({line.file for line in lines if isinstance(line, Shard)})

    def _clear(self, named: set[str]) -> None:
        """Remove shards that the index does not name, and halves of files."""
        for path in self.folder.iterdir():
            unnamed = _SHARD.fullmatch(path.name) and path.name not in named
            if unnamed or UNFINISHED.fullmatch(path.name):
                path.unlink()

    def _numbers(self) -> Iterable[int]:
        names = (path.name for path in self.folder.iterdir())
        return [_number(name) for name in names if _SHARD.fullmatch(name)]

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UsageError(
                f"{self.folder} cannot be written: {error.strerror or error}; what the "
                "index names is kept"
            ) from error


def _number(file: str) -> int:
    found = _SHARD.fullmatch(file)
    assert found is not None
    return int(found[1])


def _is_rest(name: str) -> bool:
    """Whether a kill before the index was there may have left such a file."""
    return name == _LOCK or UNFINISHED.fullmatch(name) is not None


def _require_same(found: Run, wanted: Run, folder: Path) -> None:
    """Raise UsageError where captures of two kinds would stand in one directory."""
    # Another dtype or another model has other weights, too, and says more.
    for name in sorted(Run.model_fields, key=lambda name: name == "weights"):
        here, there = getattr(wanted, name), getattr(found, name)
        if here != there:
            raise UsageError(
                f"{folder} holds captures with {name} {_short(there)}, this run has "
                f"{_short(here)}; choose another directory, or overwrite"
            )


def _short(value: object) -> str:
    words = ", ".join(value) if isinstance(value, dict) else str(value)
    return words if len(words) < 60 else f"{words[:57]}..."
