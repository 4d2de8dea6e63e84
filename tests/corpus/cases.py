"""What a case of the corpus is, and how one is registered.

A case is a capture function as people write them, and the model it is tried on. The
right ones live in ``right``, edits and early stops in ``edits``, the wrong ones in
``wrong``, each under the row of the fault catalogue that it shows, or ``new``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from torch import nn

Capture: TypeAlias = Callable[..., Any]


@dataclass(frozen=True)
class Fault:
    """Rules any of which names what is wrong, and the sites where it must show.

    ``sites`` is a glob over what the names promise; None asks for no site.
    """

    rules: frozenset[str]
    sites: str | None = None

    def named_by(self, finding: Any) -> bool:
        """Whether a finding of an audit tells this fault, at a right place."""
        if finding.rule.code not in self.rules:
            return False
        return self.sites is None or any(
            fnmatchcase(place, self.sites) for place in finding.sites
        )


@dataclass(frozen=True, eq=False)
class Case:
    """A capture function, and the model that it is tried on.

    ``maker`` says that the function makes the capture: one with a store of its own
    begins anew in each audit. ``prepare`` is done to the model first; ``model`` holds
    options of the fixture ``make_model``. ``row`` is that of the fault catalogue; of a
    right case one that is easily taken for a fault, or that is worth no more than a
    note.
    """

    title: str
    function: Capture
    maker: bool = False
    headed: bool = True
    prepare: Callable[[nn.Module], object] | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    row: str = ""

    @property
    def name(self) -> str:
        return self.function.__name__

    def fresh(self) -> Capture:
        """Return the capture function, with an empty store if it has one."""
        return self.function() if self.maker else self.function


@dataclass(frozen=True, eq=False)
class Right(Case):
    """A correct capture; ``notes`` are codes of notes that it deserves."""

    notes: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class Edit(Case):
    """Honest captures of an edited or stopped pass; ``effects`` are expected codes.

    ``found`` is what the capture beside an edit must be told to be.
    """

    effects: frozenset[str] = frozenset()
    found: str = ""


@dataclass(frozen=True, eq=False)
class Wrong(Case):
    """A wrong capture, or one that harms the model: a row, and its faults."""

    faults: tuple[Fault, ...] = ()


_FIELDS = frozenset({"maker", "headed", "prepare", "row"})


def _about(options: Mapping[str, Any]) -> dict[str, Any]:
    """Part fields of a case from options of its model."""
    fields = {name: value for name, value in options.items() if name in _FIELDS}
    model = {name: value for name, value in options.items() if name not in _FIELDS}
    return {**fields, "model": model}


RIGHT: list[Right] = []
EDITS: list[Edit] = []
WRONG: list[Wrong] = []


def right(title: str, *, notes: Collection[str] = (), **about: Any) -> Any:
    """Register a correct capture function."""

    def register(function: Capture) -> Capture:
        RIGHT.append(Right(title, function, notes=frozenset(notes), **_about(about)))
        return function

    return register


def edit(title: str, *, effects: Collection[str] = ("RC204",), **about: Any) -> Any:
    """Register a function that edits or stops the pass, and puts everything back."""

    def register(function: Capture) -> Capture:
        told = {"found": about.pop("found", ""), "effects": frozenset(effects)}
        EDITS.append(Edit(title, function, **told, **_about(about)))
        return function

    return register


def wrong(
    *,
    row: str,
    rules: Collection[str],
    sites: str | None = None,
    also: Iterable[tuple[Collection[str], str | None]] = (),
    **about: Any,
) -> Any:
    """Register a wrong capture function; ``also`` are further faults of the same."""
    faults = [(rules, sites), *also]

    def register(function: Capture) -> Capture:
        told = tuple(Fault(frozenset(codes), where) for codes, where in faults)
        title = (function.__doc__ or "").strip().partition("\n")[0]
        WRONG.append(Wrong(title, function, row=row, faults=told, **_about(about)))
        return function

    return register
