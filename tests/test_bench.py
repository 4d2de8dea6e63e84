"""What tensors are compared with: is an answer that of the tensor asked about?"""

import torch

import recon
from recon.auditing.bench import Bench
from recon.auditing.calls import Call
from recon.auditing.returned import Returned
from recon.auditing.situations import Situation


def bench_of(model, ids):
    with torch.no_grad(), recon.capture(model) as recorder:
        model(ids)
    situation = Situation("one prompt", {"input_ids": ids})
    call = Call(situation, Returned(), (recorder.trace,), (), None, None, (), 0, {})
    return Bench(call), recorder


def test_a_tensor_gets_no_answer_that_was_given_to_one_that_is_gone(
    make_model, make_ids
):
    bench, recorder = bench_of(make_model(), make_ids())
    places = [f"h.{layer}.{part}" for layer in (0, 1) for part in ("ln_1", "mlp.pre")]
    for place in places * 8:
        # Made anew each time, often where the last one was.
        found = bench.exact(recorder.trace[place].clone(), ())
        assert str(found.quantity.site) == place
