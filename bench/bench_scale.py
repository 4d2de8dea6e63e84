"""How do time and bytes of capture grow with depth, tokens and batch?

Models are 192 wide with 6 heads; of the sizes that do not grow, depth is 4, tokens are
64 and batch is 1. The exponent is the slope of log time, or log bytes, over log size.
Bytes kept are compared with the fewest that hold every captured element once: a ratio
of 1 is exact.
"""

import math

import pytest
import torch

import recon
from bench.bench_checking import fitted_slope, narrow
from bench.showing import keep, show
from recon.profiling.memory import by_site
from recon.profiling.timing import interleaved

# name: sizes, and batch, tokens and depth of one size
GROWTH = {
    "depth": ((2, 6, 12, 24, 48), lambda n: (1, 64, n)),
    "tokens": ((16, 64, 256, 1024), lambda n: (1, n, 4)),
    "batch": ((1, 4, 16, 32), lambda n: (n, 64, 4)),
}


def captured(model, ids):
    with recon.capture(model) as recorder, torch.no_grad():
        model(ids, use_cache=False)
    return recorder


@pytest.mark.parametrize("axis", GROWTH)
def test_how_capture_grows(axis, benchmark):
    sizes, shape = GROWTH[axis]
    variants, held, needed = {}, [], []
    for size in sizes:
        batch, tokens, depth = shape(size)
        model, ids = narrow(depth, tokens), torch.randint(997, (batch, tokens))
        variants[f"{axis} {size}"] = lambda model=model, ids=ids: captured(model, ids)
        recorder = captured(model, ids)
        held.append(recorder.nbytes)
        tensors = {str(site): t for site, t in recorder.trace.tensors.items()}
        needed.append(sum(one.needed for one in by_site(tensors)))
    ratios = interleaved(variants, rounds=5, warm_up=1)
    logs = [math.log(size) for size in sizes]
    time = fitted_slope(
        [(x, math.log(r.seconds)) for x, r in zip(logs, ratios, strict=True)]
    )
    space = fitted_slope([(x, math.log(b)) for x, b in zip(logs, held, strict=True)])
    title = f"capture by {axis}: time ^{time:.2f}, bytes ^{space:.2f}"
    show(title, ratios, benchmark)
    for size, kept, least in zip(sizes, held, needed, strict=True):
        print(f"  {axis} {size}: {kept:,} bytes, {kept / least:.3f} times the fewest")
    keep(
        benchmark, held=held, needed=needed, sizes=list(sizes), exponents=[time, space]
    )
    benchmark.pedantic(next(iter(variants.values())), rounds=2)
