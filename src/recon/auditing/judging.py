"""Is each returned tensor what its name says? One call at a time.

A claim's readings are compared with what the model computed in that very call. For
loose names one convention is chosen for all of a kind: that under which most are right.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from torch import Tensor

from recon.auditing import backward, derived, designs, forms
from recon.auditing.backward import received
from recon.auditing.bench import Bench, Match
from recon.auditing.calls import Call
from recon.auditing.claims import Claim, Reader, Reading
from recon.auditing.judgement import Judgement
from recon.auditing.near import allowance, apart
from recon.auditing.numerals import numerals
from recon.auditing.pieces import REDUCED, piece, reduced
from recon.auditing.quantities import in_words
from recon.auditing.refusing import refuse, unclaimed
from recon.auditing.returned import unstacked
from recon.auditing.wording import words_of
from recon.sites import Site
from recon.trace import Trace

# What is wrong only if the name means what recon takes it for.
_DOUBTFUL = frozenset(
    {"unexplained", "wrong-formula", "wrong-terms", "wrong-shape", "other-run",
     "wrong-tokens", "dropped-batch"}
)  # fmt: skip
_OUTER = (
    "Hook the module that stands at the path when the model runs, not an inner one."
)
# A stack of layers has rows and features, too.
_STACKED = 3


class Judge:
    """Judges the tensors of one call; ``earlier`` are runs whose values may linger.

    ``conventions`` are the ways to read families of loose names that earlier calls
    left open: in eval mode, say, nothing tells what is before a dropout from what is
    after it. Families that are not in it are read anew. ``others`` are earlier calls
    whose gradients may linger.
    """

    def __init__(
        self,
        call: Call,
        reader: Reader,
        earlier: Sequence[tuple[str, Trace]] = (),
        conventions: Mapping[str, tuple[str, ...]] | None = None,
        others: Sequence[tuple[str, Call]] = (),
    ) -> None:
        self._call, self._reader = call, reader
        self._bench = Bench(call, earlier, others)
        self.conventions = dict(conventions or {})

    def judge(self) -> list[Judgement]:
        """Judge every tensor, in the order in which they were returned."""
        families: dict[str, list[tuple[Claim, Tensor]]] = defaultdict(list)
        order: list[str] = []
        for name, tensor in self._tensors():
            claim = self._read(name, tensor)
            families[claim.family].append((claim, tensor))
            order.append(name)
        done: dict[str, Judgement] = {}
        for family, members in families.items():
            for one in self._family(family, members):
                done[one.name] = one
        by: Literal["", "run"] = "run" if self._bench.foreign else ""
        told = [replace(done[name], by=by) for name in order]
        return backward.accumulated(told) if self._bench.gradients else told

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self._call.returned.tensors.items():
            yield from self._layers(name, tensor) or [(name, tensor)]

    def _layers(self, name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
        """Take a tensor apart that stacks layers: one that is not read otherwise."""
        claim, depth = self._reader.read(name), self._bench.depth
        if claim.readings and (claim.strict or "{l}" in claim.family):
            return []
        held = [t[r.site].shape for r in claim.readings
                for t in self._bench.catalogue.current if r.site in t]  # fmt: skip
        if tensor.shape in held or (held and tensor.ndim < _STACKED):
            return []
        for axis in range(min(2, tensor.ndim - 1)):
            layers = list(unstacked(name, tensor, (depth, depth + 1), axis))
            # As many heads or tokens are no layers.
            sure = not axis or any(self._bench.exact(one, ()) for _, one in layers)
            if layers and sure and self._bench.exact(tensor, ()) is None:
                return layers
        return []

    def _read(self, name: str, tensor: Tensor) -> Claim:
        """Read a name, whose promise may hold for some shapes only."""
        claim = self._entry(name, self._reader.read(name))
        shapes = {
            trace[one.site].shape[-2:]
            for one in claim.readings
            for trace in self._bench.catalogue.current
            if claim.shaped and not one.form and one.site in trace
        }
        apart = claim.shaped and tensor.shape[-2:] not in shapes
        kept = (r for r in claim.readings if derived.promised(r) == apart)
        return replace(claim, readings=tuple(kept)) if claim.shaped else claim

    def _entry(self, name: str, claim: Claim) -> Claim:
        """Read an entry of a list as what the list is called, too.

        The list may be of passes, and its number that of a block. Where the list's name
        has one meaning, its entries are of no other site.
        """
        whole = name.rpartition(".")[0]
        if claim.strict or whole not in self._call.returned.lists:
            return claim
        of = self._reader.read(whole)
        readings = tuple(dict.fromkeys((*of.readings, *claim.readings)))
        if of.strict:
            sites = {one.site for one in of.readings}
            kept = tuple(one for one in claim.readings if one.site in sites)
            readings = kept or claim.readings
        return replace(claim, readings=readings)

    # -- one kind of name --------------------------------------------------------

    def _family(
        self, family: str, members: Sequence[tuple[Claim, Tensor]]
    ) -> Iterator[Judgement]:
        matches = [
            {reading: self._match(claim, reading, tensor) for reading in claim.readings}
            for claim, tensor in members
        ]
        claims = [claim for claim, _ in members]
        likeliest = _conventions(claims, matches, self.conventions.get(family, ()))
        if not all(claim.strict for claim in claims):
            self.conventions[family] = likeliest
        # What one of a kind is, the others are meant to be; code that runs several
        # passes may mean another one by a word.
        meant = (
            self._bench.foreign
            and "{l}" in family
            and any(
                reading.convention == likeliest[0] and match is not None
                for found in matches
                for reading, match in found.items()
            )
        )
        for (claim, tensor), found in zip(members, matches, strict=True):
            claim = replace(claim, soft=claim.soft and not meant)
            yield self._one(claim, tensor, found, likeliest[0])

    def _one(
        self,
        claim: Claim,
        tensor: Tensor,
        found: Mapping[Reading, Match | None],
        convention: str,
    ) -> Judgement:
        usable = [
            r for r in claim.readings if claim.strict or r.convention == convention
        ]
        for reading in usable:
            match = found.get(reading)
            if match is not None:
                return self._softly(self._accept(claim, tensor, reading, match))
        blank = Judgement(claim.name, tensor, claim)
        likeliest = [*usable, *claim.readings][:1]
        if not likeliest:
            return unclaimed(self._bench, blank)
        refused = replace(blank, reading=likeliest[0])
        if likeliest[0].backward:
            return backward.refuse(self._bench, refused)
        if any(derived.promised(r) for r in claim.readings):
            return self._by_formula(refused)
        return self._softly(refuse(self._bench, refused))

    def _by_formula(self, blank: Judgement) -> Judgement:
        """Say what a tensor is whose name promises what a formula makes of a site.

        Only if it is known to be something else, it is wrong.
        """
        readings = blank.claim.readings
        if (told := derived.explained(self._bench, blank, readings)) is not None:
            return told
        sites = [r for r in readings if not derived.promised(r)]
        if sites and self._bench.exact(blank.tensor, ()) is not None:
            return self._softly(refuse(self._bench, replace(blank, reading=sites[0])))
        return unclaimed(self._bench, replace(blank, reading=None))

    def _softly(self, one: Judgement) -> Judgement:
        """Call a tensor unclaimed if only words that nobody knows make it wrong."""
        # A key that is but a number may stand for anything of a block.
        bare = not re.search("[A-Za-z]", one.name) or self._of_a_block(one.name)
        number = bare and one.rule in ("wrong-site", "wrong-layer", *_DOUBTFUL)
        # A statistic may be taken over whatever its author likes.
        statistic = one.rule == "wrong-shape" and (
            one.claim.reduced or "norm" in words_of(one.name)
        )
        # In half precision many things are alike up to rounding.
        half = one.tensor.is_floating_point() and one.tensor.dtype.itemsize < 4
        vague = half and one.rule == "wrong-site" and not one.exact
        soft = one.claim.soft and (one.rule in _DOUBTFUL or vague)
        if not (number or statistic or soft):
            return one
        note = ("unclaimed", one.sentence)
        return replace(one, reading=None, rule="", severity=None, notes=(note,))

    def _of_a_block(self, name: str) -> bool:
        """Whether a name is one of several that are kept of a block in a pass."""
        whole = name.rpartition(".")[0]
        entries = self._call.returned.nests.get(whole, 0)
        return "{l}" in numerals(whole).family and entries > len(self._call.passes)

    # -- does it agree with a reading? -------------------------------------------

    def _match(self, claim: Claim, reading: Reading, tensor: Tensor) -> Match | None:
        if reading.backward:
            return backward.match(self._bench, claim, reading, tensor)
        if derived.promised(reading):
            return derived.agrees(self._bench, reading, tensor)
        exact = self._bench.exact(tensor, [r.site for r in claim.readings])
        if exact is not None and not reading.form:
            same = [exact.quantity, *exact.ties]
            for one in self._bench.likeliest(same, reading.site):
                places = [reading.site, received(reading.site)]
                places += [_sent(reading.site)] if one.side else []
                if one.site in places and not one.run and not one.form:
                    return Match(replace(exact, quantity=one))
        if exact is not None and exact.layout.honest and not exact.quantity.run:
            return None
        for trace in self._bench.catalogue.current:
            made = designs.shown(trace, reading.site, reading.form)
            if made is not None and (match := self._bench.close(tensor, made, trace)):
                return match
            if match := self._as_reduced(tensor, reading, trace):
                return replace(match, side=self._bench.side_of(trace, reading.site))
        return self._as_reduced_beside(tensor, reading)

    def _as_reduced_beside(self, tensor: Tensor, reading: Reading) -> Match | None:
        """Compare with means and the like of the other side of an edit."""
        for side in self._bench.sides:
            of = not side.own and side.place == reading.site
            if of and (match := self._as_reduced(tensor, reading, side.trace)):
                return replace(match, side=side.words)
        return None

    def _as_reduced(
        self, tensor: Tensor, reading: Reading, trace: Trace
    ) -> Match | None:
        """Compare with means and the like of the site that the name promises."""
        if reading.site not in trace or reading.form or not tensor.is_floating_point():
            return None
        slim = tensor.squeeze()
        if slim.ndim >= trace[reading.site].squeeze().ndim:
            return None
        places, mask = [reading.site], self._bench.mask
        for made in forms.reductions(trace, mask, places, slim.shape):
            if made.tensor.squeeze().shape == slim.shape:
                gap = apart(made.tensor.squeeze(), slim)
                if gap <= max(allowance(slim.dtype), allowance(made.tensor.dtype)):
                    return Match(gap=gap, form=made.form)
        return None

    def _accept(
        self, claim: Claim, tensor: Tensor, reading: Reading, match: Match
    ) -> Judgement:
        one = Judgement(claim.name, tensor, claim, reading)
        if match.exact is None:
            words = match.form or match.words or "up to rounding"
            words += f", {match.side}" if match.side else ""
            found = in_words(reading.site, words)
            sentence = f"`{claim.name}` is {found} (off {match.gap:.1e})"
            one = replace(one, sentence=sentence, found=found, form=match.form)
            if derived.promised(reading):
                return derived.held_to_token(self._bench, one, match.form)
            if match.form.startswith(REDUCED):
                return beside(self._bench, reduced(self._bench, one, match.form), match)
            library = reading.form and _library_shows(reading)
            return replace(one, notes=(("by-design", sentence),)) if library else one
        one = replace(one, passes=match.exact.quantity.passes)
        return beside(self._bench, piece(self._bench, one, match.exact), match)


def beside(bench: Bench, one: Judgement, match: Match) -> Judgement:
    """Say on which side of an edit a tensor is that is right but for that.

    What a module inside of another makes is not what goes on under the outer's name.
    """
    side = match.side if match.exact is None else match.exact.quantity.side
    known = next((known for known in bench.sides if known.words == side), None)
    if one.rule or known is None or not side:
        return one
    edit = known.edit
    if edit.around and _named(edit.inner, one.name):
        return one
    if edit.around and (one.claim.strict or not edit.put):
        words = f"{one.sentence}, and lacks what that adds"
        cause = f"inside of the {edit.around.split()[0]}"
        return replace(
            one, rule="wrong-terms", sentence=words, mend=_OUTER, notes=(), cause=cause
        )
    return replace(one, notes=(*one.notes, ("edited-here", one.sentence)))


def _named(inner: str, name: str) -> bool:
    """Whether a name says that it is of an inner module."""
    return inner.rpartition(".")[2] in name.split(".")


def _library_shows(reading: Reading) -> bool:
    """Whether a form comes of processed weights; scores and divisors do not."""
    plain = ("raw", "-inf", "scale", "by head", "each head")
    return reading.form not in plain and not reading.backward


def _sent(place: Site) -> Site:
    """Return where a site's value comes from: an edit by a hook leaves it as it was."""
    if place.part == "resid_pre" and place.layer:
        return Site("resid_post", place.layer - 1)
    return place


def _conventions(
    claims: Sequence[Claim],
    matches: Sequence[Mapping[Reading, Match | None]],
    left: tuple[str, ...],
) -> tuple[str, ...]:
    """Return the conventions, of those left, under which most names of a kind fit."""
    score: dict[str, set[int]] = {one: set() for one in left}
    shared = _shared(claims)
    for place, (claim, found) in enumerate(zip(claims, matches, strict=True)):
        for reading in claim.readings:
            if left and reading.convention not in left:
                continue
            if reading.backward and shared and reading.convention not in shared:
                continue
            fitting = score.setdefault(reading.convention, set())
            fitting |= {place} if found.get(reading) is not None else set()
    most = max(map(len, score.values()), default=0)
    if not most:
        return left or tuple(score)[:1] or ("",)
    return tuple(one for one, fitting in score.items() if len(fitting) == most)


def _shared(claims: Sequence[Claim]) -> set[str]:
    """Return the conventions by which each name of a kind can be read.

    Where a name has the number 0, none of its kind counts from 1.
    """
    each = [{one.convention for one in claim.readings} for claim in claims]
    return set.intersection(*each)
