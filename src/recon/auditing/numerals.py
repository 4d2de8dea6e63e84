"""What the numbers in a loose name count: blocks, or rows, tokens, heads, runs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import pairwise

from recon.auditing.wording import NUMBER, WORD, plain, split

_BLOCK = frozenset({"layer", "layers", "block", "blocks", "l"})
# Short for one axis, or for a block.
_SHORT = {"h": "heads", "b": "rows", "t": "tokens", "n": "neurons"}
# A number by itself, after several words.
_ENTRY = re.compile(r"[^./\[\]]*[A-Za-z0-9][^A-Za-z0-9./\[\]]+[A-Za-z]+[./\[]$")
_NEGATIVE = re.compile(r"[\s_.\[(/]-$")
_COUNTED = {
    **dict.fromkeys(("row", "rows"), "rows"),
    **dict.fromkeys(("token", "tokens", "tok", "pos", "position", "positions"),
                    "tokens"),
    **dict.fromkeys(("head", "heads"), "heads"),
    **dict.fromkeys(("neuron", "neurons"), "neurons"),
}  # fmt: skip
# Whatever else is numbered: each may have inputs of its own.
_OTHERS = frozenset(
    {"batch", "prompt", "prompts", "text", "texts", "sample", "samples", "example",
     "examples", "sentence", "sent", "sequence", "seq", "doc", "document", "item",
     "run", "call", "pass", "step", "iter", "iteration", "epoch", "trial", "condition",
     "chunk", "window", "part", "segment", "seed", "beam", "feature"}
)  # fmt: skip
# As in gpt2, top5, fp16.
_NO_COUNT = frozenset({"gpt", "top", "fp", "bf", "float", "bfloat", "int", "uint"})

_WHICH = frozenset(
    {"prev", "previous", "first", "bos", "last", "final", "own", "next", "current"}
)
# Where no other number is that of a block, heads_3 are those of block 3.
_PLURAL = frozenset(word for word in {*_COUNTED, *_OTHERS} if word.endswith("s"))
_NO_BLOCK = (_OTHERS | _NO_COUNT | frozenset(_COUNTED)) - _PLURAL


@dataclass(frozen=True)
class Numerals:
    """The number of a block, the numbers of rows, tokens, heads, neurons, and others.

    A block's number below 0 counts from the last one. ``family`` is the name with
    ``{l}`` for the block's number and ``{n}`` for those that count something else;
    ``nouns`` are the words of the latter.
    """

    layer: int | None
    family: str
    counted: Mapping[str, int] = field(default_factory=dict)
    nouns: frozenset[str] = frozenset()
    others: bool = False

    @property
    def pattern(self) -> str:
        """The name with the number of its block, and of nothing else."""
        return NUMBER.sub("{n}", self.family).replace("{l}", str(self.layer))


@dataclass(frozen=True)
class _Number:
    """A number in a name, the word or number before it, and its place among numbers."""

    value: int
    noun: str
    place: int


def numerals(name: str) -> Numerals:
    """Tell the number of a block, which a noun may name, from numbers of other things.

    In ``row_0_layer_3`` and ``L3H0`` nouns tell; a number without one is the block's.
    Those of ``head_3_0`` are of a block and a head, and ``layer_-1`` is the last one.
    """
    numbers = list(_numbers(name))
    block = _block(numbers)
    counted: dict[str, int] = {}
    others = set()
    for one in numbers:
        axis = _COUNTED.get(one.noun) or (block and _SHORT.get(one.noun))
        if block and one.noun == str(block.value) and _COUNTED.get(block.noun):
            axis = _COUNTED[block.noun]
        if one is block:
            continue
        if axis and one.value >= 0:
            counted.setdefault(axis, one.value)
        if axis or one.noun in _OTHERS:
            others.add(one)
    return Numerals(
        layer=block.value if block else None,
        family=_family(name, {one.place for one in others}, block),
        counted=counted,
        nouns=frozenset(one.noun for one in others if one.noun not in _COUNTED),
        others=any(one.noun in _OTHERS for one in others),
    )


def _numbers(name: str) -> Iterator[_Number]:
    spaced, before, earlier, place = split(name), "", "", 0
    for found in WORD.finditer(spaced):
        word = found[0].lower()
        if word.isdigit():
            negative = _NEGATIVE.search(spaced[: found.start()])
            # The token of last_token_3 is told already; last_row.3 may be of a list.
            entry = _ENTRY.search(spaced[: found.start()])
            noun = "" if earlier in _WHICH or entry else before
            yield _Number(-int(word) if negative else int(word), noun, place)
            place += 1
        before, earlier = word, before


def _block(numbers: Sequence[_Number]) -> _Number | None:
    """Return the number of the block; None if no number is one."""
    named = [one for one in numbers if one.noun in _BLOCK]
    paths = [one for one in numbers if one.noun == "h"]
    pairs = [one for one, after in pairwise(numbers)
             if one.noun in _COUNTED and after.noun == str(one.value)]  # fmt: skip
    free = [one for one in numbers if one.noun not in _NO_BLOCK | _PLURAL]
    several = [one for one in numbers if one.noun in _PLURAL]
    return next(iter((*named, *paths, *pairs, *free, *several)), None)


def _family(name: str, others: Set[int], block: _Number | None) -> str:
    place = -1

    def blank(found: re.Match[str]) -> str:
        nonlocal place
        place += 1
        if block and place == block.place:
            return "{l}"
        return "{n}" if place in others else found[0]

    return NUMBER.sub(blank, plain(name))
