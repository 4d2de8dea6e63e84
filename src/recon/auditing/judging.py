"""Is each returned tensor what its name says? One call at a time.

A claim's readings are compared with what the model computed in that very call. For
loose names one convention is chosen for all of a kind: that under which most are right.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from recon import gpt2
from recon.auditing import designs, quantities
from recon.auditing.calls import Call
from recon.auditing.claims import Claim, Reader, Reading
from recon.auditing.identify import Catalogue, Exact
from recon.auditing.near import Near, allowance, apart, merged
from recon.auditing.passes import alike, changed_values, same_bits
from recon.auditing.quantities import Quantity
from recon.auditing.returned import unstacked
from recon.auditing.rules import Severity
from recon.certify import check as certified
from recon.ops import Add, Same, split_heads
from recon.sites import Site
from recon.trace import Trace, sources

# Words in a name that say that less than everything is stored, on purpose.
_ON_PURPOSE = frozenset(
    {"row", "first", "example", "sample", "prompt", "single", "one", "b0", "batch0"}
)
# As many equal values are no accident, and what is further away than this is not near.
_SOME, _FAR = 0.02, 0.5
# What is wrong only if the name means what recon takes it for.
_DOUBTFUL = frozenset(
    {"unexplained", "wrong-formula", "wrong-terms", "wrong-shape", "other-run",
     "wrong-tokens", "dropped-batch"}
)  # fmt: skip
_ANOTHER_ORDER = "the rows in another order"
# No certified bound of an honest computation is as wide as this.
_HOPELESS = 0.05
# Another implementation, whose passes recon did not see, rounds differently all along.
_FOREIGN = 16.0


@dataclass(frozen=True, eq=False)
class Judgement:
    """What is said of one tensor: right or wrong, by which rule, and why.

    ``notes`` are (rule, sentence) pairs that hold for a right tensor, too; ``exact``
    says that it is something bit for bit, ``by`` what captures from elsewhere were
    judged by: the model's own ``run``, or ``certify``.
    """

    name: str
    tensor: Tensor
    claim: Claim
    reading: Reading | None = None
    rule: str = ""
    sentence: str = ""
    found: str = ""
    severity: Severity | None = None
    evidence: Mapping[str, float | int | str] = field(default_factory=dict)
    notes: tuple[tuple[str, str], ...] = ()
    exact: bool = False
    by: Literal["", "certify", "run"] = ""

    @property
    def right(self) -> bool:
        """Whether the tensor is what its name says."""
        return not self.rule


def _shape(call: Call) -> tuple[int, ...]:
    return tuple(call.situation.inputs["input_ids"].shape)


@dataclass(frozen=True, eq=False)
class _Match:
    """How a tensor agrees with one reading."""

    exact: Exact | None = None
    gap: float = 0.0
    words: str = ""
    form: str = ""


class Judge:
    """Judges the tensors of one call; ``earlier`` are calls whose values may linger.

    ``conventions`` fixes how families of loose names are read, as an earlier call
    showed; families that are not in it are read anew.
    """

    def __init__(
        self,
        call: Call,
        reader: Reader,
        earlier: Sequence[tuple[str, Trace]] = (),
        conventions: Mapping[str, str] | None = None,
    ) -> None:
        self._call, self._reader = call, reader
        self._foreign = not call.passes
        # What the model computes by itself is an answer, too: code may run it in
        # pieces. The pass of the whole batch comes first: formulas are applied to it.
        ours = sorted(call.passes, key=lambda one: one.facts.shape != _shape(call))
        passes = [("", one) for one in (*ours, call.clean) if one is not None]
        if passes and passes[0][1].facts.shape != _shape(call):
            passes.reverse()
        mask = call.situation.inputs.get("attention_mask")
        self._catalogue = Catalogue([*passes, *earlier], mask)
        self._mask = mask
        self.conventions = dict(conventions or {})

    def judge(self) -> list[Judgement]:
        """Judge every tensor, in the order in which they were returned."""
        families: dict[str, list[tuple[Claim, Tensor]]] = defaultdict(list)
        order: list[str] = []
        for name, tensor in self._tensors():
            claim = self._reader.read(name)
            families[claim.family].append((claim, tensor))
            order.append(name)
        done: dict[str, Judgement] = {}
        for family, members in families.items():
            for one in self._family(family, members):
                done[one.name] = one
        by: Literal["", "run"] = "run" if self._foreign else ""
        return [replace(done[name], by=by) for name in order]

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        depth = self._depth
        for name, tensor in self._call.returned.tensors.items():
            claim = self._reader.read(name)
            layers = list(unstacked(name, tensor, (depth, depth + 1)))
            if layers and not claim.readings and self._exact(tensor, ()) is None:
                yield from layers
            else:
                yield name, tensor

    @property
    def _depth(self) -> int:
        traces = self._catalogue.current
        return traces[0].facts.depth if traces else 0

    # -- one kind of name --------------------------------------------------------

    def _family(
        self, family: str, members: Sequence[tuple[Claim, Tensor]]
    ) -> Iterator[Judgement]:
        matches = [
            {reading: self._match(claim, reading, tensor) for reading in claim.readings}
            for claim, tensor in members
        ]
        chosen = self.conventions.get(family)
        if chosen is None:
            chosen = _convention([claim for claim, _ in members], matches)
            if not all(claim.strict for claim, _ in members):
                self.conventions[family] = chosen
        for (claim, tensor), found in zip(members, matches, strict=True):
            yield self._one(claim, tensor, found, chosen)

    def _one(
        self,
        claim: Claim,
        tensor: Tensor,
        found: Mapping[Reading, _Match | None],
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
            return self._unclaimed(blank)
        return self._softly(self._refuse(replace(blank, reading=likeliest[0])))

    def _softly(self, one: Judgement) -> Judgement:
        """Call a tensor unclaimed if only words that nobody knows make it wrong."""
        # A key that is but a number may stand for anything of a block.
        bare = one.name.replace(".", "").isdigit()
        number = bare and one.rule in ("wrong-site", "wrong-layer", *_DOUBTFUL)
        if not number and (not one.claim.soft or one.rule not in _DOUBTFUL):
            return one
        note = ("unclaimed", one.sentence)
        return replace(one, reading=None, rule="", severity=None, notes=(note,))

    # -- does it agree with a reading? -------------------------------------------

    def _exact(self, tensor: Tensor, sites: Sequence[Site]) -> Exact | None:
        key = id(tensor)
        if key not in self._seen:
            wanted = set(sites)
            self._seen[key] = self._catalogue.exact(
                tensor, lambda one: one.site in wanted and not one.form
            )
        return self._seen[key]

    @cached_property
    def _seen(self) -> dict[int, Exact | None]:
        return {}

    def _match(self, claim: Claim, reading: Reading, tensor: Tensor) -> _Match | None:
        exact = self._exact(tensor, [r.site for r in claim.readings])
        if exact is not None and not reading.form:
            same = [exact.quantity, *exact.ties]
            for one in sorted(same, key=lambda one: one.site != reading.site):
                meant = one.site in (reading.site, _received(reading.site))
                if meant and not one.run and not one.form:
                    return _Match(replace(exact, quantity=one))
        if exact is not None and exact.layout.honest and not exact.quantity.run:
            return None
        for trace in self._catalogue.current:
            made = designs.shown(trace, reading.site, reading.form)
            if made is not None and (match := self._close(tensor, made, trace)):
                return match
            if match := self._as_reduced(tensor, reading, trace):
                return match
        return None

    def _as_reduced(
        self, tensor: Tensor, reading: Reading, trace: Trace
    ) -> _Match | None:
        """Compare with means and the like of the site that the name promises."""
        if reading.site not in trace or reading.form or not tensor.is_floating_point():
            return None
        slim = tensor.squeeze()
        if slim.ndim >= trace[reading.site].squeeze().ndim:
            return None
        for made in quantities.reductions(trace, self._mask, [reading.site]):
            if made.tensor.squeeze().shape == slim.shape:
                gap = apart(made.tensor.squeeze(), slim)
                if gap <= max(allowance(slim.dtype), allowance(made.tensor.dtype)):
                    return _Match(gap=gap, form=made.form)
        return None

    def _close(self, tensor: Tensor, made: Quantity, trace: Trace) -> _Match | None:
        """Compare up to rounding; a certified bound decides where there is one."""
        if not tensor.is_floating_point():
            return None
        known, _ = merged(made.tensor, made.axes)
        found = self._catalogue.arranged(tensor.detach().cpu())
        if made.form == "by head" and found.shape[1:2] == known.shape[2:3]:
            found = found.transpose(1, 2)
        if found.squeeze().shape != known.squeeze().shape:
            return None
        gap = apart(known.squeeze(), found.squeeze())
        if not bool(torch.isfinite(found).all()) and made.site.part[-6:] != "scores":
            return None
        allowed = max(allowance(found.dtype), allowance(known.dtype))
        if self._foreign:
            close = gap <= _FOREIGN * allowed
            return _Match(gap=gap, form=made.form) if close else None
        if made.form:
            return _Match(gap=gap, form=made.form) if gap <= allowed else None
        if gap > max(_HOPELESS, allowed):
            return None
        proven = _proven(trace, made.site, found.reshape(known.shape))
        if proven is None:
            return _Match(gap=gap) if gap <= allowed else None
        return _Match(gap=gap, words="within the proven bound") if proven else None

    # -- right, with what is worth knowing -----------------------------------------

    def _accept(
        self, claim: Claim, tensor: Tensor, reading: Reading, match: _Match
    ) -> Judgement:
        one = Judgement(claim.name, tensor, claim, reading)
        if match.exact is None:
            words = match.form or match.words or "up to rounding"
            sentence = f"`{claim.name}` is {reading.site} {words} (off {match.gap:.1e})"
            one = replace(one, sentence=sentence, found=f"{reading.site} {words}")
            if match.form.startswith(_REDUCED):
                return self._reduced(one, match.form)
            library = reading.form and _library_shows(reading)
            return replace(one, notes=(("by-design", sentence),)) if library else one
        return self._piece(one, match.exact)

    def _piece(self, one: Judgement, exact: Exact) -> Judgement:
        """Judge which piece of the right site was taken, and in which order."""
        sentence = f"`{one.name}` is {exact.words}"
        one = replace(one, sentence=sentence, found=exact.quantity.label, exact=True)
        if exact.layout.shuffled in ("B", "T"):
            return one if self._put_right(exact) else replace(one, rule="wrong-tokens")
        if not exact.layout.honest:
            return replace(one, rule="wrong-layout")
        if one.claim.strict and "B" in exact.layout.axes[1:]:
            words = f"{sentence}: its first axis is not the rows of the batch"
            return replace(one, rule="wrong-layout", sentence=words)
        if exact.cast is not None and _overflowed(one.tensor, exact.quantity.tensor):
            words = f"{sentence}, and infinite where the model's values are not"
            return replace(one, rule="not-finite", sentence=words)
        late = self._overwritten(one, exact)
        if late:
            return replace(one, rule="overwritten", sentence=late, severity="warning")
        if words := self._broken_promise(one.claim, exact):
            lost = "B" in exact.held and self._call.situation.rows > 1
            rule = "dropped-batch" if lost else "wrong-tokens"
            return replace(one, rule=rule, sentence=f"{sentence}: {words}")
        if self._as_by_itself(one):
            return replace(one, notes=tuple(_remarks(one, exact)))
        if self._fewer_tokens(exact):
            said = f"{sentence}, in a pass on some of the tokens"
            return replace(one, rule="wrong-tokens", sentence=said)
        if words := self._other_inputs(exact):
            said = f"{sentence}, in a pass on {words}"
            name = "wrong-tokens" if words == _ANOTHER_ORDER else "other-run"
            return replace(one, rule=name, sentence=said)
        if len(set(exact.taken)) < len(exact.taken) and exact.axis == "B":
            return replace(one, rule="dropped-batch")
        if one.claim.strict and exact.cut == "T":
            return replace(one, rule="wrong-tokens")
        if self._lost_rows(one, exact):
            return replace(one, rule="dropped-batch")
        if words := self._padding(exact):
            said = f"{sentence}; {words}"
            return replace(one, rule="padding-taken", sentence=said)
        return replace(one, notes=tuple(_remarks(one, exact)))

    def _broken_promise(self, claim: Claim, exact: Exact) -> str:
        """Say what a name promises of tokens or heads that a piece does not keep."""
        if claim.reduced:
            held = [_AXES[axis] for axis in exact.held if axis in _AXES]
            return (
                f"one {held[0]}, though its name says {claim.reduced}" if held else ""
            )
        axes = exact.quantity.axes
        if not claim.token or "T" not in axes or self._padded or exact.cut == "T":
            return ""
        count = exact.quantity.tensor.shape[axes.index("T")]
        wanted = 0 if claim.token == "first" else count - 1
        tokens = {token for _, token in _tokens(exact, self._call.situation.rows)}
        if exact.picked or "T" in exact.held:
            kept = tokens <= {wanted} and exact.held.get("T", wanted) == wanted
        else:
            kept = count == 1
        return "" if kept else f"not the {claim.token} token, as its name says"

    @property
    def _padded(self) -> bool:
        return self._mask is not None and not bool(self._mask.all())

    def _as_by_itself(self, one: Judgement) -> bool:
        """Whether the model by itself computes the same, whatever pass this is from."""
        clean, reading = self._call.clean, one.reading
        if clean is None or reading is None:
            return False
        made = quantities.derived(clean, reading.site, reading.form)
        whole = made is not None and one.tensor.shape == made.tensor.shape
        if made is None or not whole or self._call.situation.train:
            return False
        return self._close(one.tensor, made, clean) is not None

    def _lost_rows(self, one: Judgement, exact: Exact) -> bool:
        rows, held = self._call.situation.rows, exact.held
        first = held.get("B") == 0 or self._rows_of(exact) < rows
        if rows == 1 or not first or "T" in held or "H" in held or exact.cut:
            return False
        if exact.picked or exact.taken:
            return False
        words = set(one.name.lower().replace(".", "_").replace("-", "_").split("_"))
        lists = self._call.returned.lists
        listed = lists.get(one.name.rpartition(".")[0]) == rows
        meant = listed or bool(words & _ON_PURPOSE)
        return not meant and (self._call.hooks > 0 or one.claim.strict)

    def _rows_of(self, exact: Exact) -> int:
        """Return how many rows the pass of a quantity had."""
        one = exact.quantity
        of_rows = one.axes[:1] == ("B",) and one.site.part != "wpe"
        return one.tensor.shape[0] if of_rows else self._call.situation.rows

    def _pass_of(self, exact: Exact) -> Trace | None:
        found = exact.quantity.tensor
        held = (t for t in self._catalogue.current if _holds(t, exact.quantity))
        return next(held, None) if found.numel() else None

    def _fewer_tokens(self, exact: Exact) -> bool:
        trace = self._pass_of(exact)
        whole = "T" in exact.quantity.axes and not exact.held and not exact.taken
        given = self._call.situation.inputs["input_ids"]
        if trace is None or not whole or len(trace.facts.shape) < 2:
            return False
        return trace.facts.shape[1] < given.shape[1]

    def _overwritten(self, one: Judgement, exact: Exact) -> str:
        """Say if a capture that is the edited value was meant to be the one before."""
        assert one.reading is not None
        if exact.quantity.site == one.reading.site:
            return ""
        return overwritten(self._call, one.name, one.tensor)

    def _other_inputs(self, exact: Exact) -> str:
        """Say what else than the given tokens a pass ran on; nothing if on those."""
        same = [q for q in exact.ties if q.site == exact.quantity.site]
        words = ""
        for one in (exact.quantity, *same):
            trace = self._pass_of(replace(exact, quantity=one))
            if trace is None or trace is self._call.clean or not trace.facts.shape:
                return ""
            words = _foreign_inputs(trace, self._call)
            if not words:
                return ""
        return words

    def _put_right(self, exact: Exact) -> bool:
        """Whether rows that ran in another order were put back into the given one."""
        trace = self._pass_of(exact)
        ids = None if trace is None else trace.facts.ids.get(Site("wte"))
        given = self._call.situation.inputs["input_ids"]
        if ids is None or ids.shape != given.shape or exact.layout.shuffled != "B":
            return False
        return torch.equal(ids[list(exact.layout.order)], given)

    def _padding(self, exact: Exact) -> str:
        """Say what is odd about the tokens that were taken of a padded batch."""
        mask = self._mask
        if mask is None or bool(mask.all()):
            return ""
        at = _tokens(exact, len(mask))
        if any(not bool(mask[row, token]) for row, token in at):
            return "attention_mask marks some of it as padding"
        text = [mask[row].nonzero().flatten().tolist() for row, _ in at]
        places = [some.index(token) for some, (_, token) in zip(text, at, strict=True)]
        ends = [len(some) - 1 for some in text]
        same = len(set(places)) <= 1 or len({token for _, token in at}) == 1
        if same or places == ends:
            return ""
        return "of the text of each row it is neither the last token nor the same one"

    # -- wrong: what is it then? ---------------------------------------------------

    def _unclaimed(self, one: Judgement) -> Judgement:
        exact = self._exact(one.tensor, ())
        if exact is not None:
            sentence, found = f"`{one.name}` is {exact.words}", exact.quantity.label
            late = (("other-run", sentence),) if exact.quantity.run else ()
            if late:
                return replace(one, rule="other-run", sentence=sentence, found=found)
        elif torch.equal(one.tensor, self._call.situation.inputs["input_ids"]):
            sentence, found = f"`{one.name}` is input_ids", "input_ids"
        else:
            near = self._catalogue.near(one.tensor, (), lambda q: False)
            sentence, found = _in_words(one.name, near)
        note = ("unclaimed", sentence)
        return replace(one, sentence=sentence, found=found, notes=(note,))

    def _refuse(self, one: Judgement) -> Judgement:
        assert one.reading is not None
        claimed = one.reading.site
        exact = self._exact(one.tensor, [r.site for r in one.claim.readings])
        if bool((one.tensor == one.tensor.flatten()[0]).all()):
            words = f"`{one.name}` holds one number, {float(one.tensor.flatten()[0]):g}"
            many = one.tensor.numel() > 1
            return replace(
                one, rule="nothing-captured" if many else "wrong-shape", sentence=words
            )
        if not one.tensor.is_floating_point():
            words = f"`{one.name}` holds {one.tensor.dtype}, no activations"
            return replace(one, rule="unexplained", sentence=words)
        if late := overwritten(self._call, one.name, one.tensor):
            return replace(one, rule="overwritten", sentence=late)
        if exact is not None:
            return _as_exact(one, exact, claimed)
        masked = claimed.part.endswith("scores") and not bool(one.tensor.isnan().any())
        if not bool(torch.isfinite(one.tensor).all()) and not masked:
            count = int((~torch.isfinite(one.tensor)).sum())
            words = f"`{one.name}` holds {count} values that are NaN or infinite"
            return replace(
                one, rule="not-finite", sentence=words, evidence={"not_finite": count}
            )
        wanted = [r.site for r in one.claim.readings]
        likely = {*wanted, *self._inputs_of(wanted)}
        near = self._catalogue.near(
            one.tensor, wanted, lambda q: q.site in likely and not q.form
        )
        return self._as_near(one, near, claimed)

    def _inputs_of(self, wanted: Sequence[Site]) -> Iterator[Site]:
        for trace in self._catalogue.current[:1]:
            for identity in gpt2.identities(trace):
                if identity.site in wanted:
                    yield from identity.inputs

    def _as_near(self, one: Judgement, near: Near | None, claimed: Site) -> Judgement:
        sentence, found = _in_words(one.name, near)
        one = replace(one, sentence=sentence, found=found)
        if near is None:
            expected = " or ".join(quantities.axes_of(claimed))
            words = f"{sentence}; {claimed} has axes {expected.replace(' or ', ' ')}"
            return replace(one, rule="wrong-shape", sentence=words)
        one = replace(one, evidence={"distance": near.distance})
        if near.how == "nearest":
            words = f"{sentence}{self._partly(one, claimed)}"
            return replace(one, rule="unexplained", sentence=words)
        if near.how == "sum":
            return replace(one, rule="wrong-terms")
        if near.how == "scaled":
            return replace(one, rule="wrong-formula")
        (quantity,) = near.quantities
        if quantity.site == claimed or quantity.form:
            return replace(one, rule="wrong-formula")
        return replace(one, rule=_other_site(quantity.site, claimed))

    def _partly(self, one: Judgement, claimed: Site) -> str:
        """Say how many values of a tensor are those of the site, if some are."""
        for trace in self._catalogue.current:
            known = trace.get(claimed)
            if known is not None and known.shape == one.tensor.shape:
                share = float((known.cpu() == one.tensor.detach().cpu()).float().mean())
                if share > _SOME:
                    return f"; {share:.0%} of its values are those of {claimed}"
        return ""

    def _reduced(self, one: Judgement, form: str) -> Judgement:
        """Take a mean for meant, unless it counts padding."""
        pooled = form.endswith(("over tokens", "over the text"))
        strict = one.claim.strict and one.reading is not None and not one.reading.form
        if strict and not pooled:
            return replace(one, rule="wrong-shape")
        if one.claim.token or not form.startswith(one.claim.reduced):
            wanted = one.claim.reduced or f"the {one.claim.token} token"
            words = f"{one.sentence}, not {wanted}, as its name says"
            rule = "wrong-formula" if one.claim.reduced else "wrong-tokens"
            return replace(one, rule=rule, sentence=words)
        if self._padded and form.endswith("over tokens"):
            words = f"{one.sentence}, and attention_mask marks some of them as padding"
            return replace(one, rule="padding-taken", sentence=words)
        return replace(one, notes=(("generous-reading", one.sentence),))


_AXES = {"B": "row", "T": "token", "H": "head"}
_REDUCED = ("averaged", "summed", "largest", "as the norm")


def _tokens(exact: Exact, rows: int) -> list[tuple[int, int]]:
    """Return (row, token) of each single token that a tensor is made of."""
    axes, held = exact.quantity.axes, exact.held
    if exact.picked:
        each = [dict(zip((axes[a] for a in p.axes), p.index, strict=True))
                for p in exact.picked]  # fmt: skip
        return [(at["B"], at["T"]) for at in each if {"B", "T"} <= at.keys()]
    whole = axes[:1] == ("B",) and exact.quantity.tensor.shape[0] == rows
    if "T" not in held or not whole:
        return []
    taken = [held["B"]] if "B" in held else range(rows)
    return [(row, held["T"]) for row in taken]


def _library_shows(reading: Reading) -> bool:
    """Whether a form comes of processed weights; scores and divisors do not."""
    return reading.form not in ("raw", "-inf", "scale", "by head", "each head")


def _holds(trace: Trace, one: Quantity) -> bool:
    return one.site in trace and trace[one.site].data_ptr() == one.tensor.data_ptr()


def _overflowed(found: Tensor, known: Tensor) -> bool:
    finite = bool(torch.isfinite(known).all())
    return finite and not bool(torch.isfinite(found).all())


def overwritten(call: Call, name: str, tensor: Tensor) -> str:
    """Say if a capture is memory of the pass that was edited after it was computed."""
    address = tensor.untyped_storage().data_ptr()
    for copies, aliases in zip(call.passes, call.aliases, strict=False):
        for place, alias in aliases.tensors.items():
            if alias.untyped_storage().data_ptr() != address:
                continue
            copy = copies.tensors[place]
            if not same_bits(alias, copy):
                count = int(changed_values(copy, alias).sum())
                return (
                    f"`{name}` is the memory of {place}, which was edited in place "
                    f"after it was computed ({count:,} of {copy.numel():,} values)"
                )
    return ""


def _foreign_inputs(trace: Trace, call: Call) -> str:
    """Compare the tokens and positions of a pass with those that were given."""
    given = call.situation.inputs["input_ids"]
    ids = trace.facts.ids.get(Site("wte"))
    if ids is None:
        return _other_embeddings(trace, call)
    ids = ids.reshape(-1, ids.shape[-1])
    place = _block_of(given, ids)
    if place is None:
        return f"other tokens, {tuple(ids.shape)} of them"
    if ids.shape == given.shape and not torch.equal(ids, given):
        return _ANOTHER_ORDER
    if call.clean is not None and trace.facts.ids.keys() - call.clean.facts.ids.keys():
        return "token types that were not given"
    if _other_mask(trace, call):
        return "another attention mask"
    positions = trace.facts.ids.get(Site("wpe"))
    clean = None if call.clean is None else call.clean.facts.ids.get(Site("wpe"))
    if positions is None or clean is None or "attention_mask" in call.situation.inputs:
        return ""
    start, stop = place
    wanted = clean[:, start:stop]
    same = (positions[:, : stop - start] == wanted[:1]).all()
    return "" if bool(same) else "other positions"


def _other_embeddings(trace: Trace, call: Call) -> str:
    """Say if what was handed in for the tokens' embeddings is another site."""
    given, clean = trace.facts.given.get(Site("wte")), call.clean
    if given is None or clean is None or alike(given, clean[Site("wte")]):
        return ""
    places = (s for s, known in clean.tensors.items() if alike(given, known))
    place = next(places, None)
    if place is not None:
        return f"{place} for the tokens' embeddings"
    known = clean[Site("wte")]
    if given.shape != known.shape:
        return "embeddings of other tokens"
    factor = float((given * known).sum() / (known * known).sum())
    times = f"{factor:.6g} times " if alike(given, factor * known) else "other than "
    return f"{times}the tokens' embeddings"


