"""Keywords and inputs that nobody takes are refused by name, before anything runs."""

from functools import partial

import pytest
import torch
from transformers import GPT2LMHeadModel

import recon
from recon import gpt2


def checked(model, **inputs):
    return recon.check_baseline("none.json", model, **inputs)


def recorded(model, **inputs):
    return recon.record_baseline("none.json", model, **inputs)


@pytest.mark.parametrize(
    ("function", "name", "guess"),
    [
        (recon.verify, "level", "levels"),
        (recon.verify, "attention_msk", "attention_mask"),
        (recorded, "attention_msk", "attention_mask"),
        (recorded, "overheads", "overhead"),
        (checked, "allowance", "allowances"),
    ],
)
def test_a_keyword_that_nobody_takes_is_refused_by_name(
    model, ids, function, name, guess
):
    words = f"{name}: no input of GPT2LMHeadModel .*; did you mean {guess}"
    with pytest.raises(recon.UsageError, match=words + r"\?$"):
        function(model, input_ids=ids, **{name: torch.ones_like(ids)})


def test_inputs_of_a_profile_are_held_to_the_names_that_the_model_takes(model, ids):
    with pytest.raises(recon.UsageError, match=r"foo: no input of .* it takes input_i"):
        recon.profile(model, inputs={"input_ids": ids, "foo": ids})


def test_what_wrappers_of_the_models_forward_take_is_no_unknown_keyword(model, ids):
    asks = {"output_hidden_states": True, "return_dict": True, "use_cache": False}
    report = recon.verify(model, ids, labels=ids, **asks)
    assert report.verdict == "reconciled"


class _Steered(GPT2LMHeadModel):
    def forward(self, *args, strength=0.0, **kwargs):
        return super().forward(*args, **kwargs)


def test_a_keyword_that_a_subclass_names_is_none_to_refuse(make_model, ids):
    model = make_model(_Steered)
    gpt2.require_names(model, {"input_ids": ids, "strength": 1.0})
    with pytest.raises(recon.UsageError, match="did you mean strength"):
        gpt2.require_names(model, {"input_ids": ids, "strenght": 1.0})


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (torch.ones(1, 2), "inputs: expected a mapping of names .* found Tensor"),
        ({"input_ids": torch.ones(1, 2)}, "expected token ids .* found float32"),
    ],
)
def test_inputs_of_another_kind_are_refused_before_anything_runs(model, inputs, words):
    for function in (recon.profile, partial(recon.audit, lambda model, input_ids: {})):
        with pytest.raises(recon.UsageError, match=words):
            function(model, inputs=inputs)
