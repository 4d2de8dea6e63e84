"""What the name of a capture promises: its honest readings.

A name in one of the vocabularies (recon, Hugging Face, TransformerLens) has one
reading, sometimes with a second form. A loose name (``layer_3``, ``attn_3``)
has several; which of them the code means is decided later, for all layers at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from recon.auditing import backward_names, vocabularies, wording
from recon.auditing.backward_names import Named
from recon.auditing.formula_words import FORMULA_WORDS, formulas_meant, only_formulas
from recon.auditing.numerals import Numerals, numerals
from recon.auditing.parts import parts_meant
from recon.auditing.quantities import GRADIENT, in_words
from recon.auditing.vocabularies import NAMES, Names
from recon.errors import UnknownSiteError, UsageError
from recon.sites import Site, site

_WRAPPERS = re.compile(
    r"^(?:(?:module|_orig_mod|base_model|model|_model|_module|gpt2|net|self)\.)+"
)
# The form of logits that are made of the state which follows these words.
LENS = "made of ln_f of "
_AS_STATE = "index into hidden_states"
_ALONG = "along the stream"


@dataclass(frozen=True)
class Reading:
    """One thing that a name may mean: a site, in a form, by a convention.

    ``convention`` is the same for all layers of one kind of name, so that a set of
    names can be read in one way: a part and what the number counts from.
    """

    site: Site
    form: str = ""
    convention: str = ""

    def __str__(self) -> str:
        words = {"normalized": " before weight and bias", "scale": "'s divisor"}
        if self.form in words:
            return f"{self.site}{words[self.form]}"
        return in_words(self.site, self.form)

    @property
    def backward(self) -> bool:
        """Whether this is of a backward pass: a gradient, or one times its value."""
        return self.form.startswith(GRADIENT)


@dataclass(frozen=True)
class Claim:
    """A name and its readings, the most natural first; none: it promises nothing.

    ``family`` is the name without its number; ``strict`` names have one meaning,
    ``soft`` ones hold words that recon does not know: they may mean something else.
    ``token`` is ``last`` or ``first`` for a loose name that promises that token,
    ``reduced`` the kind of mean, sum or maximum that it promises, ``over`` what it is
    to be taken over: rows, tokens, heads. What is ``shaped`` is promised of a tensor
    with the shape of the site only, and nothing of others. ``beyond`` is a site that
    only a deeper model has. ``counted`` are the row, token and head that a loose name
    gives the number of.
    """

    name: str
    readings: tuple[Reading, ...]
    family: str
    strict: bool = False
    soft: bool = False
    token: str = ""
    reduced: str = ""
    over: str = ""
    shaped: bool = False
    beyond: Site | None = None
    counted: Mapping[str, int] = field(default_factory=dict)


class Reader:
    """Reads names for a model of ``depth`` blocks, by the user's own claims first.

    Names of gradients promise something only if the code was seen to go ``backward``.
    """

    def __init__(
        self,
        depth: int,
        tied_last: bool,
        claims: Mapping[str, str] | None = None,
        names: Names = "auto",
        context: str = "",
        backward: bool = False,
    ) -> None:
        if names not in NAMES:
            raise UsageError(f"names={names!r}: expected one of {', '.join(NAMES)}")
        self._depth, self._tied, self._names = depth, tied_last, names
        self._backward = backward
        self._context = frozenset(wording.words_of(context)) - wording.STATES
        self._own = [_template(k, v, depth) for k, v in (claims or {}).items()]

    def read(self, name: str) -> Claim:
        """Return what a name promises.

        The elements of a list are named ``name.0``, ``name.1`` and so on.
        """
        family = numerals(name).family
        for pattern, target in self._own:
            if found := pattern.fullmatch(name):
                wanted = target.format(**found.groupdict())
                return Claim(name, (Reading(site(wanted)),), family, strict=True)
        gradient = backward_names.named(name, self._context) if self._backward else None
        if gradient is not None:
            claims = [self._plain(rest) for rest in gradient.rests]
            plain = self._plain(name) if gradient.plain else None
            return _of_gradient(name, family, gradient, claims, plain)
        return self._plain(name)

    def _plain(self, name: str) -> Claim:
        """Read a name that is of no gradient."""
        numbers = numerals(name)
        family = numbers.family
        promises = vocabularies.read(name, self._names)
        if promises is not None:
            family = vocabularies.family(name) or family
            read = tuple(self._promised(promises))
            beyond = promises[0][0] if promises and not read else None
            return Claim(name, read, family, strict=True, beyond=beyond)
        if (deep := self._beyond(_WRAPPERS.sub("", name))) is not None:
            return Claim(name, (), family, strict=True, beyond=deep)
        if strict := self._strict(_WRAPPERS.sub("", name)):
            return Claim(name, strict, family, strict=True)
        if self._names != "auto":
            return Claim(name, (), family)
        readings = tuple(self._loose(name, numbers))
        words = wording.words_of(name)
        told = (w for w in words if not w.isdigit() and w not in numbers.nouns)
        soft = numbers.others or not wording.KNOWN.issuperset(told)
        read = tuple(dict.fromkeys(readings))
        return Claim(
            name,
            read,
            family,
            soft=soft,
            token=wording.promised_token(words),
            reduced=wording.promised_reduction(words),
            over=wording.promised_axis(words),
            shaped=wording.of_anything(frozenset(words)),
            counted=numbers.counted,
        )

    def exists(self, place: Site) -> bool:
        """Whether the model has a block of this number."""
        return place.layer is None or 0 <= place.layer < self._depth

    # -- names with one meaning ------------------------------------------------

    def _promised(self, promises: Sequence[vocabularies.Promise]) -> Iterator[Reading]:
        for place, forms in promises:
            if place.layer == vocabularies.LAST:
                place = Site(place.part, self._depth - 1)
            if self.exists(place):
                yield from (Reading(place, form) for form in forms)

    def _strict(self, name: str) -> tuple[Reading, ...]:
        if name.split(".")[-1] == "last_hidden_state":
            return (Reading(self.last),)
        if (entry := _CACHE.search(name)) is not None:
            held = Site(f"attn.{'kv'[int(entry[2])]}", int(entry[1]))
            return (Reading(held),) if self.exists(held) else ()
        readings: list[Reading] = []
        for spelling in _spellings(name):
            if spelling.removeprefix("transformer.") == "ln_f.input":
                return (Reading(Site("resid_post", self._depth - 1)),)
            if spelling == "lm_head.input":
                return (Reading(Site("ln_f")),)
            if (state := _STATE.fullmatch(spelling)) is not None:
                number = int(state[1])
                place = self.state(number if number >= 0 else self._depth + 1 + number)
                return (Reading(place),) if place is not None else ()
        for spelling, spelt in self._spelt(name):
            if self.exists(spelt):
                readings += (Reading(spelt), *_other_forms(spelling, spelt))
        readings += [Reading(_SHORT[name])] if name in _SHORT else []
        # h.3.mlp.out is a site of its own, and the output of the module h.3.mlp.
        return tuple(dict.fromkeys(readings))

    def _beyond(self, name: str) -> Site | None:
        """Return the site of a name that only a deeper model has."""
        places = (place for _, place in self._spelt(name))
        return next((place for place in places if not self.exists(place)), None)

    def _spelt(self, name: str) -> Iterator[tuple[str, Site]]:
        """Yield the sites that a name may spell in the vocabularies asked for."""
        for spelling in _spellings(name):
            try:
                place = site(spelling)
            except UnknownSiteError:
                continue
            if vocabularies.speaks(self._names, spelling, place):
                yield spelling, place

    @property
    def last(self) -> Site:
        """The site of the last entry of hidden_states, and of last_hidden_state."""
        return Site("ln_f") if self._tied else Site("resid_post", self._depth - 1)

    def state(self, number: int) -> Site | None:
        """Return the site of an entry of hidden_states."""
        if 0 <= number < self._depth:
            return Site("resid_pre", number)
        return self.last if number == self._depth else None

    # -- loose names -----------------------------------------------------------

    def _loose(self, name: str, numbers: Numerals) -> Iterator[Reading]:
        words, layer = wording.words_of(name), numbers.layer
        bare = frozenset(w for w in words if not w.isdigit()) - numbers.nouns
        if layer is not None:
            bare -= wording.PLACES
            bare -= wording.TOKEN if "tokens" in numbers.counted else frozenset()
            if layer < 0:
                states = bare >= {"hidden", "states"}
                layer += self._depth + states
        bare |= {"neuron"} if "neurons" in numbers.counted else frozenset()
        promised = formulas_meant(words)
        for form, parts in promised:
            yield from self._formula(form, parts or self._of(bare), layer)
        anything = wording.of_anything(bare) and "lens" not in bare
        if only_formulas(promised, words) and not anything:
            return
        if "lens" in bare:
            yield from () if layer is None else self._lens(layer)
            return
        if wording.of_anything(bare):
            if layer is not None and bare & wording.WEIGHTS:
                yield from self._numbered(name, layer, bare, ("attn.pattern",))
            return
        parts = parts_meant(bare)
        if parts == ("ln_f",) and bare & wording.IN:
            last = Site("resid_post", self._depth - 1)
            yield Reading(last, convention="before ln_f")
            return
        if bare & wording.FINAL and layer is None and "resid_post" in parts:
            yield Reading(Site("resid_post", self._depth - 1), convention="last block")
            if not bare & wording.RESIDUAL:
                yield Reading(self.last, convention="last state")
            return
        if bare <= wording.WEAK and "heads" in numbers.counted:
            parts = wording.HEADS
        elif bare <= wording.WEAK:
            # Captures of a function mlp_outputs may well be called layer_3.
            first = () if bare else ("resid_post",)
            parts = (*parts, *first, *parts_meant(self._context))
        if parts == ("attn.qkv",) and (part := _PART.search(name)):
            parts = (f"attn.{'qkv'[int(part[1])]}",)
        if layer is None:
            yield from (
                Reading(Site(part), convention=part)
                for part in parts
                if Site(part).depth[0] != 1
            )
            return
        yield from self._numbered(name, layer, bare, parts)

    def _numbered(
        self, name: str, number: int, bare: frozenset[str], parts: Sequence[str]
    ) -> Iterator[Reading]:
        """Yield what a number may count: blocks from 0 or from 1, or hidden states."""
        states = not parts or "resid_post" in parts
        if bare & {"hidden", "hiddens", "hs"} and bare & {"states", "state", "hs"}:
            yield from self._as_state(number)
        for start in (0, 1):
            for part in parts:
                place = Site(part, number - start) if _in_block(part) else Site(part)
                if self.exists(place):
                    yield Reading(place, convention=f"{part} from {start}")
                    for other in _other_forms(name, place):
                        yield Reading(
                            place, other.form, f"{part} from {start} {other.form}"
                        )
        if states and (parts or bare & wording.STATES or not bare):
            yield from self._as_state(number)
            yield from self._along_stream(number)

    def _of(self, bare: frozenset[str]) -> tuple[str, ...]:
        """Return the parts that a name means beside the words for a formula."""
        return parts_meant(bare - FORMULA_WORDS) or ("resid_post",)

    def _formula(
        self, form: str, parts: Sequence[str], layer: int | None
    ) -> Iterator[Reading]:
        """Yield the sites that a formula may be of, by a number as blocks are counted.

        Without one a rollout is that of all blocks, and a CKA always is.
        """
        for part in parts:
            if not _in_block(part):
                # What a number counts beside predictions may be anything.
                yield Reading(Site(part), form, f"{form} of {part}")
            elif layer is not None:
                for start in (0, 1):
                    place = Site(part, layer - start)
                    if self.exists(place):
                        yield Reading(place, form, f"{form} of {part} from {start}")
            elif form.startswith(("rollout", "linear CKA")):
                yield Reading(Site(part, self._depth - 1), form, form)
        if "resid_post" in parts and layer is not None:
            state = self.state(layer)
            if state is not None and state != Site("ln_f"):
                yield Reading(state, form, f"{form} of hidden_states")

    def _lens(self, number: int) -> Iterator[Reading]:
        """Yield the logits that a lens makes of a state, by ln_f and the unembedding.

        The logit lens is nostalgebraist's (2020): interpreting GPT.
        """
        for start in (0, 1):
            place = Site("resid_post", number - start)
            if self.exists(place):
                yield self._through(place, f"lens from {start}")
        if (state := self.state(number)) is not None:
            yield self._through(state, "lens of hidden_states")

    def _through(self, state: Site, convention: str) -> Reading:
        last = state in (Site("ln_f"), Site("resid_post", self._depth - 1))
        form = "" if last else f"{LENS}{state}"
        return Reading(Site("logits"), form, convention)

    def _as_state(self, number: int) -> Iterator[Reading]:
        place = self.state(number)
        if place is not None:
            yield Reading(place, convention=_AS_STATE)

    def _along_stream(self, number: int) -> Iterator[Reading]:
        """Yield a number that counts what blocks get, and what the last one returns."""
        last = number == self._depth
        place = Site("resid_post", number - 1) if last else Site("resid_pre", number)
        if self.exists(place):
            yield Reading(place, convention=_ALONG)


def _of_gradient(
    name: str, family: str, said: Named, claims: Sequence[Claim], plain: Claim | None
) -> Claim:
    """Return what the name of a gradient promises, as the rest of it was read."""
    if plain is not None and plain.strict:
        return plain
    strict = [one for one in claims if one.strict and one.readings][:1]
    chosen = strict or [*claims]
    # Blocks have outputs; an entry of hidden_states is called otherwise.
    output = "post" in wording.words_of(name)
    readings = [
        Reading(one.site, said.form, f"{said.form}, {one.convention}")
        for claim in chosen
        for one in claim.readings
        if not one.form and not (output and one.convention in (_AS_STATE, _ALONG))
    ]
    readings = [*(plain.readings if plain else ()), *readings]
    first = chosen[0] if chosen else Claim(name, (), family)
    return replace(
        first,
        name=name,
        family=family,
        readings=tuple(dict.fromkeys(readings)),
        soft=all(one.soft for one in chosen),
        token="" if said.objective else first.token,
        reduced="" if said.objective else first.reduced,
        over="" if said.objective else first.over,
        shaped=False,
    )


def _in_block(part: str) -> bool:
    return Site(part, 0).depth[0] == 1


# A short name of TransformerLens that is a site of its own here.
_SHORT = {"embed": Site("wte")}
# The last of several numbers is that of q, k or v: qkv.3.0.
_PART = re.compile(r"\d\D*[._]([0-2])$")
_CACHE = re.compile(r"past_key_values?\.(\d+)\.([01])$")
_STATE = re.compile(r"hidden_states?[.\[](-?\d+)\]?")


def _other_forms(name: str, place: Site) -> Iterator[Reading]:
    """Yield what a library of that name shows instead, by design."""
    if place.part in ("attn.scores", "cross.scores"):
        yield Reading(place, "-inf")
        yield Reading(place, "raw")


def _spellings(name: str) -> Iterator[str]:
    """Yield a name as it is and without what libraries put around module paths."""
    # torchlens numbers the calls of a module: transformer.h.3.mlp:1.
    dotted = re.sub(r"\[(\d+)\]", r".\1", re.sub(r":\d+$", "", name))
    yield dotted
    for ending in (".output.0", ".output", ".out", "_output", ".outputs", ".output[0]"):
        if dotted.endswith(ending):
            yield dotted.removesuffix(ending)
    for ending in (".inputs", ".input.0", ".inputs.0", ".inputs.0.0", "_input", ".in"):
        if dotted.endswith(ending):
            yield f"{dotted.removesuffix(ending)}.input"
    if dotted.startswith("gpt2."):
        yield dotted.removeprefix("gpt2.")


# -- the user's own claims ------------------------------------------------------


def _template(name: str, target: str, depth: int) -> tuple[re.Pattern[str], str]:
    """Turn ``layer_{l}`` into a pattern; checks that the target names a site."""
    try:
        site(target.replace("{l}", "0"))
    except UnknownSiteError as error:
        raise UsageError(f"claim {name}={target}: {error}") from error
    if "{l}" in target and "{l}" not in name:
        raise UsageError(f"claim {name}={target}: {{l}} stands in the site only")
    return _pattern(name), target


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\{l\}", r"(?P<l>\d+)", 1))


def concern(claims: Iterable[str], names: Iterable[str]) -> bool:
    """Whether any of the claims is about one of the names."""
    patterns = [_pattern(claim) for claim in claims]
    return any(pattern.fullmatch(name) for name in names for pattern in patterns)
