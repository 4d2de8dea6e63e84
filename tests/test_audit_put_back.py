"""What an audit and a profile leave of a user's model and process: all of it."""

import os

import pytest
import torch

import recon
from recon.census import census


def capture(model, input_ids):
    with torch.no_grad():
        out = model(input_ids, output_hidden_states=True)
    return {"hidden_states": out.hidden_states}


def told(function, model):
    """Return the findings that are no notes, by name."""
    report = recon.audit(function, model, effort="quick")
    return {one.rule.name: one for one in report.findings if one.severity != "note"}


def backward(model, input_ids):
    with torch.enable_grad():
        model(input_ids).logits.sum().backward()
    return capture(model, input_ids)


def in_place(model, input_ids):
    for weight in model.parameters():
        weight.grad.zero_().add_(5)
    return capture(model, input_ids)


def profiled(function, model):
    recon.profile(model, target=function, rounds=2, leak_rounds=3)


@pytest.mark.parametrize("run", [recon.audit, profiled])
@pytest.mark.parametrize("function", [backward, in_place])
def test_gradients_that_a_user_accumulated_are_kept(model, ids, run, function):
    model(ids).logits.sum().backward()
    held = {name: weight.grad for name, weight in model.named_parameters()}
    values = {name: gradient.clone() for name, gradient in held.items()}
    report = run(function, model)
    for name, weight in model.named_parameters():
        assert weight.grad is held[name]
        assert torch.equal(weight.grad, values[name])
    if report is not None:
        (one,) = (one for one in report.findings if one.severity != "note")
        assert (one.rule.code, one.severity) == ("RC213", "warning")
        assert "holds another gradient" in one.message


def test_code_that_leaves_accumulated_gradients_alone_is_clean(model, ids):
    model(ids).logits.sum().backward()
    assert not told(capture, model)


@pytest.mark.parametrize("run", [recon.audit, profiled])
def test_a_mode_that_differs_by_module_is_kept(model, run):
    model.transformer.h[0].train()
    before = {name: one.training for name, one in model.named_modules()}
    run(capture, model)
    assert {name: one.training for name, one in model.named_modules()} == before


@pytest.fixture
def precisions():
    """Put back what the tests make cheaper."""
    yield
    torch.backends.mkldnn.matmul.fp32_precision = "none"
    torch.backends.cuda.matmul.fp32_precision = "none"


@pytest.mark.parametrize("run", [recon.audit, profiled])
def test_a_user_of_the_newer_precisions_is_served(model, precisions, run):
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    run(capture, model)
    assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"


def test_a_newer_precision_that_code_sets_is_told_and_put_back(model, precisions):
    def cheaper(model, input_ids):
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        return capture(model, input_ids)

    (one,) = told(cheaper, model).values()
    assert one.rule.code == "RC212"
    assert one.places == ("torch.backends.cuda.matmul.fp32_precision",)
    assert torch.backends.cuda.matmul.fp32_precision == "none"
    assert not census(model)


def test_switches_dtypes_and_variables_of_the_process_are_told_and_put_back(model):
    def switching(model, input_ids):
        torch.backends.cuda.enable_flash_sdp(False)
        torch.set_autocast_dtype("cpu", torch.float16)
        os.environ["RECON_TEST"] = "left"
        return capture(model, input_ids)

    one = told(switching, model)["global-state-changed"]
    assert set(one.places) == {
        "torch.backends.cuda.flash_sdp_enabled",
        "dtype of autocast on cpu",
        "environment RECON_TEST",
    }
    assert torch.backends.cuda.flash_sdp_enabled()
    assert torch.get_autocast_dtype("cpu") is torch.bfloat16
    assert "RECON_TEST" not in os.environ


def test_a_new_attribute_is_a_warning_and_another_value_an_error(model):
    model.flag = 1

    def marking(model, input_ids):
        model._marked_by_me, model.things = True, [1, 2]
        return capture(model, input_ids)

    def changing(model, input_ids):
        model.flag = 2
        return capture(model, input_ids)

    one = told(marking, model)["config-changed"]
    assert one.severity == "warning"
    assert "the model: _marked_by_me is new; the model: things is new" in one.message
    one = told(changing, model)["config-changed"]
    assert one.severity == "error"
    assert "flag was 1, is 2" in one.message
    assert (model.flag, hasattr(model, "things")) == (1, False)
    assert not hasattr(model, "_marked_by_me")
