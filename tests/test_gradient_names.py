"""Which names promise a gradient, and at which site?"""

import pytest

from recon.auditing.backward_names import named
from recon.auditing.claims import Reader

LOOSE = ["the gradient at h.2.resid_post", "the gradient at h.1.resid_post"]


def read(name, context="", backward=True):
    return Reader(4, True, context=context, backward=backward).read(name)


def sites(name, **more):
    return [str(reading) for reading in read(name, **more).readings]


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("grad_h.1.resid_post", "h.1.resid_post"),
        ("h.1.attn.q.grad", "h.1.attn.q"),
        ("blocks.0.hook_resid_post_grad", "h.0.resid_post"),
        ("transformer.h.3.grad", "h.3.resid_post"),
        ("transformer.h.3.grad_input", "h.3.resid_pre"),
        ("transformer.h.3.mlp.c_fc.grad_output", "h.3.mlp.pre"),
        ("grads.blocks.2.attn.hook_z", "h.2.attn.z"),
        ("grad_of_lm_loss_wrt_h.1.mlp_out", "h.1.mlp_out"),
        ("gradient of loss at h.1.mlp_out", "h.1.mlp_out"),
    ],
)
def test_a_strict_name_promises_the_gradient_at_its_site(name, place):
    assert sites(name) == [f"the gradient at {place}"]
    assert read(name).strict


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("grad_resid_post_3", "h.3.resid_post"),
        ("resid_post_3_grad", "h.3.resid_post"),
        ("residPost3Grad", "h.3.resid_post"),
        ("gradients.layer_2", "h.2.resid_post"),
        ("embed.grad", "embed"),
        ("grad_logit_diff_resid_post_3", "h.3.resid_post"),
        ("grad_of_last_token_max_logit_wrt_resid_post_2", "h.2.resid_post"),
        ("grad_mlp_out_1", "h.1.mlp_out"),
        ("d_resid_post_3", "h.3.resid_post"),
        ("d_loss_d_mlp_out_2", "h.2.mlp_out"),
    ],
)
def test_a_loose_name_may_mean_the_gradient_at_its_site(name, place):
    assert f"the gradient at {place}" in sites(name)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("grad_x_act_mlp_out_2", "h.2.mlp_out"),
        ("resid_post_3_x_grad", "h.3.resid_post"),
        ("grad_x_act_1", "h.1.resid_post"),
        ("input_x_gradient", "embed"),
    ],
)
def test_a_product_is_promised_as_one(name, place):
    assert f"the gradient times the value at {place}" in sites(name)


@pytest.mark.parametrize(
    "name",
    [
        "no_grad.layer_3",
        "with_grad_layer_3",
        "gradient_checkpointing_layer_3",
        "requires_grad",
        "gradcam_3",
        "graduated_layer_3",
        "layer_3",
        "transformer.h.1.mlp.c_fc.weight.grad",
        "grad_ln_1_bias",
    ],
)
def test_other_names_promise_no_gradient(name):
    assert named(name) is None


@pytest.mark.parametrize("name", ["grads.0", "0.grad", "grad", "grad_norms"])
def test_a_bare_number_is_the_gradient_of_nothing_that_is_known(name):
    assert not [one for one in read(name).readings if one.backward]


def test_no_gradient_is_promised_where_nothing_went_backward():
    assert not any(one.backward for one in read("grad_h.1.mlp_out", backward=False)
                   .readings)  # fmt: skip
    assert any(one.backward for one in read("grad_h.1.mlp_out").readings)


def test_in_a_function_about_gradients_a_loose_name_may_mean_one():
    plain = sites("layer_2")
    both = sites("layer_2", context="capture_gradients")
    assert both[: len(plain)] == plain
    assert set(LOOSE) <= set(both)
    assert sites("h.2.mlp_out", context="capture_gradients") == ["h.2.mlp_out"]


def test_the_output_of_a_block_is_no_entry_of_hidden_states():
    assert "the gradient at h.2.resid_pre" in sites("grad_layer_2")
    assert "the gradient at h.2.resid_pre" not in sites("grad_resid_post_2")
