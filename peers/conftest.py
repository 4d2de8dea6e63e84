"""The models on which the libraries are tried, and one audit for tests of it."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import recon
from recon.models import perturb

TINY = {"n_embd": 32, "n_head": 4, "n_layer": 3, "n_positions": 64, "vocab_size": 97}


@pytest.fixture(scope="session", params=["bundled-sdpa", "random-eager"])
def model(request):
    name, attention = request.param.split("-")
    if name == "bundled":
        return recon.load_model(attention=attention).model
    config = GPT2Config(**TINY, attn_implementation=attention)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        made = GPT2LMHeadModel(config).eval()
    perturb(made, seed=0)
    return made


@pytest.fixture
def audited(model):
    """``audited(function, names)``: the report of a quick audit."""

    def audited(function, names="auto"):
        return recon.audit(function, model, names=names, effort="quick")

    return audited
