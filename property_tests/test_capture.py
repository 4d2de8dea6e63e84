"""Capturing less, or in another form, keeps the same values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import recon
from property_tests.observing import hooks_of, record, same_bits
from recon import Trace
from recon.testing.strategies import Run, runs


def record_with(run: Run, **options: Any) -> Trace:
    """Run once more, from random state 0 as ``record`` does, with options."""
    model, inputs = run.build()
    with torch.no_grad(), recon.capture(model, **options) as recorder:
        torch.manual_seed(0)
        model(**inputs)
    return recorder.trace


def whole(run: Run) -> Trace:
    return record(*run.build())[0]


@given(run=runs(train=True), data=st.data())
def test_the_sites_asked_for_are_captured_as_among_all(run: Run, data: st.DataObject):
    every = whole(run)
    # A tensor that the caller brought is there in any case.
    known = [s for s in every if every.origin(s) != "given"]
    asked = data.draw(
        st.lists(st.sampled_from(known), min_size=1, max_size=4), label="sites"
    )
    some = record_with(run, sites=[str(s) for s in asked])
    assert set(some) == set(asked)
    assert [s for s in asked if not same_bits(some[s], every[s])] == []
    with pytest.raises(recon.UsageError, match="holds only the sites"):
        recon.verify_trace(some)


@given(run=runs(train=True), data=st.data())
def test_the_positions_asked_for_are_captured_as_among_all(
    run: Run, data: st.DataObject
):
    every = whole(run)
    tokens = run.prompt.tokens
    places = st.integers(-tokens, tokens - 1)
    asked = data.draw(st.lists(places, min_size=1, max_size=3), label="positions")
    # Logits have no more rows than logits_to_keep.
    some = record_with(run, positions=asked, sites=["*embed", "h.*", "ln_f"])
    for place in some:
        if place.part in ("cross.kv", "cross.k", "cross.v"):
            assert same_bits(some[place], every[place])
            continue
        tensor = every[place]
        assert same_bits(some[place], tensor.index_select(-2, rows(asked, tensor)))


def rows(positions: list[int], tensor: Tensor) -> Tensor:
    return torch.tensor([p % tensor.shape[-2] for p in positions])


@given(run=runs(train=True), dtype=st.sampled_from([torch.float64, torch.bfloat16]))
def test_another_dtype_is_a_conversion_of_what_was_computed(run, dtype):
    every, some = whole(run), record_with(run, dtype=dtype)
    for place in every.tensors:
        assert same_bits(some[place], every[place].to(dtype))


@given(run=runs())
def test_clones_share_no_memory_with_what_the_model_returns(run: Run):
    model, inputs = run.build()
    with torch.no_grad(), recon.capture(model, clone=True) as recorder:
        output = model(**inputs, output_hidden_states=True)
        for state in output.hidden_states:
            state.zero_()
    every = whole(run)
    copies = recorder.trace.tensors
    assert [s for s in copies if not same_bits(copies[s], every[s])] == []


@given(run=runs(), budget=st.integers(1, 60_000))
def test_a_budget_is_kept_or_the_pass_stops(run: Run, budget: int):
    model, inputs = run.build()
    before = hooks_of(model)
    with torch.no_grad(), recon.capture(model, budget=budget) as recorder:
        try:
            model(**inputs)
        except recon.BudgetError as error:
            stopped: recon.BudgetError | None = error
        else:
            stopped = None
    assert hooks_of(model) == before
    (trace,) = recorder.traces
    assert trace.nbytes <= budget
    if stopped is None:
        recon.verify_trace(trace).check()
        return
    assert stopped.budget == budget < stopped.held + stopped.wanted
    with pytest.raises(recon.UsageError, match="did not finish"):
        recon.verify_trace(trace)
