"""Names of places: read back as printed, ordered as computed, found by globs."""

from __future__ import annotations

import re
from itertools import combinations, permutations

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

import recon
from recon import Site, UnknownSiteError
from recon.sites import PARTS, all_sites, select
from recon.testing.strategies import MOST_TOKENS, models

LAYERS = st.integers(0, 200)
PART_NAMES = [part.name.removeprefix("h.{l}.") for part in PARTS]
IN_BLOCK = {name for name, part in zip(PART_NAMES, PARTS, strict=True) if part.in_block}


@st.composite
def sites(draw: st.DrawFn) -> Site:
    part = draw(st.sampled_from(PART_NAMES))
    return Site(part, draw(LAYERS) if part in IN_BLOCK else None)


# -- parse and print -----------------------------------------------------------


@given(place=sites())
def test_every_name_of_a_site_is_read_back_as_that_site(place: Site):
    assert str(place) in place.names
    spellings = [*place.names, place.lens, place.hf]
    assert {recon.site(name) for name in spellings if name} == {place}


@given(one=sites(), other=sites())
def test_no_name_belongs_to_two_sites(one: Site, other: Site):
    assert one == other or not set(one.names) & set(other.names)


@given(
    name=st.one_of(
        st.text(max_size=20),
        st.from_regex(r"(h|blocks|transformer\.h)\.\S{0,3}\.[a-z_.{}0-9]{1,12}"),
        # A true name with one character changed, left out or put in.
        st.builds(
            lambda name, at, left_out, put: name[:at] + put + name[at + left_out :],
            sites().flatmap(lambda place: st.sampled_from(place.names)),
            st.integers(0, 30),
            st.integers(0, 1),
            st.text(max_size=1),
        ),
    )
)
# 2026-11: any digits were taken for the number of a block.
@example("h.{l}.ln_1")
@example("h.01.ln_1")
@example("h.\N{FULLWIDTH DIGIT ONE}.ln_1")
def test_any_text_is_one_of_a_sites_names_or_an_error_that_repeats_it(name: str):
    try:
        place = recon.site(name)
    except UnknownSiteError as error:
        refused = error
    else:
        assert name in place.names
        return
    assert refused.name == name
    assert repr(name) in str(refused)


# -- order ---------------------------------------------------------------------


@given(some=st.lists(sites(), min_size=3, max_size=6))
def test_order_is_total(some: list[Site]):
    for a, b in combinations(some, 2):
        assert [a < b, a == b, b < a].count(True) == 1
    for a, b, c in permutations(some, 3):
        assert not (a < b and b < c) or a < c


@given(depth=st.integers(1, 15), order=st.randoms(use_true_random=False))
def test_sorting_any_sites_gives_the_order_of_all_sites(depth, order):
    listed = list(all_sites(depth))
    assert len(set(listed)) == len(listed)
    shuffled = listed.copy()
    order.shuffle(shuffled)
    assert sorted(shuffled) == listed


@given(recipe=models(dtypes=("float32",)), tokens=st.integers(1, MOST_TOKENS))
def test_sites_are_ordered_as_the_model_computes_them(recipe, tokens):
    model = recipe.build()
    prefix = "" if recipe.headed else "transformer."
    fired: list[Site] = []

    def note(place: Site):
        return lambda *_: fired.append(place)

    for place in all_sites(recipe.depth):
        path = place.hf.removeprefix(prefix)
        known = dict(model.named_modules())
        if path.removesuffix(".input") in known and path.endswith(".input"):
            known[path.removesuffix(".input")].register_forward_pre_hook(note(place))
        elif path.removesuffix(".output") in known and path:
            known[path.removesuffix(".output")].register_forward_hook(note(place))
    inputs = {"input_ids": torch.zeros(1, tokens, dtype=torch.long)}
    if recipe.cross:
        inputs["encoder_hidden_states"] = torch.ones(1, 2, recipe.width)
    with torch.no_grad():
        model(**inputs)
    assert len(fired) > 10 * recipe.depth
    assert fired == sorted(fired)


# -- globs ---------------------------------------------------------------------


@st.composite
def globs(draw: st.DrawFn) -> str:
    """Blur a true name: steps turned into ``*``, ``?``, sets and choices."""
    place = draw(sites())
    place = place if place.layer is None else Site(place.part, place.layer % 13)
    steps = draw(st.sampled_from(place.names)).split(".")
    for at, step in enumerate(steps):
        steps[at] = draw(
            st.sampled_from(
                [
                    step,
                    "*",
                    step[:2] + "*",
                    "?" * len(step),
                    f"{{{step},{draw(st.sampled_from('qkvz'))}}}",
                    "[0-3]" if step.isdigit() else step,
                ]
            )
        )
    return ".".join(steps)


def as_regex(glob: str) -> re.Pattern:
    """Translate by hand; braces and sets are never nested here."""
    words = {"*": ".*", "?": ".", "{": "(?:", "}": ")", ",": "|"}
    pieces = re.findall(r"\[[^]]*\]|.", glob)
    return re.compile(
        "".join(
            piece if piece.startswith("[") else words.get(piece, re.escape(piece))
            for piece in pieces
        )
    )


@given(patterns=st.lists(globs(), min_size=1, max_size=3), depth=st.integers(1, 13))
def test_select_is_a_filter_by_every_name(patterns: list[str], depth: int):
    known = list(all_sites(depth))
    hits = [
        {s for s in known if any(as_regex(p).fullmatch(name) for name in s.names)}
        for p in patterns
    ]
    if not all(hits):
        with pytest.raises(UnknownSiteError):
            select(patterns, known)
        return
    assert select(patterns, known) == [s for s in known if s in set.union(*hits)]


@given(place=sites(), depth=st.integers(1, 60))
def test_select_by_name_finds_that_site_alone(place: Site, depth: int):
    assume(place.layer is None or place.layer < depth)
    for name in [place, *place.names]:
        assert select(name, all_sites(depth)) == [place]
