"""What does it take to say what 200 tensors are, against a bare forward pass?

They are copies of what ``random:gpt2`` computed, and are looked up among all sites of
the pass: as they are, and laid out or cut in other ways. What the search keeps about
the pass is made anew each time.
"""

from itertools import cycle, islice

import pytest
import torch

import recon
from bench.bench_checking import captured
from bench.showing import show
from recon.auditing.identify import Catalogue
from recon.profiling.timing import interleaved

TENSORS = 200
AS_THEY_ARE = (lambda tensor: tensor.clone(),)
OTHERWISE = (
    lambda tensor: tensor.transpose(1, 2).contiguous(),
    lambda tensor: tensor[0],
    lambda tensor: tensor[:, 3].clone(),
    lambda tensor: tensor.bfloat16(),
    lambda tensor: tensor.flatten(0, 1),
)


@pytest.mark.parametrize("changes", [AS_THEY_ARE, OTHERWISE], ids=["same", "otherwise"])
def test_what_it_takes_to_identify_200_tensors(changes, benchmark):
    model = recon.load_model("random:gpt2").model
    ids = torch.randint(model.config.vocab_size, (1, 128))
    trace = captured(model, ids)
    held = [
        trace[site]
        for site in trace.sites
        if trace.origin(site) == "captured" and site.layer is not None
    ]
    tensors = [
        change(tensor)
        for change, tensor in islice(zip(cycle(changes), cycle(held)), TENSORS)
    ]

    def bare():
        with torch.no_grad():
            model(ids, use_cache=False)

    def identify():
        catalogue = Catalogue([("", trace)])
        found = [catalogue.exact(tensor, lambda quantity: False) for tensor in tensors]
        assert None not in found

    ratios = interleaved(
        {"bare": bare, "200 tensors identified": identify}, rounds=8, warm_up=2
    )
    how = "as they are" if changes is AS_THEY_ARE else "laid out, cut or rounded"
    show(f"200 tensors {how}, random:gpt2, T=128", ratios, benchmark)
    benchmark.pedantic(identify, rounds=3)
