"""What one run recorded: plain, frozen data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor

from recon import saving
from recon.display import Displayed
from recon.errors import CaptureError, UnknownSiteError, UsageError
from recon.facts import Facts
from recon.ops import Activation, Attention, Slice
from recon.sites import Site, site

Origin = Literal["captured", "view", "derived", "given"]

_PIECES = {
    "attn.q": ("attn.qkv", 0, 3),
    "attn.k": ("attn.qkv", 1, 3),
    "attn.v": ("attn.qkv", 2, 3),
    "cross.k": ("cross.kv", 0, 2),
    "cross.v": ("cross.kv", 1, 2),
}
_SOURCES = {part: (source,) for part, (source, _, _) in _PIECES.items()} | {
    "attn.scores": ("attn.qkv",),
    "attn.pattern": ("attn.qkv",),
    "cross.scores": ("cross.q", "cross.kv"),
    "cross.pattern": ("cross.q", "cross.kv"),
}


def sources(wanted: Site) -> tuple[Site, ...]:
    """Return the captured sites that ``wanted`` can be had from, itself excluded."""
    return tuple(wanted.at(part) for part in _SOURCES.get(wanted.part, ()))


@dataclass(frozen=True, eq=False)
class Trace(Displayed, Mapping[Site | str, Tensor]):
    """The tensors of one forward pass, and the facts needed to check them.

    ``trace["h.3.attn.q"]`` accepts every vocabulary's names. q, k and v are views of
    what c_attn returned; scores, and the pattern of a fused kernel, are computed on
    demand (``origin`` tells). ``run`` counts the passes of one recorder from 0.

    With ``positions=`` it holds the rows of those tokens only: ``positions`` are those
    that the pass has, ``absent`` the numbers that it has not, ``fewer`` those of sites
    without a row for each of them.

    Two traces are equal only if they are one: compare with ``recon.diff``.
    """

    run: int
    tensors: Mapping[Site, Tensor]
    facts: Facts
    wanted: frozenset[Site] | None = None
    positions: tuple[int, ...] | None = None
    absent: tuple[int, ...] = ()
    fewer: Mapping[Site, tuple[int, ...]] = field(default_factory=dict)
    altered: str = ""
    never_ran: tuple[str, ...] = ()
    repeated: tuple[str, ...] = ()
    failure: str | None = None
    thread: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", MappingProxyType(dict(self.tensors)))

    @property
    def complete(self) -> bool:
        """Whether the pass ran to its end."""
        return self.failure is None

    def __getitem__(self, name: Site | str) -> Tensor:
        """Return the tensor at a site; shapes stand in ``recon.sites``.

        Raises UnknownSiteError for a name that is no site, CaptureError (a KeyError
        too) for a site that this trace does not hold and cannot derive.
        """
        wanted = site(name)
        if self.origin(wanted) is None:
            raise SiteNotHeldError(wanted, self)
        return self._at(wanted)

    def _at(self, place: Site) -> Tensor:
        """Return the tensor at a site that is held, asked for or not."""
        if place in self.tensors:
            return self.tensors[place]
        given = self.facts.given.get(place)
        return self._derive(place) if given is None else given

    def __contains__(self, name: object) -> bool:
        try:
            return isinstance(name, str | Site) and self.origin(name) is not None
        except UnknownSiteError:
            return False

    # One tensor does not equal another in one word, so that a mapping's own == raises.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __iter__(self) -> Iterator[Site]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Every site this trace can show, in order of computation."""
        views = {
            place.at(part)
            for place in self.tensors
            for part, needed in _SOURCES.items()
            if place.part in needed
        }
        known = {*self.tensors, *self.facts.given, *views}
        return tuple(sorted(s for s in known if self.origin(s) is not None))

    def positions_at(self, name: Site | str) -> tuple[int, ...] | None:
        """Return which tokens the rows at a site are of; None without ``positions=``.

        Those are ``positions``, but for logits of a pass that was told to make them for
        some tokens only (``logits_to_keep``).
        """
        return self.fewer.get(site(name), self.positions)

    def captured(self, name: Site | str) -> Tensor:
        """Return the tensor at a site, unless it had to be derived.

        What is derived, compared with its own derivation, proves nothing. Raises
        CaptureError (a KeyError too) for that, and for what the trace does not hold.
        """
        wanted = site(name)
        if self.origin(wanted) == "derived":
            raise SiteNotHeldError(wanted, self)
        return self[wanted]

    def origin(self, name: Site | str) -> Origin | None:
        """Say whether a site was captured, is a view of one, or is derived.

        ``given`` is a tensor that the caller handed in (``inputs_embeds``); None means
        that the trace does not hold the site, or was not asked for it.
        """
        wanted = site(name)
        if self.wanted is not None and wanted not in self.wanted:
            return None
        return self._origin(wanted)

    def _origin(self, wanted: Site) -> Origin | None:
        if wanted in self.tensors:
            return "captured"
        if wanted in self.facts.given:
            return "given"
        if (
            wanted.part in _PIECES
            and wanted.at(_PIECES[wanted.part][0]) in self.tensors
        ):
            return "view"
        return "derived" if self._derivable(wanted) else None

    def _derivable(self, wanted: Site) -> bool:
        if wanted.part in _PIECES or wanted.part not in _SOURCES:
            return False
        if self.positions is not None:
            return False
        call = self.attention(wanted)
        if call is None or (call.dropout and wanted.part.endswith("pattern")):
            return False
        needed = [
            s for s in sources(wanted) if s.part != "cross.kv" or call.keys is None
        ]
        return all(s in self.tensors for s in needed)

    def attention(self, near: Site) -> Attention | None:
        """Return what the self- or cross-attention at a site received."""
        return self.facts.attention.get(near.at(near.part.split(".")[0] + "_out"))

    def _derive(self, wanted: Site) -> Tensor:
        if wanted.part in _PIECES:
            source, piece, parts = _PIECES[wanted.part]
            return Slice(piece, parts, self.facts.heads)(
                self.tensors[wanted.at(source)]
            )
        call = self.attention(wanted)
        assert call is not None
        kind = wanted.part.split(".")[0]
        q = self._at(wanted.at(f"{kind}.q"))
        if call.keys is None:
            k = self._at(wanted.at(f"{kind}.k"))
        else:
            # With dtype= captures are converted, and the contents of caches are not.
            k = call.keys.to(q.dtype)
        with torch.no_grad(), self.arithmetic():
            return (
                call.scores(q, k)
                if wanted.part.endswith("scores")
                else call.pattern(q, k)
            )

    def arithmetic(self) -> AbstractContextManager[object]:
        """Return the autocast context under which this pass ran."""
        env = self.facts.environment
        kind = torch.device(env.device).type
        if not torch.amp.is_autocast_available(kind):
            return nullcontext()
        return torch.autocast(kind, env.autocast, enabled=env.autocast is not None)

    def plain_arithmetic(self) -> AbstractContextManager[object]:
        """Return a context in which autocast changes nothing that a check computes."""
        kind = torch.device(self.facts.environment.device).type
        if not torch.amp.is_autocast_available(kind):
            return nullcontext()
        return torch.autocast(kind, enabled=False)

    @property
    def nbytes(self) -> int:
        """Bytes of memory this trace keeps alive; shared storages count once.

        With what was noted of the run: masks, the contents of caches, token ids. The
        weights of the model, to which a trace refers, are not counted.
        """
        return held_bytes([*self.tensors.values(), *self.facts.tensors()])

    def replace(self, name: Site | str, tensor: Tensor) -> Trace:
        """Return a trace that differs at one site; this one stays as it is."""
        return replace(self, tensors={**self.tensors, site(name): tensor})

    def __copy__(self) -> Trace:
        """Return a trace of the same tensors."""
        return replace(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Trace:
        """Return a trace with copies of its tensors; the weights stay the model's."""
        for _, weight, _ in self.facts.weights_at_run:
            memo[id(weight)] = weight
        for maker in self.facts.makers.values():
            if isinstance(maker, Activation):
                memo[id(maker.module)] = maker.module
        # torch copies no tensor that has a graph.
        for tensor in (*self.tensors.values(), *self.facts.tensors()):
            if tensor.requires_grad and not tensor.is_leaf:
                memo[id(tensor)] = tensor.clone()
        return replace(
            self,
            tensors=deepcopy(dict(self.tensors), memo),
            facts=deepcopy(self.facts, memo),
        )

    def __reduce__(self) -> NoReturn:
        raise UsageError(
            "a trace refers to the weights of its model, and is not pickled; write it "
            "with trace.save(path), and read it with recon.load_trace(path, model)"
        )

    def save(self, path: str | Path) -> None:
        """Write this run to a safetensors file that ``recon.load_trace`` reads.

        Written under a temporary name and renamed. Raises UsageError if it cannot be,
        or if the trace holds no numbers.
        """
        require_numbers(self)
        wanted = self.wanted
        about = {
            "run": self.run,
            "wanted": None if wanted is None else [str(s) for s in sorted(wanted)],
            "positions": self.positions,
            "absent": self.absent,
            "fewer": {str(place): rows for place, rows in self.fewer.items()},
            "altered": self.altered,
            "never_ran": self.never_ran,
            "repeated": self.repeated,
            "failure": self.failure,
        }
        saving.write(path, self.tensors, self.facts, about)

    def __repr__(self) -> str:
        state = "" if self.complete else f", incomplete: {self.failure}"
        return f"Trace(run={self.run}, {len(self)} sites, {self.nbytes:,} bytes{state})"


class SiteNotHeldError(CaptureError, KeyError):
    """A trace was asked for a site that it does not hold."""

    def __init__(self, wanted: Site, trace: Trace) -> None:
        self.site = wanted
        if not trace.complete:
            why = f"the pass did not finish ({trace.failure})"
        elif trace.wanted is not None and wanted not in trace.wanted:
            why = "capture was asked for other sites (sites=)"
        elif trace.positions_at(wanted) == ():
            why = _no_position(wanted, trace)
        elif trace.positions is not None and wanted.part in _SOURCES:
            why = "it cannot be derived from a subset of the positions"
        elif trace.origin(wanted) == "derived":
            why = "it was not captured, only derived from what should make it"
        else:
            why = "this pass does not compute it, or its inputs were not captured"
        self.text = f"{wanted} is not in the trace of run {trace.run}: {why}"
        super().__init__(self.text)

    def __str__(self) -> str:
        return self.text


def require_numbers(trace: Trace) -> None:
    """Raise UsageError for a trace of the meta device, which computes nothing."""
    for place, tensor in trace.tensors.items():
        if tensor.is_meta:
            raise UsageError(
                f"{place} is on the meta device, and holds no numbers; capture a model "
                'on another, without device="meta"'
            )


def absent_positions(trace: Trace) -> str:
    """Say which positions were asked for that a pass does not have."""
    asked = f"positions={list(trace.absent)} asked for"
    tokens = trace.facts.shape[1] if len(trace.facts.shape) > 1 else "fewer"
    return f"{asked}, but this pass has {tokens} tokens"


def _no_position(wanted: Site, trace: Trace) -> str:
    if trace.absent and not trace.positions:
        return absent_positions(trace)
    if not trace.positions:
        return "positions= names no token of this pass"
    asked = f"positions={list(trace.positions)} asked for"
    return f"{asked}, but the pass made no {wanted} of them (see logits_to_keep)"


def held_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the distinct storages behind ``tensors``.

    What has no address, on the meta device for one, takes no memory.
    """
    storages = (tensor.untyped_storage() for tensor in tensors)
    sizes = {one.data_ptr(): one.nbytes() for one in storages}
    return sum(size for address, size in sizes.items() if address)