def _other_mask(trace: Trace, call: Call) -> bool:
    """Whether every block of a pass hid keys that the model by itself does not hide.

    Keys that all hold one token, such as that for padding, may well be hidden.
    """
    clean, given = call.clean, call.situation.inputs["input_ids"]
    if clean is None or trace.facts.shape != clean.facts.shape:
        return False
    for place, usual in clean.facts.attention.items():
        ours = trace.facts.attention.get(place)
        if ours is None or ours.past or usual.past:
            return False
        sizes = (*given.shape, given.shape[1], given.device)
        more = usual.mask_parts(*sizes)[0] & ~ours.mask_parts(*sizes)[0]
        keys = more.any(1).any(1)
        if not bool(keys.any()) or any(
            torch.equal(keys, given == token) for token in given[keys].unique()
        ):
            return False
    return bool(clean.facts.attention)


def _block_of(given: Tensor, ids: Tensor) -> tuple[int, int] | None:
    """Return which tokens of some rows of ``given``, each at most once, ``ids`` are."""
    length = ids.shape[1]
    for start in range(given.shape[1] - length + 1):
        piece = given[:, start : start + length]
        rows = [(piece == row).all(1).nonzero().flatten().tolist() for row in ids]
        places = [found[0] for found in rows if found]
        if len(places) == len(rows) and len(set(places)) == len(places):
            return start, start + length
    return None


