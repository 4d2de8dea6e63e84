"""Formulas that names promise: right ways, wrong ways, and which words ask for them."""

from dataclasses import replace

import pytest
import torch

from recon.auditing.derivations import DERIVATIONS, equal
from recon.auditing.derived import arranged
from recon.auditing.formula_words import formulas_meant
from recon.auditing.quantizing import on_other_scales, within_eight_bits
from recon.auditing.wording import words_of
from recon.sites import Site, site
from recon.verification import record

NAMES = {
    "attn_entropy_3": ["entropy of each query"],
    "layer3.head_entropy_bits": ["entropy of each query in bits"],
    "lens_entropy_3": ["entropy of the prediction"],
    "prev_token_score_3": ["weight on the previous token"],
    "attentionSink.3": ["weight on the first token"],
    "diagonal_attention_3": ["weight on the token itself"],
    "value_weighted_pattern_3": ["times the norm of each value"],
    "rollout_3": ["rollout"],
    "attn_rollout_with_identity": ["rollout with the residual"],
    "blocks.3.ln_1.scale": ["scale of the LayerNorm"],
    "ln2_denominator_3": ["divisor of the LayerNorm"],
    "ln_1_layer_3_x_hat": ["normalised before weight and bias"],
    "ln_2_normalized_3": ["normalised"],
    "ln1_std_3": ["deviation of what enters"],
    "log_probs_last_token": ["as log-probabilities"],
    "lens_probs_3": ["as probabilities"],
    "column_centered_layer_3": ["centred over the samples"],
    "centred_resid_post_3": ["centred"],
    "mlp_out_3_dequantized": ["after quantisation"],
    "linear_cka_of_layers": ["linear CKA of all states"],
    "induction_scores.3": ["induction score"],
    "loss_per_token": ["as loss of the next token"],
    "surprisal_3": ["as loss of the next token"],
    "logit_lens.3.kl_to_final": ["as divergence from the prediction"],
    "h.3.resid_post.unit": ["at unit length"],
    "resid_unit_norm_3": ["at unit length"],
    "unit_vectors.layer3": ["at unit length"],
    "dla.h.3.attn_out": ["as its share of a logit"],
    "direct_logit_attribution_mlp_3": ["as its share of a logit"],
    # Words that stand for something else beside others.
    "layers.3.self_attn": [],
    "prev_layer_3": [],
    "first_token_resid_3": [],
    "attn_probs_3": [],
    "pre_softmax_3": [],
    "grad_ln_1_scale_3": [],
    "logits_with_centered_unembed": [],
    "value_3": [],
    "attn_weighted_values_3": [],
    "rollout_logits": [],
    "hidden_unit_5": [],
    "mlp_unit": [],
    "unit_activations_3": [],
    "sae_loss_tokens": [],
    "kl_loss": [],
    "direct_path_3": [],
    "contribution_of_head_3": [],
    "resid_scale_3": [],
}


@pytest.mark.parametrize("name", NAMES)
def test_words_ask_for_a_formula_and_others_for_none(name):
    assert [form for form, _ in formulas_meant(words_of(name))] == NAMES[name]


def places(form, trace):
    """The deepest site of each part that a formula may be of."""
    deepest = {p.part: p for p in trace.sites if p.part in DERIVATIONS[form].parts}
    return list(deepest.values()) or [site("h.1.resid_post")]


def made(form, place, trace):
    return list(DERIVATIONS[form].right(trace, place))


@pytest.fixture
def traced(recorded, model, ids):
    """A pass for a formula: on a text that stands there twice, if it needs one."""
    twice = torch.cat([ids, ids], 1)
    return lambda form: record(model, twice) if "induction" in form else recorded.trace


EXACT = sorted(form for form in DERIVATIONS if form != "after quantisation")


@pytest.mark.parametrize("form", EXACT)
def test_no_wrong_way_gives_what_a_right_one_gives(form, traced):
    trace, tried = traced(form), 0
    for place in places(form, trace):
        for wrong in DERIVATIONS[form].wrong(trace, place):
            for one in made(form, place, trace):
                whole = wrong.axes == one.axes and "eps" not in wrong.form
                whole = whole and wrong.tensor.shape == one.tensor.shape
                assert not whole or not equal(wrong.tensor, one.tensor, 1e-5), (
                    wrong.form, one.form
                )  # fmt: skip
                tried += whole
    assert tried or form in ("centred", "deviation of what enters")


@pytest.mark.parametrize("form", EXACT)
def test_a_right_way_is_there_for_each_part(form, traced):
    trace = traced(form)
    assert all(made(form, place, trace) for place in places(form, trace))


