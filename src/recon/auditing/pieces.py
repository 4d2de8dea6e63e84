"""The right site: which piece of it was taken, in which order, of which pass?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from recon.auditing import formulas
from recon.auditing.bench import Bench
from recon.auditing.calls import Call
from recon.auditing.claims import Claim
from recon.auditing.exact import Exact
from recon.auditing.handed import ANOTHER_ORDER, other_inputs
from recon.auditing.judgement import Judgement
from recon.auditing.numerals import numerals
from recon.auditing.passes import changed_values, same_bits
from recon.auditing.quantities import Quantity
from recon.auditing.wording import words_of
from recon.sites import Site
from recon.trace import Trace

# Words in a name that say that less than everything is stored, on purpose.
_ON_PURPOSE = frozenset(
    {"row", "first", "example", "sample", "prompt", "single", "one"}
)
_NARROW = frozenset({"half", "fp", "bf", "float", "bfloat", "int", "quantized"})
_POOLED = frozenset({"pool", "pooled", "pooling"})
HAND_ON = "Run the model on what the function is given: tokens, positions and mask."
_INDEX = "Index the axis that the name speaks of; [:, -1] is the last token."
_EACH_PASS = "Keep what each pass brings: a later one replaced what was kept."
_AXES = {"B": "row", "T": "token", "H": "head"}
REDUCED = (
    "averaged", "summed", "largest", "smallest", "variance", "deviation", "as the norm"
)  # fmt: skip


def piece(bench: Bench, one: Judgement, exact: Exact) -> Judgement:
    """Judge which piece of the right site was taken, and in which order."""
    sentence = f"`{one.name}` is {exact.words}"
    label, held = exact.quantity.label, _held(bench, exact)
    one = replace(one, sentence=sentence, found=label, exact=True, held=held)
    if exact.layout.shuffled in ("B", "T"):
        return one if _put_right(bench, exact) else replace(one, rule="wrong-tokens")
    if not exact.layout.honest:
        if words := other_pass(bench, exact):
            said = f"{sentence}, in a pass on {words}"
            return replace(one, rule="other-run", sentence=said, mend=HAND_ON)
        return replace(one, rule="wrong-layout")
    if one.claim.strict and "B" in exact.layout.axes[1:]:
        words = f"{sentence}: its first axis is not the rows of the batch"
        mend = "Put the axes back: rows first, features last."
        return replace(one, rule="wrong-layout", sentence=words, mend=mend)
    if exact.cast is not None and _overflowed(one.tensor, exact.quantity.tensor):
        words = f"{sentence}, and infinite where the model's values are not"
        return replace(one, rule="not-finite", sentence=words)
    late = _overwritten(bench, one, exact)
    if late:
        return replace(one, rule="overwritten", sentence=late, severity="warning")
    if words := _broken_promise(bench, one.claim, exact):
        lost = "B" in exact.held and bench.call.situation.rows > 1
        rule = "dropped-batch" if lost else "wrong-tokens"
        return replace(one, rule=rule, sentence=f"{sentence}: {words}", mend=_INDEX)
    if _looks_wider(bench, one, exact):
        kind = str(one.tensor.dtype).removeprefix("torch.")
        said = f"{sentence}, and kept as {kind}, which hides it"
        return replace(one, rule="reduced-precision", sentence=said, severity="warning")
    if _as_by_itself(bench, one):
        return replace(one, notes=tuple(_remarks(one, exact)))
    if words := _of_its_pass(bench, one, exact):
        one = replace(one, sentence=f"{sentence}, {words}")
        return replace(one, notes=(("generous-reading", one.sentence),))
    if _fewer_tokens(bench, exact):
        said = f"{sentence}, in a pass on some of the tokens"
        return replace(one, rule="wrong-tokens", sentence=said)
    if words := other_pass(bench, exact):
        said = f"{sentence}, in a pass on {words}"
        name = "wrong-tokens" if words == ANOTHER_ORDER else "other-run"
        return replace(one, rule=name, sentence=said, cause=words, mend=HAND_ON)
    if len(set(exact.taken)) < len(exact.taken):
        rules = {"B": "dropped-batch", "T": "wrong-tokens"}
        return replace(one, rule=rules.get(exact.axis, "wrong-layout"))
    if one.claim.strict and exact.cut == "T":
        return replace(one, rule="wrong-tokens")
    if _lost_rows(bench, one, exact):
        if len(bench.call.passes) > 1 and "B" not in exact.held:
            said = f"{sentence}, of one of {len(bench.call.passes)} passes"
            one = replace(one, sentence=said, mend=_EACH_PASS)
        return replace(one, rule="dropped-batch")
    if words := _padding(bench, exact):
        said = f"{sentence}; {words}"
        return replace(one, rule="padding-taken", sentence=said)
    return replace(one, notes=tuple(_remarks(one, exact)))


def _held(bench: Bench, exact: Exact) -> dict[str, int]:
    """Return at which row, token, head of the given ones a piece was taken."""
    sizes = dict(zip(exact.quantity.axes, exact.quantity.tensor.shape, strict=True))
    rows, tokens = bench.call.situation.inputs["input_ids"].shape
    given = {"B": rows, "T": tokens, "H": sizes.get("H"), "M": sizes.get("M")}
    # In a padded row a number may as well count from where its text begins.
    axes = {axis for axis, size in given.items() if sizes.get(axis) == size}
    axes -= {"T"} if bench.padded else set()
    return {axis: at for axis, at in exact.held.items() if axis in axes}


def _broken_promise(bench: Bench, claim: Claim, exact: Exact) -> str:
    """Say what a name promises of tokens or heads that a piece does not keep."""
    if claim.reduced:
        held = [_AXES[axis] for axis in exact.held if axis in _AXES]
        return f"one {held[0]}, though its name says {claim.reduced}" if held else ""
    axes = exact.quantity.axes
    if not claim.token or "T" not in axes or bench.padded or exact.cut == "T":
        return ""
    count = exact.quantity.tensor.shape[axes.index("T")]
    wanted = 0 if claim.token == "first" else count - 1
    tokens = {token for _, token in _tokens(exact, bench.call.situation.rows)}
    if exact.picked or "T" in exact.held:
        kept = tokens <= {wanted} and exact.held.get("T", wanted) == wanted
    else:
        kept = count == 1
    return "" if kept else f"not the {claim.token} token, as its name says"


def _looks_wider(bench: Bench, one: Judgement, exact: Exact) -> bool:
    """Whether digits were lost that the model and the capture's dtype seem to have."""
    if exact.cast is None or _NARROW & set(words_of(one.name)):
        return False
    clean, place = bench.call.clean, exact.quantity.site
    usual = exact.quantity.tensor if clean is None else clean.tensors.get(place)
    has = one.tensor.dtype.itemsize
    return usual is not None and min(usual.dtype.itemsize, has) > exact.cast.itemsize