def _received(place: Site) -> Site:
    """Return where a site's value arrives: an edit by a hook shows there first."""
    if place.part == "resid_post" and place.layer is not None:
        return Site("resid_pre", place.layer + 1)
    return place


def _convention(
    claims: Sequence[Claim], matches: Sequence[Mapping[Reading, _Match | None]]
) -> str:
    """Return the convention under which most names of one kind are right."""
    score: dict[str, list[int]] = {}
    for place, (claim, found) in enumerate(zip(claims, matches, strict=True)):
        for reading in claim.readings:
            kept = score.setdefault(reading.convention, [])
            match = found.get(reading)
            if match is not None and place not in kept:
                kept.append(place)
    if not score:
        return ""
    return max(score, key=lambda name: len(score[name]))


def _as_exact(one: Judgement, exact: Exact, claimed: Site) -> Judgement:
    """Say which other quantity a tensor is, bit for bit, and which rule that breaks."""
    # Of what is equal, a dropout in eval mode for one, the likest to the claim is told.
    same = [q for q in (exact.quantity, *exact.ties) if q.site.part == claimed.part]
    exact = replace(exact, quantity=same[0]) if same else exact
    actual = exact.quantity
    sentence = f"`{one.name}` is {exact.words}, not {one.reading}"
    one = replace(one, sentence=sentence, found=actual.label)
    if actual.run:
        return replace(one, rule="other-run")
    if actual.form in ("table", "weight"):
        name = "wrong-tokens" if actual.form == "table" else "wrong-site"
        return replace(one, rule=name)
    if actual.form or actual.site in sources(claimed):
        return replace(one, rule="wrong-layout")
    return replace(one, rule=_other_site(actual.site, claimed))


