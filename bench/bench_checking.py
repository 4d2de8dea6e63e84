"""What does each level of proof cost, against a bare forward pass?

What does a pass take that is captured and checked, next to torchlens' validation? How
does certifying grow with tokens, batch and depth? Models are 192 wide with 6 heads; of
the sizes that do not grow, depth is 4, tokens are 64 and batch is 1. The fitted
exponent is the slope of log time over log size. And what is kept at most of a pass that
is checked block by block, T=64?
"""

import math

import pytest
import torch
import transformers

import recon
from bench.bench_capture import four_blocks
from bench.peers import validation
from bench.showing import circumstances, keep, show
from recon.checks import LEVELS, Levels, trace_checks
from recon.models import perturb
from recon.profiling.timing import interleaved

transformers.logging.set_verbosity_error()


def captured(model, ids):
    with recon.capture(model) as recorder, torch.no_grad():
        model(ids, use_cache=False)
    return recorder.trace


def test_what_each_level_costs(benchmark):
    model = recon.load_model("random:gpt2").model
    ids = torch.randint(model.config.vocab_size, (1, 128))
    trace = captured(model, ids)

    def bare():
        with torch.no_grad():
            model(ids, use_cache=False)

    def level(*names):
        return lambda: trace_checks(trace, None, Levels(names))

    ratios = interleaved(
        {
            "bare": bare,
            "ledger": level("ledger"),
            "sketch": level("sketch"),
            "ledger + sketch": level("ledger", "sketch"),
            "replay": level("replay"),
            "certify": level("certify"),
        },
        rounds=12,
        warm_up=2,
    )
    show("levels alone, random:gpt2, T=128", ratios, benchmark)
    benchmark.pedantic(level("ledger", "sketch"), rounds=5)


CASES = {
    "4 blocks, T=32": (four_blocks, 32, 6),
    "random:gpt2, T=128": (lambda: recon.load_model("random:gpt2").model, 128, 3),
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_checked_pass_takes(case, benchmark):
    build, tokens, rounds = CASES[case]
    model = build()
    ids = torch.randint(model.config.vocab_size, (1, tokens))

    def bare():
        with torch.no_grad():
            model(ids, use_cache=False)

    def checked(level):
        def run():
            checks = trace_checks(captured(model, ids), None, Levels((level,)))
            assert all(check.passed for check in checks)

        return run

    variants = {f"recon, {level}": checked(level) for level in LEVELS}
    ratios = interleaved(
        {"bare": bare, **variants, **dict(validation(model, ids))}, rounds, warm_up=1
    )
    show(f"capture and check, {case}", ratios, benchmark)
    benchmark.pedantic(checked("sketch"), rounds=2)


def narrow(depth, tokens=512):
    config = transformers.GPT2Config(
        n_layer=depth,
        n_embd=192,
        n_head=6,
        vocab_size=997,
        n_positions=max(512, tokens),
        bos_token_id=0,
        eos_token_id=0,
    )
    model = transformers.GPT2LMHeadModel(config).train(False)
    perturb(model)
    return model


# name: sizes, and batch, tokens and depth of one size
GROWTH = {
    "tokens": ((32, 64, 128, 256, 512), lambda n: (1, n, 4)),
    "batch": ((1, 2, 4, 8), lambda n: (n, 64, 4)),
    "depth": ((2, 4, 8, 16), lambda n: (1, 64, n)),
}


@pytest.mark.parametrize("axis", GROWTH)
def test_how_certifying_grows(axis, benchmark):
    sizes, shape = GROWTH[axis]
    variants = {}
    for size in sizes:
        batch, tokens, depth = shape(size)
        model = narrow(depth)
        trace = captured(model, torch.randint(997, (batch, tokens)))
        variants[f"{axis} {size}"] = lambda trace=trace: trace_checks(
            trace, None, Levels(("certify",))
        )
    ratios = interleaved(variants, rounds=5, warm_up=1)
    points = [
        (math.log(n), math.log(r.seconds)) for n, r in zip(sizes, ratios, strict=True)
    ]
    slope = fitted_slope(points)
    show(f"certify by {axis}: time ^{slope:.2f}", ratios, benchmark)
    benchmark.extra_info["exponent"] = slope
    benchmark.pedantic(next(iter(variants.values())), rounds=2)


def fitted_slope(points):
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    over = sum((x - mean_x) * (y - mean_y) for x, y in points)
    return over / sum((x - mean_x) ** 2 for x, _ in points)


DEPTHS = (12, 24, 48)


def test_what_streaming_keeps(benchmark):
    """Count live tensor bytes while a pass is checked block by block."""
    ids = torch.randint(997, (1, 64))
    models = [narrow(depth) for depth in DEPTHS]
    held = [recon_peak(model, ids) for model in models]
    whole = [whole_bytes(model, ids) for model in models]
    title = "checked block by block: the most bytes kept, by depth"
    print(f"\n{title}\n{circumstances()}")
    for depth, kept, all_of_it in zip(DEPTHS, held, whole, strict=True):
        print(f"  depth {depth}: {kept:,} bytes, {kept / all_of_it:.3f} of all")
    keep(benchmark, title=title, sizes=list(DEPTHS), held=held, whole=whole)
    benchmark.pedantic(lambda: recon_peak(models[0], ids), rounds=1)


def whole_bytes(model, ids):
    """Return the bytes that a recorder keeps which holds on to every site."""
    with recon.capture(model) as recorder, torch.no_grad():
        model(ids, use_cache=False)
    return recorder.nbytes


def recon_peak(model, ids):
    """Return the most bytes that a checking recorder held at the end of any module."""
    recorder = recon.capture(model, check=("ledger", "certify"))
    most = 0

    def look(*_):
        nonlocal most
        most = max(most, recorder.nbytes)

    with recorder, torch.no_grad():
        handles = [module.register_forward_hook(look) for module in model.modules()]
        model(ids, use_cache=False)
        for handle in handles:
            handle.remove()
    return most