def _as_by_itself(bench: Bench, one: Judgement) -> bool:
    """Whether the model by itself computes the same, whatever pass this is from."""
    clean, reading = bench.call.clean, one.reading
    if clean is None or reading is None:
        return False
    made = formulas.derived(clean, reading.site, reading.form)
    whole = made is not None and one.tensor.shape == made.tensor.shape
    if made is None or not whole or bench.call.situation.train:
        return False
    return bench.close(one.tensor, made, clean) is not None


def _lost_rows(bench: Bench, one: Judgement, exact: Exact) -> bool:
    """Whether only some rows are there, where no word says so.

    Hooks that index an output drop the batch; by hand a row may be taken on purpose,
    but not from the last of several passes.
    """
    rows, held = bench.call.situation.rows, exact.held
    fewer = _rows_of(bench, exact) < rows
    if rows == 1 or "T" in held or "H" in held or exact.cut or exact.picked:
        return False
    if not fewer and "B" not in held:
        return False
    words = set(words_of(one.name))
    nests, parts = bench.call.returned.nests, one.name.split(".")
    heads = (".".join(parts[:end]) for end in range(len(parts)))
    listed = any(nests.get(head) == rows for head in heads)
    numbered = numerals(one.name)
    meant = listed or bool(words & _ON_PURPOSE) or numbered.others
    if meant or "rows" in numbered.counted:
        return False
    if one.claim.strict:
        return True
    if fewer and len(bench.call.passes) > 1:
        return True
    return bench.call.hooks > 0 and (fewer or held["B"] in (0, rows - 1))


def _rows_of(bench: Bench, exact: Exact) -> int:
    """Return how many rows the pass of a quantity had."""
    one = exact.quantity
    of_rows = one.axes[:1] == ("B",) and one.site.part != "wpe"
    return one.tensor.shape[0] if of_rows else bench.call.situation.rows


def _pass_of(bench: Bench, exact: Exact) -> Trace | None:
    found = exact.quantity.tensor
    if exact.quantity.passes:
        return bench.gradients.forward(exact.quantity)
    traces = [*bench.catalogue.current, *(side.trace for side in bench.sides)]
    held = (t for t in traces if _holds(t, exact.quantity))
    return next(held, None) if found.numel() else None