def test_entropies_are_those_of_torch(recorded):
    pattern = recorded.trace["h.1.attn.pattern"]
    nats, bits, _ = made(
        "entropy of each query", site("h.1.attn.pattern"), recorded.trace
    )
    known = torch.distributions.Categorical(pattern).entropy()
    assert torch.allclose(nats.tensor, known, atol=1e-6)
    assert torch.allclose(bits.tensor, known / torch.tensor(2.0).log(), atol=1e-6)


def test_a_rollout_keeps_rows_of_weights(recorded):
    rolled, *_ = made("rollout", site("h.1.attn.pattern"), recorded.trace)
    first, second = (recorded.trace[f"h.{i}.attn.pattern"].mean(1) for i in (0, 1))
    eye = torch.eye(first.shape[-1])
    assert torch.allclose(rolled.tensor, (second + eye) @ (first + eye) / 4, atol=1e-6)
    ones = rolled.tensor.sum(-1)
    assert torch.allclose(ones, torch.ones_like(ones))


def test_a_norm_divides_by_its_divisor(recorded):
    trace, place = recorded.trace, site("h.1.ln_2")
    (below,) = made("divisor of the LayerNorm", place, trace)
    x, op = trace["h.1.resid_mid"], trace.facts.makers[place]
    again = (x - x.mean(-1, keepdim=True)) / below.tensor * op.weight + op.bias
    assert torch.allclose(again, trace[place], atol=1e-5)


def test_norms_of_values_stand_along_the_keys(recorded):
    trace = recorded.trace
    first, *_ = made("times the norm of each value", site("h.1.attn.pattern"), trace)
    pattern, v = trace["h.1.attn.pattern"], trace["h.1.attn.v"]
    known = torch.einsum("bhqk,bhk->bhqk", pattern, v.norm(dim=-1))
    assert torch.allclose(first.tensor, known, atol=1e-6)


# -- in which shape ----------------------------------------------------------------

KNOWN = torch.arange(3 * 2 * 5, dtype=torch.float32).reshape(3, 2, 5).square()


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (KNOWN, ""),
        (KNOWN.transpose(0, 1), ""),
        (KNOWN.mean((0, 2)), ", averaged over rows and tokens"),
        (KNOWN[:, :, -1], ", at token 4"),
        (KNOWN.mean(0).T, ", averaged over rows"),
    ],
)
def test_a_piece_or_mean_of_a_quantity_is_found(found, words):
    hits = [w for w, one in arranged(KNOWN, "BHT", found) if torch.equal(one, found)]
    assert hits[0] == words


def test_what_has_another_shape_is_no_piece():
    assert list(arranged(KNOWN, "BHT", torch.zeros(4, 4))) == []


def test_few_numbers_are_no_piece_of_anything():
    few = torch.zeros(2)
    assert [w for w, _ in arranged(KNOWN, "BHT", few)] == [
        ", averaged over rows and tokens"
    ]


# -- codes of 8 bits ---------------------------------------------------------------


def rounded(x, levels, axes=None):
    low, high = (x.amin(axes, True), x.amax(axes, True)) if axes else (x.min(), x.max())
    step = (high - low) / levels
    return ((x - low) / step).round() * step + low


@pytest.mark.parametrize("axes", [None, (0, 1), (-1,)])
def test_eight_bits_are_near_enough_and_four_are_not(axes):
    x = torch.randn(3, 11, 16, generator=torch.Generator().manual_seed(0))
    assert within_eight_bits(rounded(x, 255, axes), x, 0.0)
    assert not within_eight_bits(rounded(x, 15, axes), x, 0.0)


def test_another_scale_is_told_from_coarse_codes_and_other_values():
    x, y = torch.randn(2, 3, 11, 16, generator=torch.Generator().manual_seed(0))
    low, step = y.amin((0, 1)), (y.amax((0, 1)) - y.amin((0, 1))) / 255
    codes = (x - x.amin((0, 1))) / (x.amax((0, 1)) - x.amin((0, 1))) * 255
    assert on_other_scales(codes.round() * step + low, x, 0.0)
    assert not on_other_scales(rounded(x, 255, (0, 1)), x, 0.0)
    assert not on_other_scales(rounded(x, 15, (0, 1)), x, 0.0)
    assert not on_other_scales(y, x, 0.0)
    assert not on_other_scales(x[:1, :5] * 2, x[:1, :5], 0.0)  # too few samples


def test_a_rollout_is_of_patterns_that_are_all_there(recorded):
    trace = recorded.trace
    fewer = {p: t for p, t in trace.tensors.items() if p.layer != 0}
    (all_there, *_) = made("rollout", Site("attn.pattern", 1), trace)
    assert all_there.form == "rollout"
    assert made("rollout", Site("attn.pattern", 1), replace(trace, tensors=fewer)) == []
