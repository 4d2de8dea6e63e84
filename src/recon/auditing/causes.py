"""One finding a cause: what is told of many tensors, and of many runs, is told once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, zip_longest
from typing import TypeAlias

from recon.auditing.effects import finding
from recon.auditing.findings import Finding
from recon.auditing.judgement import Judgement
from recon.auditing.rules import rule
from recon.sites import Site

# What a finding says, too: with one row nothing tells a row from the batch.
_SAYS_TOO = {
    "grows": ("keys-vary", "wrong-count"),
    "hooks-left": ("unpicklable",),
    "hooks-left-after-error": ("unpicklable",),
    "forward-replaced": ("unpicklable",),
    "weights-changed": ("changes-result",),
    "changes-some-rows": ("changes-result",),
}
# What the entries of earlier calls are, in a list that grows.
_STALE = frozenset({"other-run", "unexplained"})
_ORDER = {"error": 0, "warning": 1, "note": 2}
_MOST_SHOWN = 3
# A rule, and what is the same in every block about a claim and what was found.
_Key: TypeAlias = tuple[str, ...]


def once(told: Iterable[Finding]) -> list[Finding]:
    """Return findings, the worst first; what others bring with them, they name."""
    first: dict[tuple[str, ...], Finding] = {}
    for one in told:
        claim = one.rule.code.startswith("RC1") or one.rule.name == "overwritten"
        key = (one.rule.code, *(one.places if claim else ()))
        first.setdefault(key, one)
    first = {key: one for key, one in first.items() if not _grown(one, first.values())}
    codes = {f.rule.name: f.rule.code for f in first.values()}
    hence = {
        cause: [name for name in _SAYS_TOO[cause] if name in codes]
        for cause in codes.keys() & _SAYS_TOO.keys()
    }
    said = {name for names in hence.values() for name in names}
    kept = [
        _with_hence(f, [f"{codes[name]} {name}" for name in hence.get(f.rule.name, [])])
        for f in first.values()
        if f.rule.name not in said
    ]
    return sorted(kept, key=lambda f: (_ORDER[f.severity], f.rule.code))


def _grown(one: Finding, told: Iterable[Finding]) -> bool:
    """Whether what is wrong is old entries of a list only, which is told to grow."""
    grown = [p for f in told if f.rule.name == "grows" for p in f.places if p]
    inside = [any(p.startswith(f"{name}.") for name in grown) for p in one.places]
    return one.rule.name in _STALE and bool(inside) and all(inside)


def _with_hence(cause: Finding, told: list[str]) -> Finding:
    """Name the findings that a cause brings with it, in its evidence."""
    if not told:
        return cause
    return replace(cause, evidence={**cause.evidence, "hence": ", ".join(told)})


def grouped(judged: Iterable[tuple[str, Judgement]]) -> Iterator[Finding]:
    """Tell one cause once: a rule, and what was taken for what, in all blocks."""
    groups: dict[_Key, list[tuple[str, Judgement, str]]] = defaultdict(list)
    for run, one in judged:
        told = [(one.rule, one.sentence)] if one.rule else one.notes
        for name, sentence in told:
            groups[(name, *_pattern(name, one))].append((run, one, sentence))
    for keys in _permuted(groups):
        name = keys[0][0]
        distinct: dict[str, tuple[str, Judgement, str]] = {}
        for member in chain(*zip_longest(*(groups[key] for key in keys))):
            if member is not None:
                distinct.setdefault(member[1].name, member)
        (run, first, words), *others = distinct.values()
        for _, next_one, _ in others[: len(keys) - 1]:
            words += f"; `{next_one.name}` is {next_one.found}"
        more = [m[1] for m in others[len(keys) - 1 :]]
        yield finding(
            name,
            words + _more(name, first, more),
            places=list(distinct),
            run=run,
            severity=first.severity,
            sites=tuple(str(m[1].reading or "") for m in distinct.values()),
            found=tuple(m[1].found for m in distinct.values()),
            evidence=_evidence(first, others),
            mend=first.mend,
        )


def _evidence(
    first: Judgement, others: Sequence[tuple[str, Judgement, str]]
) -> dict[str, float | int | str]:
    """Return the figures of the first tensor, and what follows from any of them."""
    hence = {key: value for _, one, _ in others for key, value in one.evidence.items()
             if key == "hence"}  # fmt: skip
    return {**hence, **first.evidence}


def _permuted(groups: Iterable[_Key]) -> Iterator[Sequence[_Key]]:
    """Put together what stands in each other's places, as q and k that are swapped."""
    keys = dict.fromkeys(groups)
    wrong = {k[1]: k for k in keys if k[0] == "wrong-site" and len(k) == 3}
    while keys:
        first = next(iter(keys))
        cycle, key = [first], _belongs_to(first, wrong)
        while key in keys and key not in cycle:
            cycle.append(key)
            key = _belongs_to(key, wrong)
        told = cycle if key == first else [first]
        for one in told:
            del keys[one]
        yield told


def _belongs_to(key: _Key, wrong: Mapping[str, _Key]) -> _Key:
    """Return the group whose names promise what the tensors of this one are."""
    if key not in wrong.values():
        return ()
    return wrong.get(key[2].removeprefix("h.+0."), ())


def _more(name: str, first: Judgement, others: list[Judgement]) -> str:
    """Count the other tensors of a cause; name their blocks, if they differ."""
    if not others:
        return ""
    if name != "wrong-layer" or {_away(one) for one in others} == {_away(first)}:
        return f" (and {len(others)} more so)"
    shown = ", ".join(f"`{one.name}` is {one.found}" for one in others[:_MOST_SHOWN])
    left = len(others) - _MOST_SHOWN
    return f"; {shown}" + (f" (and {left} more)" if left > 0 else "")


def _away(one: Judgement) -> str:
    return "" if one.reading is None else _relative(one.found, one.reading.site)


def _pattern(name: str, one: Judgement) -> tuple[str, ...]:
    """Return what is the same in every block about a claim and what was found."""
    if name == "by-design" and one.reading is not None:
        return (one.reading.form,)
    if one.reading is None or rule(name).severity == "note":
        return (one.claim.family,)
    if one.cause:
        return (one.cause,)
    place = one.reading.site
    if name == "wrong-layer":
        return (place.part,)
    # The terms of a sum are found in either order.
    terms = _relative(one.found, place).split(" plus ")
    return (place.part, " plus ".join(sorted(terms)))


def _relative(found: str, place: Site) -> str:
    """Write block numbers as distances from the claimed block."""
    words = []
    for word in found.split():
        parts = word.split(".")
        if parts[0] == "h" and len(parts) > 2 and parts[1].isdigit():
            away = int(parts[1]) - (place.layer or 0)
            word = ".".join(["h", f"{away:+d}", *parts[2:]])
        words.append(word)
    return " ".join(words)