def _of_its_pass(bench: Bench, one: Judgement, exact: Exact) -> str:
    """Say which pass an entry is of, in a list that has one for each, in order."""
    whole, _, number = one.name.rpartition(".")
    passes, entries = bench.call.passes, bench.call.returned.lists.get(whole)
    each = number.isdigit() and 1 < len(passes) == entries
    if not each or _pass_of(bench, exact) is not passes[int(number)]:
        return ""
    return f"of pass {int(number) + 1} of {entries}"


def _fewer_tokens(bench: Bench, exact: Exact) -> bool:
    """Whether the pass of a tensor had some of the tokens, and not just the text."""
    trace = _pass_of(bench, exact)
    whole = "T" in exact.quantity.axes and not exact.held and not exact.taken
    given, mask = bench.call.situation.inputs["input_ids"], bench.mask
    if trace is None or not whole or len(trace.facts.shape) < 2:
        return False
    ids = trace.facts.ids.get(Site("wte"))
    if mask is not None and ids is not None:
        pairs = zip(given, mask.bool(), strict=True)
        texts = [row[shown].tolist() for row, shown in pairs]
        if all(row in texts for row in ids.tolist()):
            return False
    return trace.facts.shape[1] < given.shape[1]


def _overwritten(bench: Bench, one: Judgement, exact: Exact) -> str:
    """Say if a capture that is the edited value was meant to be the one before."""
    assert one.reading is not None
    if exact.quantity.site == one.reading.site and not exact.quantity.side:
        return ""
    return overwritten(bench.call, one.name, one.tensor)


def other_pass(bench: Bench, exact: Exact) -> str:
    """Say what else than the given tokens a pass ran on; nothing if on those."""
    same = [q for q in exact.ties if q.site == exact.quantity.site]
    words = ""
    for one in (exact.quantity, *same):
        trace = _pass_of(bench, replace(exact, quantity=one))
        if trace is None or trace is bench.call.clean or not trace.facts.shape:
            return ""
        words = other_inputs(trace, bench.call)
        if not words:
            return ""
    return words


def _put_right(bench: Bench, exact: Exact) -> bool:
    """Whether rows that ran in another order were put back into the given one."""
    trace = _pass_of(bench, exact)
    ids = None if trace is None else trace.facts.ids.get(Site("wte"))
    given = bench.call.situation.inputs["input_ids"]
    if ids is None or ids.shape != given.shape or exact.layout.shuffled != "B":
        return False
    return torch.equal(ids[list(exact.layout.order)], given)


def _padding(bench: Bench, exact: Exact) -> str:
    """Say what is odd about the tokens that were taken of a padded batch."""
    mask = bench.mask
    if mask is None or bool(mask.all()):
        return ""
    at = _tokens(exact, len(mask))
    if any(not bool(mask[row, token]) for row, token in at):
        return "attention_mask marks some of it as padding"
    if len({row for row, _ in at}) < len(at):
        return ""  # more than one of a row: no choice of a single token
    text = [mask[row].nonzero().flatten().tolist() for row, _ in at]
    places = [some.index(token) for some, (_, token) in zip(text, at, strict=True)]
    ends = [len(some) - 1 for some in text]
    same = len(set(places)) <= 1 or len({token for _, token in at}) == 1
    if same or places == ends:
        return ""
    return "of the text of each row it is neither the last token nor the same one"


def reduced(bench: Bench, one: Judgement, form: str) -> Judgement:
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
    over = one.claim.over
    if over and over not in form and not (over == "tokens" and pooled):
        words = f"{one.sentence}, not over {over}, as its name says"
        return replace(one, rule="wrong-formula", sentence=words)
    if _POOLED & set(words_of(one.name)) and not pooled:
        words = f"{one.sentence}, and pooling is over tokens"
        return replace(one, rule="wrong-tokens", sentence=words, mend=_INDEX)
    if bench.padded and form.endswith("over tokens"):
        words = f"{one.sentence}, and attention_mask marks some of them as padding"
        return replace(one, rule="padding-taken", sentence=words)
    return replace(one, notes=(("generous-reading", one.sentence),))


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


def _remarks(one: Judgement, exact: Exact) -> Iterator[tuple[str, str]]:
    if exact.cast is not None:
        yield "reduced-precision", one.sentence
    less = exact.held or exact.cut or exact.picked
    single = set(exact.held) == {"B"} and exact.quantity.tensor.shape[0] == 1
    if less and not single:
        yield "generous-reading", one.sentence
