"""Is a tensor what a formula, which its name promises, makes of a site? If not, what?

A tensor is right if it equals the formula in any honest way: over some axes, for one
row or token, with axes in another order. It is wrong only if it is known to be the
formula done wrongly, or of another site; whatever else it is, nobody knows what its
author meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, product

from torch import Tensor

from recon.auditing.bench import Bench, Match
from recon.auditing.claims import Reading
from recon.auditing.derivations import DERIVATIONS, Same
from recon.auditing.judgement import Judgement
from recon.auditing.quantities import Quantity
from recon.sites import Site
from recon.trace import Trace

_WORDS = {"B": "row", "T": "token", "Q": "token", "H": "head"}
_AVERAGED = frozenset("BTH")
# Formulas that speak of a token themselves.
_OF_TOKENS = frozenset(f for f in DERIVATIONS if f.startswith("weight on"))
# Cached is what is no larger than this.
_MOST_KEPT = 2**23
# Of so few numbers some piece of something is equal by chance.
_FEWEST = 4


def promised(reading: Reading) -> bool:
    """Whether a reading is a formula's."""
    return reading.form in DERIVATIONS


def agrees(bench: Bench, reading: Reading, tensor: Tensor) -> Match | None:
    """Say how a tensor is what a formula makes of the site that its name promises."""
    formula = DERIVATIONS[reading.form]
    for trace in bench.catalogue.current:
        for one in _right(bench, trace, reading.form, reading.site):
            if (words := _is(bench, tensor, one, formula.same)) is not None:
                return Match(form=f"{one.form}{words}")
    return None


def held_to_token(bench: Bench, one: Judgement, words: str) -> Judgement:
    """Say if a right formula was taken of another token than its name says."""
    taken, wanted = re.search(r"\btoken (\d+)", words), one.claim.token
    assert one.reading is not None
    if taken is None or not wanted or bench.padded or one.reading.form in _OF_TOKENS:
        return one
    last = bench.call.situation.inputs["input_ids"].shape[1] - 1
    if int(taken[1]) == (0 if wanted == "first" else last):
        return one
    said = f"{one.sentence}, not the {wanted} token, as its name says"
    return replace(one, rule="wrong-tokens", sentence=said)


def explained(
    bench: Bench, one: Judgement, readings: Sequence[Reading]
) -> Judgement | None:
    """Say what a tensor is that is not what its formula makes, if that is known."""
    if not one.tensor.is_floating_point() or not bool(one.tensor.isfinite().all()):
        return None
    for rule, made, same in _candidates(bench, readings):
        if (words := _is(bench, one.tensor, made, same)) is not None:
            found = f"{made.label}{words}"
            said = f"`{one.name}` is {found} (up to rounding), not {one.reading}"
            return replace(one, rule=rule, sentence=said, found=found)
    return _a_site(bench, one, readings)


def _a_site(
    bench: Bench, one: Judgement, readings: Sequence[Reading]
) -> Judgement | None:
    """Say that a tensor is the site that the formula should have been applied to."""
    claimed = [r.site for r in readings if promised(r)]
    exact = bench.exact(one.tensor, claimed)
    if exact is None or exact.quantity.run or exact.quantity.form:
        return None
    if exact.quantity.site not in claimed or len(claimed) < len(readings):
        return None
    said = f"`{one.name}` is {exact.words}, not {one.reading}"
    label = exact.quantity.label
    return replace(one, rule="wrong-formula", sentence=said, found=label)


def _candidates(
    bench: Bench, readings: Sequence[Reading]
) -> Iterator[tuple[str, Quantity, Same]]:
    """Yield the rule that is broken, and what breaks it, the likeliest first."""
    for trace in bench.catalogue.current:
        held = [r for r in readings if promised(r) and r.site in trace]
        yield from _elsewhere(bench, trace, held)
        for reading in held:
            formula = DERIVATIONS[reading.form]
            for made in formula.wrong(trace, reading.site):
                yield "wrong-formula", made, formula.odd


