"""Loose names: what may be meant by a name that is in nobody's vocabulary."""

import pytest

from recon.auditing.claims import Reader

# name: the parts of block 3 that it may mean
READINGS = {
    "layer3.attn.c_attn": {"attn.qkv"},
    "layer3.attn.c_attn.input": {"ln_1"},
    "layer_3_attn_c_proj": {"attn.out", "attn_out", "attn.qkv"},
    "layer3.attn.c_proj.input": {"attn.z"},
    "layer3.attn.W_O": {"attn.out", "attn_out", "attn.z"},
    "layers.3.self_attn.o_proj": {"attn.out", "attn_out", "attn.qkv"},
    "layer3.mlp.c_fc": {"mlp.pre"},
    "layer3.mlp.c_fc.input": {"ln_2"},
    "block3.mlp.c_proj": {"mlp.out", "mlp_out"},
    "block3.mlp.c_proj.inp": {"mlp.post"},
    "layer_3_up_proj": {"mlp.pre"},
    "layer_3_down_proj": {"mlp.out", "mlp_out"},
    "layer3.mlp.W_down.input": {"mlp.post"},
    "layer_3_fc1": {"mlp.pre"},
    "layer_3_fc2": {"mlp.out", "mlp_out"},
    "fc_3": {"mlp.pre"},
    "layer_3_intermediate": {"mlp.post", "mlp.pre"},
    "intermediate_residual_3": {"resid_mid", "resid_post", "resid_pre"},
    "before_ln_1_3": {"resid_pre"},
    "ln_2_in.3": {"resid_mid"},
    "resid_norm_3": {"resid_post", "resid_pre", "ln_1", "ln_2"},
    "resid_mid_3_l2_norm": {"resid_mid"},
    "probs_3": {"attn.pattern", "resid_post", "resid_pre"},  # those of a lens, too
}

ANY = {
    "resid_post", "mlp.post", "mlp_out", "mlp.out", "mlp.pre", "attn_out", "attn.out"
}  # fmt: skip


@pytest.mark.parametrize("name", ["act_3", "layer_3_activation", "acts.3"])
def test_activations_of_a_block_may_be_any_of_its_outputs(name):
    claim = Reader(depth=12, tied_last=True).read(name)
    parts = {r.site.part for r in claim.readings if r.site.layer == 3}
    assert parts == ANY | {"resid_pre"}  # as an index into hidden_states


@pytest.mark.parametrize("name", READINGS)
def test_a_loose_name_has_its_honest_readings(name):
    claim = Reader(depth=12, tied_last=True).read(name)
    assert {r.site.part for r in claim.readings if r.site.layer == 3} == READINGS[name]
    assert not claim.strict


def test_a_number_that_belongs_to_a_map_is_not_that_of_the_block():
    claim = Reader(depth=12, tied_last=True).read("fc1_layer_3")
    assert {r.site.layer for r in claim.readings} == {3, 2}  # from 0, or from 1


def test_a_weight_named_without_a_side_does_not_hide_another_map():
    claim = Reader(depth=12, tied_last=True).read("layer3.attn.W_O")
    assert "mlp.post" not in {r.site.part for r in claim.readings}


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("state_before_ln_f", "h.11.resid_post"),
        ("ln_f", "ln_f"),
        ("wte_plus_wpe", "embed"),
        ("wpe", "wpe"),
    ],
)
def test_a_name_outside_of_blocks_has_its_honest_reading(name, site):
    claim = Reader(depth=12, tied_last=True).read(name)
    assert {str(r.site) for r in claim.readings} == {site}
