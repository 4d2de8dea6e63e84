"""How a model is to be hooked: an architecture says it, the recorder does it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from torch import Tensor, nn

from recon.facts import Facts
from recon.sites import Site

Port: TypeAlias = Literal["input", "output", "weights"]
Read: TypeAlias = tuple[Site, Port]
Note: TypeAlias = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Any]


@dataclass(frozen=True)
class Tap:
    """One hook: the module, and the sites visible in its input and output.

    ``again`` names what a second firing in one pass means, or the first where what
    ``begin`` returned says that the usual first one is ``spared``. ``note`` returns
    facts of the call, without which the sites that it ``informs`` cannot be derived. A
    module that is not ``required`` may rest in a pass. A firing that ``completes`` a
    stage says that everything up to the end of that block has been computed.
    """

    path: str
    module: nn.Module
    reads: tuple[Read, ...]
    again: tuple[Read, ...] = ()
    spared: Callable[[Any], bool] = lambda start: False
    note: Note | None = None
    informs: tuple[Site, ...] = ()
    required: bool = True
    completes: int | None = None


class Start(Protocol):
    """What is known of a pass when it begins."""

    def tokens(self, place: Site | None = None) -> Sequence[int] | None:
        """Return which tokens the rows of a site are of, or those of the pass.

        None if that is not known.
        """

    def kept(
        self,
        shown: Callable[[Site, Tensor], Tensor | None],
        noted: Callable[[Tensor], Tensor],
    ) -> Start:
        """Return a start that keeps of each tensor what these return for it.

        ``shown`` is for those that the caller handed in instead of a site.
        """

    def tensors(self) -> Iterator[Tensor]:
        """Yield every tensor that it keeps alive."""


@dataclass(frozen=True)
class Passage:
    """A module on the way through a model: the site it is given, and the one it makes.

    ``path`` is that from the root.
    """

    path: str
    module: nn.Module
    takes: Site | None
    gives: Site


@dataclass(frozen=True)
class Plan:
    """The taps of one model, and how the facts of a pass are had.

    ``begin`` is called with the root's arguments before the pass and ``end`` after
    it; ``facts`` turns both, and the taps' notes by path, into Facts, later (of one
    stage only, if one is named: -1 the embeddings, then the blocks, then the head), and
    ``present`` gives a captured tensor the shape that the vocabulary promises.
    """

    root: nn.Module
    taps: tuple[Tap, ...]
    begin: Callable[[tuple[Any, ...], dict[str, Any]], Start]
    end: Callable[[], Any]
    facts: Callable[[Any, Any, Mapping[str, list[Any]], int | None], Facts]
    present: Callable[[Site, Tensor], Tensor]

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every site that some tap can see."""
        return tuple(s for tap in self.taps for s, _ in (*tap.reads, *tap.again))
