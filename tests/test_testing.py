"""Do the strategies for users build what they describe, and faults what they say?"""

import subprocess
import sys

import pytest
import torch
from hypothesis import find, given, settings
from hypothesis import strategies as st

import recon
from recon.testing import Faulty, faulty, gpt2_configs, gpt2_inputs, models
from recon.testing.faults import FAULTS

few = settings(max_examples=15, deadline=None, derandomize=True)


def right(model, input_ids):
    with recon.capture(model, sites="h.*.{resid_post,mlp_out}") as recorder:
        model(input_ids)
    trace = recorder.trace
    return {str(site): trace[site].clone() for site in trace.tensors}


def a_pair(model, input_ids):
    captured = right(model, input_ids)
    return [captured["h.0.mlp_out"], {"second": captured["h.1.mlp_out"]}]


# -- strategies ------------------------------------------------------------------


@few
@given(data=st.data())
def test_a_drawn_model_takes_its_drawn_inputs_and_reconciles(data):
    recipe = data.draw(models(dtypes=("float32",)))
    prompt = data.draw(gpt2_inputs(recipe))
    recon.verify(recipe.build(), **prompt.tensors(recipe)).check()


@few
@given(recipe=models(train=True))
def test_a_model_is_what_its_recipe_says(recipe):
    state = torch.get_rng_state()
    model = recipe.build()
    assert torch.equal(torch.get_rng_state(), state)
    assert str(model.dtype) == f"torch.{recipe.dtype}"
    assert (model.training, hasattr(model, "lm_head")) == (recipe.train, recipe.headed)
    for name, value in recipe.options.items():
        assert getattr(model.config, name) == value
    again = recipe.build().state_dict()
    assert all(torch.equal(w, again[name]) for name, w in model.state_dict().items())


def test_configs_shrink_to_ordinary_ones():
    smallest = find(gpt2_configs(), lambda options: True)
    assert smallest == {"n_layer": 1, "n_head": 1, "n_embd": 1}
    wanted = find(gpt2_configs(), lambda options: options.get("add_cross_attention"))
    assert set(wanted) == {"n_layer", "n_head", "n_embd", "add_cross_attention"}


def test_recon_without_testing_does_not_import_hypothesis():
    code = (
        "import sys, recon, recon.pytest_plugin; assert 'hypothesis' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- faults ----------------------------------------------------------------------


def test_the_right_function_is_clean(model):
    assert recon.audit(right, model).verdict == "clean"


@pytest.mark.parametrize("fault", FAULTS)
def test_an_audit_finds_each_fault(model, fault):
    report = recon.audit(
        Faulty(right, fault, pick=1), model, effort="quick", strict=True
    )
    assert report.verdict != "clean", fault


@pytest.mark.parametrize("fault", sorted({*FAULTS} - {"hook", "mode", "weight"}))
@few
@given(pick=st.integers(0, 99))
def test_a_fault_changes_the_tensor_that_it_names_and_no_other(fault, pick):
    model = recon.load_model("random:tiny").model
    ids = torch.arange(14).view(2, 7)
    wrong = Faulty(right, fault, pick)
    honest, damaged = right(model, ids), wrong(model, ids)
    changed = {n for n in honest if not torch.equal(honest[n], damaged[n])}
    assert {f"['{name}']" for name in changed} == {wrong.where(honest)}
    assert {n: (t.shape, t.dtype) for n, t in damaged.items()} == {
        n: (t.shape, t.dtype) for n, t in honest.items()
    }


def test_nested_captures_are_damaged_too(model, ids):
    wrong = Faulty(a_pair, "sign", pick=1)
    first, second = wrong(model, ids)
    honest, other = a_pair(model, ids)
    assert torch.equal(first, honest)
    assert torch.equal(second["second"], -other["second"])
    assert wrong.where([honest, other]) == "[1]['second']"


def test_what_is_left_behind_is_what_it_says(model, ids):
    hooks = len(model._forward_hooks)
    Faulty(right, "hook")(model, ids)
    assert len(model._forward_hooks) == hooks + 1
    Faulty(right, "mode")(model, ids)
    assert model.training
    before = {n: p.clone() for n, p in model.named_parameters()}
    Faulty(right, "weight")(model, ids)
    moved = [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]
    assert len(moved) == 1
    assert moved[0].endswith("bias")


def test_a_fault_that_makes_no_difference_is_refused(model, ids):
    with pytest.raises(recon.UsageError, match="'row' makes no difference in any of"):
        Faulty(right, "row")(model, ids[:1])
    with pytest.raises(recon.UsageError, match="of the 0 captured"):
        Faulty(lambda model, ids: {"n": 1}, "sign")(model, ids)


def test_faults_are_drawn_of_those_asked_for_and_print_as_what_to_type():
    drawn = find(faulty(right, faults=("nan", "half")), lambda wrong: wrong.pick > 2)
    assert repr(drawn) == "Faulty(right, 'nan', 3)"
    assert drawn.says == "a tensor is all NaN"
    assert all(Faulty(right, name).says for name in FAULTS)
    with pytest.raises(recon.UsageError, match="found 'nana', expected of element"):
        faulty(right, faults=("nana",))