def _other_site(actual: Site, claimed: Site) -> str:
    """Tell another block from another part, seen as people count: states, blocks."""
    if actual.part == claimed.part:
        return "wrong-layer"
    streams = {"resid_pre", "resid_post", "embed"}
    between = actual.part in streams and claimed.part in streams
    return "wrong-layer" if between else "wrong-site"


def _remarks(one: Judgement, exact: Exact) -> Iterator[tuple[str, str]]:
    if exact.cast is not None:
        yield "reduced-precision", one.sentence
    less = exact.held or exact.cut or exact.picked
    single = set(exact.held) == {"B"} and exact.quantity.tensor.shape[0] == 1
    if less and not single:
        yield "generous-reading", one.sentence


def _in_words(name: str, near: Near | None) -> tuple[str, str]:
    if near is None:
        return f"`{name}` has a shape that nothing in the model has", ""
    if near.how == "nearest" and near.distance > _FAR:
        return f"`{name}` is nothing that recon knows, nor near it", ""
    if near.how == "nearest":
        far = f"{near.distance:.2g} of its size away"
        return (
            f"`{name}` is nothing that recon knows; nearest is {near.words}, {far}",
            near.words,
        )
    return f"`{name}` is {near.words} (up to rounding)", near.words


def _proven(trace: Trace, place: Site, found: Tensor) -> bool | None:
    """Say whether a tensor is certified at a site; None where nothing is to certify.

    Sums are left out: another order of terms is honest, and strays from the local sum.
    """
    identity = next((i for i in gpt2.identities(trace) if i.site == place), None)
    held = trace.tensors.get(place)
    if identity is None or held is None or isinstance(identity.op, Add | Same):
        return None
    if held.dtype != found.dtype:
        return None
    if held.ndim == 4 and found.ndim == 3:
        found = split_heads(found, trace.facts.heads)
    again = trace.replace(place, found)
    verdict = certified(again, identity).verdict
    return None if verdict in ("unverified", "missing") else verdict != "diverged"