def _elsewhere(
    bench: Bench, trace: Trace, readings: Sequence[Reading]
) -> Iterator[tuple[str, Quantity, Same]]:
    """Yield the right formula of other sites."""
    tried: set[tuple[str, Site]] = set()
    for reading in readings:
        formula = DERIVATIONS[reading.form]
        for place in formula.places(trace, reading.site):
            if (reading.form, place) in tried:
                continue
            tried.add((reading.form, place))
            alike = place.part == reading.site.part
            for made in _right(bench, trace, reading.form, place):
                yield "wrong-layer" if alike else "wrong-site", made, formula.same


def _right(bench: Bench, trace: Trace, form: str, place: Site) -> Sequence[Quantity]:
    """Return what a formula rightly makes of a site, computed once unless large."""
    key = (id(trace), form, place)
    if key in bench.derived:
        return bench.derived[key]
    made = list(DERIVATIONS[form].right(trace, place)) if place in trace else []
    if sum(one.tensor.numel() for one in made) <= _MOST_KEPT:
        bench.derived[key] = made
    return made


# -- comparing -------------------------------------------------------------------


def _is(bench: Bench, found: Tensor, made: Quantity, same: Same) -> str | None:
    """Say of which piece or mean of a quantity a tensor is equal to it; None if not."""
    if not found.is_floating_point():
        return None
    mine, known = found.detach().cpu().squeeze(), made.tensor.detach().cpu()
    allowed = bench.allowed(mine, known)
    for words, one in arranged(known, made.axes, mine):
        if same(mine, one, allowed):
            return words
    return None


def arranged(
    known: Tensor, axes: Sequence[str], found: Tensor
) -> Iterator[tuple[str, Tensor]]:
    """Yield what of a quantity has the shape of a tensor, with words for what it is.

    The whole, its samples one after the other, means over rows, tokens and heads, and
    single ones of these; axes may be in another order, axes of length 1 aside.
    """
    names = [name for name, n in zip(axes, known.shape, strict=True) if n != 1]
    known, shape = known.squeeze(), list(found.shape)
    fewer = known.ndim - found.ndim
    if fewer >= 0 and known.numel() == found.numel():
        if fewer and shape[-1:] == list(known.shape[-1:]):
            yield "", known.reshape(shape)
        elif fewer == 0 and (turned := _ordered(known, shape)) is not None:
            yield "", turned
    for gone in combinations(range(known.ndim), fewer) if fewer > 0 else ():
        left = [n for axis, n in enumerate(known.shape) if axis not in gone]
        if sorted(left) != sorted(shape):
            continue
        for words, one in _reduced(known, names, gone, found.numel() >= _FEWEST):
            if (turned := _ordered(one, shape)) is not None:
                yield words, turned


def _reduced(
    known: Tensor, names: Sequence[str], gone: Sequence[int], pieces: bool
) -> Iterator[tuple[str, Tensor]]:
    """Yield means over some axes, then with single indices for some of the means."""
    every = [_ways(names[axis], known.shape[axis], pieces) for axis in gone]
    for ways in product(*every):
        one, words = known, []
        for axis, way in sorted(zip(gone, ways, strict=True), reverse=True):
            name = _WORDS.get(names[axis], names[axis])
            one = one.mean(axis) if way is None else one.select(axis, way)
            words.append(f"{name}s" if way is None else f"{name} {way}")
        kind = "averaged over " if all(w is None for w in ways) else "at "
        yield f", {kind}{' and '.join(words[::-1])}", one


def _ways(name: str, length: int, pieces: bool) -> list[int | None]:
    mean = [None] if name in _AVERAGED else []
    single = range(length) if pieces and name in _WORDS else ()
    return [*mean, *single]


def _ordered(known: Tensor, shape: Sequence[int]) -> Tensor | None:
    """Put axes into the order of a shape; equally long ones keep theirs."""
    left, order = list(enumerate(known.shape)), []
    for length in shape:
        place = next((n for n, one in enumerate(left) if one[1] == length), None)
        if place is None:
            return None
        order.append(left.pop(place)[0])
    return known.permute(order)
