"""The vocabulary: one name for one place, in three libraries' spellings."""

import pickle

import pytest

import recon
from recon.sites import PARTS, Site, all_sites, select, site

EVERY = list(all_sites(12))


@pytest.mark.parametrize("place", EVERY, ids=str)
def test_a_site_is_found_by_each_of_its_names(place):
    for name in place.names:
        assert site(name) == place
    assert str(place) in place.names
    assert site(str(place)) == site(place) == place


def test_no_name_means_two_sites():
    names = [name for place in EVERY for name in set(place.names)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("ours", "lens", "hf"),
    [
        ("wte", "hook_embed", "transformer.wte"),
        ("h.3.resid_pre", "blocks.3.hook_resid_pre", "transformer.h.3.input"),
        ("h.11.attn.q", "blocks.11.attn.hook_q", ""),
        (
            "h.3.attn.pattern",
            "blocks.3.attn.hook_pattern",
            "transformer.h.3.attn.output.1",
        ),
        ("h.3.attn.z", "blocks.3.attn.hook_z", "transformer.h.3.attn.c_proj.input"),
        ("h.3.attn_out", "blocks.3.hook_attn_out", "transformer.h.3.attn"),
        ("h.3.resid_mid", "blocks.3.hook_resid_mid", "transformer.h.3.ln_2.input"),
        ("h.3.mlp.post", "blocks.3.mlp.hook_post", "transformer.h.3.mlp.act"),
        ("h.3.resid_post", "blocks.3.hook_resid_post", "transformer.h.3.output"),
        ("ln_f", "ln_final.hook_normalized", "transformer.ln_f"),
        ("logits", "unembed.hook_out", "lm_head"),
    ],
)
def test_the_names_of_other_libraries_are_theirs(ours, lens, hf):
    assert (site(ours).lens, site(ours).hf) == (lens, hf)


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("transformer.h.3.mlp.output", "h.3.mlp_out"),
        ("h.3.mlp", "h.3.mlp_out"),
        ("h.3", "h.3.resid_post"),
        ("transformer.h.3", "h.3.resid_post"),
        ("h.3.attn.c_proj", "h.3.attn.out"),
        ("h.3.attn.c_attn.output", "h.3.attn.qkv"),
        ("lm_head.output", "logits"),
    ],
)
def test_a_hugging_face_path_means_the_modules_output(name, ours):
    assert str(site(name)) == ours


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("h.3.atn.q", "h.3.attn.q"),
        ("h.3.attn.que", "h.3.attn.q"),
        ("blocks.3.hook_resid_prae", "blocks.3.hook_resid_pre"),
        ("ln_fin", "ln_f"),
        ("h.{l}.ln_1", "h.0.ln_1"),
    ],
)
def test_an_unknown_name_gets_near_misses(name, near):
    with pytest.raises(recon.UnknownSiteError) as caught:
        site(name)
    assert near in caught.value.near
    assert str(caught.value).startswith(f"unknown site {name!r}; did you mean ")
    assert isinstance(caught.value, KeyError)


@pytest.mark.parametrize(
    "name",
    ["", "h", "h.x.ln_1", "h.-1.ln_1", "3.ln_1", "ln_1", "h.1.2.ln_1", "h.1.ln_1."],
)
def test_what_is_no_site_is_refused(name):
    with pytest.raises(recon.UnknownSiteError, match="unknown site"):
        site(name)


def test_sites_sort_in_the_order_in_which_they_are_computed():
    backwards = EVERY[::-1]
    assert sorted(backwards) == EVERY
    # Not as text: h.10 comes after h.2.
    assert site("h.2.resid_post") < site("h.10.resid_pre")
    assert site("embed") < site("h.0.resid_pre") < site("h.0.resid_post") < site("ln_f")


def test_every_part_occurs_once_a_block_or_once_a_model():
    blocks = [part for part in PARTS if part.in_block]
    assert len(EVERY) == 12 * len(blocks) + len(PARTS) - len(blocks)


def test_another_site_of_the_block_keeps_the_block():
    assert str(site("h.3.attn.q").at("attn.k")) == "h.3.attn.k"


def test_a_site_can_be_hashed_and_pickled():
    place = site("h.3.attn.q")
    assert pickle.loads(pickle.dumps(place)) == place
    assert {place, Site("attn.q", 3)} == {place}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("h.1.ln_1", ["h.1.ln_1"]),
        ("h.*.ln_1", ["h.0.ln_1", "h.1.ln_1"]),
        ("h.1.attn.{q,k}", ["h.1.attn.q", "h.1.attn.k"]),
        ("{wte,ln_f}", ["wte", "ln_f"]),
        ("h.{0,1}.{ln_1,ln_2}", ["h.0.ln_1", "h.0.ln_2", "h.1.ln_1", "h.1.ln_2"]),
        ("h.1.attn.{z}", ["h.1.attn.z"]),
        ("blocks.*.hook_mlp_out", ["h.0.mlp_out", "h.1.mlp_out"]),
        (["ln_f", "wte", "ln_f"], ["wte", "ln_f"]),
        (site("h.0.attn.v"), ["h.0.attn.v"]),
        ([site("ln_f"), "h.0.ln_?"], ["h.0.ln_1", "h.0.ln_2", "ln_f"]),
    ],
)
def test_patterns_select_each_site_once_and_in_order(patterns, expected):
    assert list(map(str, select(patterns, all_sites(2)))) == expected


def test_a_star_does_not_need_to_stop_at_a_dot():
    assert select("h.1.*", all_sites(3)) == [s for s in all_sites(3) if s.layer == 1]
    assert select("*", all_sites(3)) == list(all_sites(3))


@pytest.mark.parametrize("pattern", ["h.2.ln_1", "nothing", "h.*.attn.{x,y}", "", "{}"])
def test_a_pattern_without_a_hit_is_refused(pattern):
    with pytest.raises(recon.UnknownSiteError, match="unknown site"):
        select(pattern, all_sites(2))


def test_one_hit_does_not_excuse_a_pattern_without():
    with pytest.raises(recon.UnknownSiteError, match="'nothing'"):
        select(["ln_f", "nothing"], all_sites(2))
