"""The residual stream, rebuilt and taken apart."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

import recon
from property_tests.observing import record, same_bits
from recon import Site, Trace
from recon.testing.strategies import Run, runs

GRANULARITIES = ["update", "head", "neuron"]
OF_THE_STREAM = ("resid_pre", "resid_mid", "resid_post")


def recorded(run: Run) -> tuple[Trace, tuple[Tensor, ...]]:
    """Record a run that overflows nowhere; return its trace and hidden states."""
    model, inputs = run.build()
    trace, output = record(model, inputs)
    assume(all(bool(torch.isfinite(state).all()) for state in output.hidden_states))
    return trace, output.hidden_states


def allowed(trace: Trace, terms: dict[str, Tensor]) -> Tensor:
    """Say how far a sum in another order may stray: 64 roundings of all its terms."""
    size = sum(term.double().abs() for term in terms.values())
    eps = torch.finfo(trace.facts.environment.dtype).eps
    return 64 * eps * (size + size.max())


@given(run=runs(train=True))
def test_the_stream_is_rebuilt_bit_for_bit(run: Run):
    trace, states = recorded(run)
    rebuilt = recon.reconstruct(trace)
    assert len(rebuilt) == len(states) == run.recipe.depth + 1
    assert [i for i, s in enumerate(states) if not same_bits(s, rebuilt[i])] == []


@given(run=runs(train=True))
def test_the_stream_is_rebuilt_without_reading_the_stream(run: Run):
    trace, _ = recorded(run)
    updates = {
        place: tensor
        for place, tensor in trace.tensors.items()
        if not place.part.endswith(OF_THE_STREAM)
    }
    whole = recon.reconstruct(trace)
    blind = recon.reconstruct(replace(trace, tensors=updates))
    assert all(same_bits(a, b) for a, b in zip(whole, blind, strict=True))


@given(run=runs(train=True), granularity=st.sampled_from(GRANULARITIES[1:]))
def test_finer_pieces_rebuild_the_stream_up_to_rounding(run: Run, granularity: str):
    trace, states = recorded(run)
    rebuilt = recon.reconstruct(trace, granularity=granularity)
    assert len(rebuilt) == len(states)
    # The last went through a LayerNorm, which magnifies without limit.
    last = len(states) - trace.facts.tied_last
    for index, (found, state) in enumerate(
        zip(rebuilt[:last], states[:last], strict=True)
    ):
        terms = recon.decompose(trace, index, granularity=granularity)
        gap = (found.double() - state.double()).abs()
        assert bool((gap <= allowed(trace, terms)).all()), index


@given(
    run=runs(train=True),
    granularity=st.sampled_from(GRANULARITIES),
    data=st.data(),
)
def test_the_terms_of_a_state_add_up_to_it(
    run: Run, granularity: str, data: st.DataObject
):
    trace, _ = recorded(run)
    stream = [s for s in trace.tensors if s.part.endswith(OF_THE_STREAM)]
    place = data.draw(st.sampled_from(stream), label="state")
    terms = recon.decompose(trace, place, granularity=granularity)
    total = sum(term.double() for term in terms.values())
    gap = (total - trace[place].double()).abs()
    assert bool((gap <= allowed(trace, terms)).all())


@given(run=runs(train=True), data=st.data())
def test_updates_added_in_order_are_the_state_bit_for_bit(
    run: Run, data: st.DataObject
):
    trace, _ = recorded(run)
    stream = [s for s in trace.tensors if s.part.endswith(OF_THE_STREAM)]
    place = data.draw(st.sampled_from(stream), label="state")
    terms = list(recon.decompose(trace, place).values())
    assert same_bits(reduce(torch.add, terms), trace[place])


@given(
    run=runs(), layer=st.integers(0, 3), part=st.sampled_from(["attn_out", "mlp_out"])
)
def test_a_damaged_update_first_shows_in_the_state_after_it(
    run: Run, layer: int, part: str
):
    assume(layer < run.recipe.depth)
    trace, _ = recorded(run)
    # Untied, so that no LayerNorm hides a change of the last state.
    trace = replace(trace, facts=replace(trace.facts, tied_last=False))
    place = Site(part, layer)
    damaged = trace[place] + 2 * trace[Site("resid_pre", layer)].abs().max() + 1
    clean = recon.reconstruct(trace)
    broken = recon.reconstruct(trace.replace(place, damaged))
    same = [same_bits(a, b) for a, b in zip(clean, broken, strict=True)]
    assert same.index(False) == layer + 1
