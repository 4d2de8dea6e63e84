"""What does capture add to a forward pass?

Bare, with hidden states, with one naive hook on each module, and with recon, whose
hooks are registered for each pass or once for all. Models that keep hooks are copies:
a bare pass must be had in the same round.
"""

import copy

import pytest
import torch
import transformers

import recon
from bench.interleave import interleaved, show
from recon.models import perturb

transformers.logging.set_verbosity_error()


def four_blocks():
    config = transformers.GPT2Config(
        n_layer=4,
        n_embd=128,
        n_head=4,
        vocab_size=3000,
        n_positions=256,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = transformers.GPT2LMHeadModel(config).train(False)
    perturb(model)
    return model


CASES = {
    "4 blocks, T=32": (four_blocks, 32, 400),
    "random:gpt2, T=128": (lambda: recon.load_model("random:gpt2").model, 128, 40),
}


@pytest.mark.parametrize("case", CASES)
def test_what_capture_adds(case, benchmark):
    build, tokens, rounds = CASES[case]
    model = build()
    naively_hooked, hooked = copy.deepcopy(model), copy.deepcopy(model)
    ids = torch.randint(model.config.vocab_size, (1, tokens))
    kept: list = []
    for module in naively_hooked.modules():
        module.register_forward_hook(lambda m, args, out: kept.append(out))
    each = recon.capture(model)

    def run(which, **more):
        with torch.no_grad():
            which(ids, use_cache=False, **more)

    def naive():
        kept.clear()
        run(naively_hooked)

    def registered_each_time():
        with each:
            run(model)

    with recon.capture(hooked):
        ratios = interleaved(
            {
                "bare": lambda: run(model),
                "bare again (noise)": lambda: run(model),
                "output_hidden_states": lambda: run(model, output_hidden_states=True),
                "naive hook on every module": naive,
                "recon, registered once": lambda: run(hooked),
                "recon, registered each time": registered_each_time,
            },
            rounds,
        )
    show(case, ratios, benchmark)
    benchmark.pedantic(registered_each_time, rounds=5)
