"""What an audit and a profile leave of a user's model and process: all of it."""

import pytest
import torch

import recon


def capture(model, input_ids):
    with torch.no_grad():
        out = model(input_ids, output_hidden_states=True)
    return {"hidden_states": out.hidden_states}


def profiled(function, model):
    recon.profile(model, target=function, rounds=2, leak_rounds=3)


@pytest.mark.parametrize("run", [recon.audit, profiled])
def test_a_mode_that_differs_by_module_is_kept(model, run):
    model.transformer.h[0].train()
    before = {name: one.training for name, one in model.named_modules()}
    run(capture, model)
    assert {name: one.training for name, one in model.named_modules()} == before
