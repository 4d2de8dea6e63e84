"""What does capture add to a forward pass?

Bare, with hidden states, with one naive hook on each module, and with recon, whose
hooks are registered for each pass or once for all. All variants run on one model, and
hooks come and go untimed: a copy of the model would be measured with cold caches. The
4 blocks are 128 wide with 4 heads; random:gpt2 is GPT-2 small with perturbed weights.
Two rows say what no capture can do without: hooks that do nothing, where recon has its
own, and the same tensors kept by replaced forwards, without any hook, whose memory the
next step of the pass then cannot use again.
"""

from contextlib import contextmanager

import pytest
import torch
import transformers

import recon
from bench.peers import peers
from bench.showing import show
from recon import gpt2
from recon.models import perturb
from recon.profiling.timing import interleaved

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
    "4 blocks, T=32": (four_blocks, 32, 60),
    "random:gpt2, T=128": (lambda: recon.load_model("random:gpt2").model, 128, 8),
    "random:gpt2, T=512": (lambda: recon.load_model("random:gpt2").model, 512, 6),
}


@contextmanager
def naively_hooked(model, kept):
    def keep(module, args, output):
        kept.append(output)

    handles = [module.register_forward_hook(keep) for module in model.modules()]
    yield
    for handle in handles:
        handle.remove()


@contextmanager
def hooked_with_nothing(model):
    """Put an empty hook wherever recon puts one: what torch takes for calling them."""
    handles = [
        tap.module.register_forward_hook(lambda module, args, output: None)
        for tap in gpt2.plan(model).taps
    ]
    yield
    for handle in handles:
        handle.remove()


@contextmanager
def kept_without_hooks(model, kept):
    """Replace the forwards where recon puts a hook; keep what they see and return."""

    def replaced(forward):
        def keep(*args, **kwargs):
            output = forward(*args, **kwargs)
            kept.append((args, output))
            return output

        return keep

    modules = [tap.module for tap in gpt2.plan(model).taps]
    for module in modules:
        module.forward = replaced(module.forward)
    yield
    for module in modules:
        del module.forward


@contextmanager
def recording(model, run):
    with recon.capture(model):
        # The timed pass lets this one's tensors go, as in a long run.
        run()
        yield


@pytest.mark.parametrize("case", CASES)
def test_what_capture_adds(case, benchmark):
    build, tokens, rounds = CASES[case]
    model = build()
    ids = torch.randint(model.config.vocab_size, (1, tokens))
    kept: list = []
    each = recon.capture(model)

    def run(**more):
        with torch.no_grad():
            model(ids, use_cache=False, **more)

    def anew():
        kept.clear()
        run()

    def registered_each_time():
        with each:
            run()

    ratios = interleaved(
        {
            "bare": run,
            "bare again (noise)": run,
            "output_hidden_states": lambda: run(output_hidden_states=True),
            "empty hooks where recon's are": run,
            "kept without hooks": anew,
            "naive hook on every module": anew,
            "recon, registered once": run,
            "recon, registered each time": registered_each_time,
            **dict(peers(model, ids)),
        },
        rounds,
        warm_up=1 if tokens > 32 else 3,
        around={
            "empty hooks where recon's are": lambda: hooked_with_nothing(model),
            "kept without hooks": lambda: kept_without_hooks(model, kept),
            "naive hook on every module": lambda: naively_hooked(model, kept),
            "recon, registered once": lambda: recording(model, run),
        },
    )
    show(case, ratios, benchmark)
    benchmark.pedantic(registered_each_time, rounds=5)
