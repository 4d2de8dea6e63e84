"""Reading a directory of captures: nothing is loaded before it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from torch import Tensor

from recon.errors import CaptureError
from recon.listed import listed
from recon.sites import Site, site
from recon.storage import index
from recon.storage.index import Run, Shard, Source
from recon.storage.shards import IDS, OpenShard, require_size

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr


def load_captures(path: str | Path) -> Captures:
    """Return the captures that ``recon capture`` wrote into a directory.

    Those of a run that was killed are there, too, as far as it came. Raises UsageError
    for a directory that holds none, and for a shard that is missing or cut off; a shard
    whose bytes were changed is found when it is read, or by ``check``.
    """
    folder = Path(path)
    found = index.read(folder)
    for shard in found.shards:
        require_size(folder, shard)
    return Captures(folder, found)


class StoredPrompt(Mapping[Site | str, Tensor]):
    """The captures of one prompt: a mapping of sites to tensors, read on demand.

    Tensors have the shapes of ``recon sites`` with B = 1, and are views of the file; to
    write into one changes it in memory, and the file never.
    """

    def __init__(
        self, number: int, sites: tuple[Site, ...], shard: OpenShard, about: Any
    ) -> None:
        self.number, self.sites = number, sites
        self.text: str | None = about["text"]
        self._found: int = about["found"]
        self._shard = shard

    @cached_property
    def ids(self) -> Tensor:
        """The tokens that ran, int64, 1 T."""
        return self._shard.tensor(self.number, IDS)

    @property
    def cropped(self) -> int:
        """How many tokens at the end were left out, to fit the model's context."""
        return self._found - self.ids.shape[1]

    def __getitem__(self, name: Site | str) -> Tensor:
        """Return a site's tensor; raises as ``Captures`` does for a site."""
        return self._shard.tensor(self.number, str(_held(name, self.sites)))

    def __iter__(self) -> Iterator[Site]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def to_xarray(self) -> xr.Dataset:
        """Return an xarray Dataset of all sites, by the letters of their shapes."""
        from recon.storage.tables import dataset

        return dataset(self)

    def __repr__(self) -> str:
        return (
            f"StoredPrompt({self.number}, {self.ids.shape[1]} tokens, "
            f"{len(self)} sites)"
        )


@dataclass(frozen=True, eq=False)
class Column(Sequence[Tensor]):
    """One site of every prompt: a sequence of tensors, read one by one."""

    captures: Captures
    site: Site

    def __len__(self) -> int:
        return len(self.captures)

    @overload
    def __getitem__(self, place: int) -> Tensor: ...
    @overload
    def __getitem__(self, place: slice) -> list[Tensor]: ...
    def __getitem__(self, place: int | slice) -> Tensor | list[Tensor]:
        """Return the tensor of one prompt by number, or of several."""
        if isinstance(place, slice):
            return [self[number] for number in range(len(self))[place]]
        return self.captures[place][self.site]

    def __iter__(self) -> Iterator[Tensor]:
        return (prompt[self.site] for prompt in self.captures)

    def to_pandas(self) -> pd.DataFrame:
        """Return a DataFrame with a row a token: prompt, position, id, then values."""
        from recon.storage.tables import frame

        return frame(self)

    def to_xarray(self) -> xr.DataArray:
        """Return an xarray DataArray with the tokens of all prompts along one axis."""
        from recon.storage.tables import array

        return array(self)

    def __repr__(self) -> str:
        return f"Column({self.site}, {len(self)} prompts)"


class Captures(Sequence[StoredPrompt]):
    """The captures of many prompts on disk; ``recon.load_captures`` opens them.

    ``captures[7]`` is a prompt, ``captures["h.3.attn.q"]`` a site of every prompt, and
    a loop goes over the prompts in order. One shard at a time is mapped into memory.
    """

    def __init__(self, folder: Path, found: index.Index) -> None:
        self.folder, self._index = folder, found
        self._open: OpenShard | None = None

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """The sites that every prompt has, in order of computation."""
        return tuple(sorted(map(site, self._index.run.sites)))

    @property
    def run(self) -> Run:
        """What ran: model, revision, versions, dtypes."""
        return self._index.run

    @property
    def sources(self) -> tuple[Source, ...]:
        """Where the prompts came from."""
        return tuple(part.source for part in self._index.parts)

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The files, in the order of their prompts."""
        return self._index.shards

    @property
    def complete(self) -> bool:
        """Whether every prompt of every source is there."""
        return self._index.complete

    def __len__(self) -> int:
        return self._index.count

    @overload
    def __getitem__(self, place: int) -> StoredPrompt: ...
    @overload
    def __getitem__(self, place: slice) -> list[StoredPrompt]: ...
    @overload
    def __getitem__(self, place: str | Site) -> Column: ...
    def __getitem__(
        self, place: int | slice | str | Site
    ) -> StoredPrompt | list[StoredPrompt] | Column:
        """Return a prompt by number, several by a slice, or a site of every prompt.

        Raises UnknownSiteError for a name that is no site, CaptureError (a KeyError
        too) for a site that was not captured, IndexError for a number out of range.
        """
        if isinstance(place, str | Site):
            return Column(self, _held(place, self.sites))
        if isinstance(place, slice):
            return [self[number] for number in range(len(self))[place]]
        number = range(len(self))[place]
        for entry in self._index.shards:
            if number < entry.first + entry.count:
                return self._prompt(number, self._shard(entry))
        raise AssertionError(number)

    def __iter__(self) -> Iterator[StoredPrompt]:
        for entry in self._index.shards:
            shard = self._shard(entry)
            for number in range(entry.first, entry.first + entry.count):
                yield self._prompt(number, shard)

    def check(self) -> Captures:
        """Read everything; raises UsageError for the first shard that is damaged."""
        for entry in self._index.shards:
            OpenShard(self.folder, entry).check()
        return self

    def to_pandas(self) -> pd.DataFrame:
        """Return a DataFrame with a row a prompt: number, text, tokens, cropped."""
        from recon.storage.tables import prompts

        return prompts(self)

    def _prompt(self, number: int, shard: OpenShard) -> StoredPrompt:
        about = shard.prompts[number - shard.entry.first]
        return StoredPrompt(number, self.sites, shard, about)

    def _shard(self, entry: Shard) -> OpenShard:
        held = self._open
        if held is None or held.entry != entry:
            held = self._open = OpenShard(self.folder, entry)
        return held

    def __reduce__(self) -> tuple[Any, ...]:
        # A map of a file cannot be sent to another process; it is opened there again.
        return Captures, (self.folder, self._index)

    def __repr__(self) -> str:
        state = "" if self.complete else ", unfinished"
        return (
            f"Captures({str(self.folder)!r}, {len(self)} prompts, "
            f"{len(self.sites)} sites{state})"
        )


class SiteNotStoredError(CaptureError, KeyError):
    """A directory of captures was asked for a site that it does not hold."""

    def __init__(self, wanted: Site, sites: Sequence[Site]) -> None:
        self.site = wanted
        self.text = f"{wanted} was not captured; these were: {listed(sites, 4)}"
        super().__init__(self.text)

    def __str__(self) -> str:
        return self.text


def _held(name: Site | str, sites: tuple[Site, ...]) -> Site:
    wanted = site(name)
    if wanted not in sites:
        raise SiteNotStoredError(wanted, sites)
    return wanted
