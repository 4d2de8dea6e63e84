"""Loose names: what may be meant by a name that is in nobody's vocabulary."""

import pytest

from recon.auditing.claims import Reader
from recon.auditing.numerals import numerals

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

# What people call a part of block 3, as loose names and as others' paths.
NAMES = {
    "resid_post": """
        layer_{} | layer{} | L{} | l{} | {} | block_{} | block{}.output |
        blocks.{} | h{} | h_{} | h.{}.out | resid_{} | residual_{} |
        residual_stream_{} | resid_post_{} | resid_post.{} | hidden_layer_{} |
        acts_{} | activations_layer_{} | layer_{}_output | output_layer_{} |
        layer_{}_hidden | layer_{}/resid | model.layers.{} |
        model.layers.{}.output | gpt2.layer.{} | encoder.layer.{} |
        decoder.layers.{} | transformer_layer_{} | tfm_block_{} | state_{} |
        stream_{} | block_out_{} | after_block_{} | after_layer_{} |
        resid_after_block_{} | residual_after_layer_{} | layer_{}_resid_post |
        layer_0{} | layer-{} | Layer {} | LAYER_{} | hook_resid_post.{} |
        blocks.{}.resid_post | block_{}_resid_post | {}.resid_post |
        resid_post[{}] | layer_{}_post | hidden_states_after_layer_{} | h.{} |
        transformer.h.{}.output | hidden_post_{} | block{}_hidden_states |
        GPT2Block_{} | layer_{}.hidden_states | resid_stream.layer_{} |
        tok_repr_layer_{} | embeddings_layer_{} | layer_{}_embeddings |
        contextual_embedding_{} | residual_post_mlp_{} | post_mlp_resid_{} |
        resid_post_mlp_{} | final_block_output_{} | output_of_block_{} |
        mlp_residual_{} | resid_out_{} | layer_out.{}
    """,
    "resid_pre": """
        resid_pre_{} | before_block_{} | block_{}_input | layer_{}_in |
        layer_input_{} | resid_before_layer_{} | h.{}.input | pre_block_{} |
        blocks.{}.resid_pre | layer_{}_resid_pre | ln_1_input_{} | ln1_in_{} |
        residual_in_{} | hidden_states_{} | hs_{} | hidden_states.{} |
        pre_attn_resid_{} | resid_pre_attn_{} | pre_ln1_{} | attn_residual_in_{}
    """,
    "resid_mid": """
        resid_mid_{} | mid_{} | residual_mid_{} | after_attn_{} |
        resid_after_attn_{} | post_attn_{} | post_attn_resid_{} | block_{}_mid |
        layer_{}_resid_mid | attn_resid_{} | resid_attn_{} |
        hidden_after_attention_{} | pre_mlp_resid_{} | ln_2_input_{} | x_mid_{} |
        resid_post_attn_{} | mid_block_{} | between_attn_and_mlp_{}
    """,
    "attn_out": """
        attn_{} | attn_out_{} | attention_{} | attention_output_{} | self_attn_{}
        | sa_{} | layer_{}_attn | layer_{}.attn_out | attn_output_layer_{} |
        attn_block_{} | h{}_attn | attn_write_{} | attn_delta_{} |
        attn_contribution_{} | attn_update_{} | attn_head_sum_{} | delta_attn_{} |
        attn_resid_out_{} | mha_out_{} | model.layers.{}.self_attn | h.{}.attn |
        attn/{} | attn.layer_{} | layers.{}.attention.output | attn_o_{} |
        attention_out_L{} | att_out_{} | att_{}
    """,
    "mlp_out": """
        mlp_{} | ffn_{} | ff_{} | feed_forward_{} | mlp_output_{} | mlp_layer_{} |
        layer_{}_mlp | mlp_write_{} | mlp_out_{} | ffn_out_{} | mlp_delta_{} |
        mlp_update_{} | mlp_contribution_{} | model.layers.{}.mlp | h.{}.mlp |
        feedforward_output_{} | layers.{}.feed_forward | ffn_output_L{} |
        mlp_outs.{} | delta_mlp_{} | mlp_result_{} | fc2_{} | mlp_fc2_{} |
        mlp_proj_{} | c_proj_mlp_{} | mlp_down_{} | down_proj_{}
    """,
    "mlp.post": """
        mlp_act_{} | mlp_acts_{} | mlp_hidden_{} | mlp_post_{} | gelu_{} |
        neurons_{} | neuron_acts_{} | mlp_activations_{} | mlp_mid_{} | act_{} |
        ffn_hidden_{} | mlp_neurons_layer_{} | layer_{}_mlp_act | intermediate_{}
        | fc_act_{} | post_gelu_{} | after_gelu_{} | gelu_out_{} | mlp_post_act_{}
        | post_act_{} | mlp_inner_{} | ffn_act_{} | ffn_activation_{} |
        mlp_intermediate_{} | mlp_c_proj_input_{} | down_proj_in_{} |
        layer_{}_neurons | neurons_L{} | mlp_features_{} | ff_neurons_{}
    """,
    "mlp.pre": """
        mlp_pre_{} | pre_act_{} | preact_{} | fc_{} | c_fc_{} | mlp_preact_{} |
        pre_gelu_{} | mlp_fc1_{} | mlp_pre_activation_{} | mlp_c_fc_{} | fc1_{} |
        mlp_up_{} | up_proj_{} | before_gelu_{} | gelu_in_{} | mlp_pre_act_{} |
        pre_activation_{} | mlp_fc_{}
    """,
    "ln_1": """
        ln1_{} | ln_1_{} | ln_1.{} | layer_{}_ln1 | norm1_{} | input_layernorm_{}
        | attn_in_{} | attn_norm_{} | ln1_out_{} | layernorm1_{} |
        normed_attn_in_{} | attn_input_{} | pre_attn_norm_{} | layer_norm_1_{} |
        ln_attn_{} | qkv_in_{} | layers.{}.input_layernorm | ln_1_output_layer_{}
        | normalized_resid_pre_{}
    """,
    "ln_2": """
        ln2_{} | ln_2_{} | ln_2.{} | layer_{}_ln2 | norm2_{} |
        post_attention_layernorm_{} | mlp_input_{} | mlp_in_{} | ffn_norm_{} |
        mlp_norm_{} | ln2_out_{} | layernorm2_{} | pre_mlp_norm_{} |
        layer_norm_2_{} | ln_mlp_{} | layers.{}.post_attention_layernorm |
        normalized_resid_mid_{}
    """,
    "attn.q": """
        q_{} | query_{} | queries.{} | layer_{}_q | q_proj_{} | Q{} | L{}.q |
        attn_q_{} | query_layer_{} | layers.{}.q | q_heads_{} | head_q_{} | Q_{} |
        query_states_{} | attn_queries_{} | q_states_L{}
    """,
    "attn.k": """
        k_{} | key_{} | keys.{} | layer_{}_k | k_proj_{} | key_layer_{} |
        key_states_{} | attn_keys_{} | K_{} | k_cache_{} | key_cache_{} |
        cached_keys_{}
    """,
    "attn.v": """
        v_{} | value_{} | values.{} | layer_{}_v | v_proj_{} | value_layer_{} |
        value_states_{} | attn_values_{} | V_{} | v_cache_{} | value_cache_{} |
        cached_values_{}
    """,
    "attn.qkv": """
        qkv_{} | c_attn_{} | attn_qkv_{} | layer_{}_qkv | qkv_proj_{} |
        fused_qkv_{} | attn_c_attn_{}
    """,
    "attn.z": """
        z_{} | head_out_{} | heads_{} | attn_z_{} | head_outputs_{} |
        attn_pre_proj_{} | o_proj_in_{} | attn_concat_{} | context_{} |
        context_layer_{} | ctx_{} | attn_head_out_{} | head_acts_{} |
        attn_heads_{} | mixed_values_{} | attn_out_pre_proj_{} |
        attn_before_proj_{} | attn_before_c_proj_{} | heads_concat_{} |
        weighted_values_{} | attn_mixed_{} | layer_{}_head_outputs
    """,
    "attn.pattern": """
        pattern_{} | attn_{} | attention_{} | attn_weights_{} | attention_probs_{}
        | attn_pattern_layer_{} | attn_map_{} | attention_map_{} | attentions.{} |
        attn_probs_{} | attention_weights.{} | attn_patterns_{} | probs_{} |
        weights_{} | attn_softmax_{} | attn_matrix_{} |
        attention_scores_after_softmax_{} | attn_dist_{} | layer_{}_attention |
        attention_layer_{} | L{}_attn_pattern
    """,
    "attn.scores": """
        scores_{} | attn_scores_{} | attn_logits_{} | pre_softmax_{} |
        attention_scores_{} | attn_pre_softmax_{} | attention_logits_{} |
        qk_scores_{} | raw_scores_{}
    """,
    "logits": """
        logits | lm_logits | final_logits | logits_out | lm_head | output_logits |
        prediction_logits | last_logits
    """,
    "embed": """
        embed | embedding | token_plus_pos | embeddings | embedding_output |
        input_embeddings | drop | embed_out | emb | tok_plus_pos | embed_plus_pos
    """,
    "wte": """
        wte | token_embed | tok_emb | token_embeddings | inputs_embeds |
        embed_tokens | tok_embed | token_embedding
    """,
    "wpe": """
        wpe | pos_emb | pos_embed | position_embeddings | positional_embedding |
        pos_embeddings
    """,
    "ln_f": """
        ln_f | final_norm | final_ln | last_hidden_state | final_layer_norm |
        final_layernorm | normed_final | ln_final | final_hidden_normed |
        lm_head_input | final_normed_resid
    """,
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


def spelt():
    return [(part, name) for part, names in NAMES.items()
            for name in " ".join(names.split()).split(" | ")]  # fmt: skip


@pytest.mark.parametrize(("part", "name"), spelt())
def test_a_part_is_among_what_people_call_by_a_name(part, name):
    claim = Reader(depth=12, tied_last=True).read(name.format(3))
    assert part in {r.site.part for r in claim.readings if r.site.layer in (3, None)}


# name: the number of the block, and of row, token and head
NUMBERED = {
    "row_2_layer_3": (3, {"rows": 2}),
    "layer_3_row_2": (3, {"rows": 2}),
    "head_1.layer_3": (3, {"heads": 1}),
    "L3H1": (3, {"heads": 1}),
    "h.3.attn.h1": (3, {"heads": 1}),
    "token_5/resid_post_3": (3, {"tokens": 5}),
    "prompt_1.layer_3": (3, {}),
    "run_2/h.3": (3, {}),
    "batch_0.mlp_out_3": (3, {}),
    "b2_l3_t4": (3, {"rows": 2, "tokens": 4}),
    "heads_3": (3, {}),
    "row_0.heads_3": (3, {"rows": 0}),
    "head_3": (None, {"heads": 3}),
    "head_3_1": (3, {"heads": 1}),
    "head_3.1": (3, {"heads": 1}),
    "h3h1": (3, {"heads": 1}),
    "L3N7": (3, {"neurons": 7}),
    "neuron_7_layer_3": (3, {"neurons": 7}),
    "layer_3_pos_-1": (3, {}),
    "resid_post_3_tok5": (3, {"tokens": 5}),
    "attn_to_prev_token_3": (3, {}),
    "last_token_3": (3, {}),
    "resid_of_each_row.3": (3, {}),
    "block.3.head.1": (3, {"heads": 1}),
    "head_2_entropy": (None, {"heads": 2}),
    "restored_layer_3_tok_2.probs": (3, {"tokens": 2}),
    "layer_-1": (-1, {}),
    "layer[-2]_row_0": (-2, {"rows": 0}),
    "layer-3": (3, {}),
    "gpt2_mlp_3": (3, {}),
    "mlp_3_fp16": (3, {}),
    "resid_post": (None, {}),
}


@pytest.mark.parametrize("name", NUMBERED)
def test_nouns_tell_the_number_of_the_block_from_others(name):
    found = numerals(name)
    assert (found.layer, found.counted) == NUMBERED[name]


@pytest.mark.parametrize(
    ("name", "place"),
    [("layer_-1", "h.11.resid_post"), ("hidden_states[-1]", "ln_f"),
     ("hidden_states.-2", "h.11.resid_pre"), ("mlp_out[-12]", "h.0.mlp_out")],
)  # fmt: skip
def test_a_number_below_0_counts_from_the_end(name, place):
    claim = Reader(depth=12, tied_last=True).read(name)
    assert str(claim.readings[0].site) == place


def test_names_that_differ_in_rows_are_of_one_kind_and_those_of_blocks_are_not():
    one, other = numerals("row_0_layer_3"), numerals("row_1_layer_3")
    assert one.family == other.family == "row_{n}_layer_{l}"
    assert one.pattern == other.pattern == "row_{n}_layer_3"
    assert one.pattern != numerals("row_0_layer_2").pattern
    shaped = [numerals(f"layer_3 ({rows}, 11)").pattern for rows in (1, 3)]
    assert shaped[0] == shaped[1] == "layer_3 ({n}, {n})"


def test_the_number_of_a_token_makes_no_embedding_of_a_state():
    claim = Reader(depth=12, tied_last=True).read("resid_post_3_tok5")
    assert "wte" not in {r.site.part for r in claim.readings}
