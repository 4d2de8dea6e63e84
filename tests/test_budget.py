"""``budget=`` of ``recon.capture``: what is charged, and what is given back."""

import pytest
import torch

import recon
from recon.recorder.keeping import Budget
from recon.recorder.passes import Pass

# Every test here is watched by the plugin: hooks or tensors that stay fail it.
pytestmark = pytest.mark.recon_no_leaks


class NoStart:
    """The start of a pass that was handed no tensor."""

    def tensors(self):
        return iter(())


def captured(model, ids, **options):
    with torch.no_grad(), recon.capture(model, **options) as recorder:
        model(ids)
    return recorder.trace


def bytes_held(model, ids):
    """Return what one pass keeps alive: captures, masks and the cache's contents."""
    with torch.no_grad(), recon.capture(model) as recorder:
        model(ids)
    return recorder.nbytes


def test_a_budget_that_suffices_is_never_noticed(model, ids):
    need = bytes_held(model, ids)
    assert captured(model, ids, budget=need).nbytes <= need


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_capture_stops_before_the_budget_is_exceeded(model, ids, share):
    budget = int(captured(model, ids).nbytes * share)
    before = [dict(m._forward_hooks) for m in model.modules()]
    with (
        torch.no_grad(),
        pytest.raises(recon.BudgetError, match="would exceed the budget of") as caught,
        recon.capture(model, budget=budget) as recorder,
    ):
        model(ids)
    error = caught.value
    assert recorder.nbytes <= error.held <= error.budget == budget
    assert error.held + error.wanted > budget
    assert recon.site(error.place)
    assert not recorder.trace.complete
    assert recorder.trace.failure.startswith("BudgetError")
    assert [dict(m._forward_hooks) for m in model.modules()] == before


def test_a_budget_holds_for_all_passes_together(model, ids):
    need = bytes_held(model, ids)
    with torch.no_grad(), recon.capture(model, keep="all", budget=2 * need) as recorder:
        model(ids)
        model(ids)
        with pytest.raises(recon.BudgetError):
            model(ids)
    assert [trace.complete for trace in recorder.traces] == [True, True, False]


def test_a_budget_for_the_last_pass_serves_any_number_of_passes(model, ids):
    need = bytes_held(model, ids)
    with torch.no_grad(), recon.capture(model, budget=need) as recorder:
        for _ in range(3):
            model(ids)
    assert recorder.trace.run == 2


@pytest.mark.parametrize("depth", [2, 24])
def test_a_budget_counts_only_what_a_checked_pass_still_keeps(make_model, ids, depth):
    model = make_model(n_layer=depth)

    def least_budget(low, high):
        """Return the smallest budget that suffices, in steps of 512 bytes."""
        while low < high:
            middle = (low + high) // 2
            try:
                with recon.capture(model, check="sketch", budget=512 * middle) as r:
                    model(ids)
            except recon.BudgetError:
                low = middle + 1
            else:
                assert r.reports[0].verdict == "reconciled"
                high = middle
        return low

    with torch.no_grad():
        most = bytes_held(make_model(n_layer=2), ids)
        assert 1 < least_budget(1, most // 512) < most // 512


def test_a_reused_address_is_charged_anew():
    one, budget = Pass(0, 0, object, NoStart(), None, False), Budget(1000)
    first = torch.zeros(200)
    one.take((0, first, None, None))
    budget.charge("wte", one, first)
    assert budget.held == 800
    one.let_go()
    budget.settle(one)
    assert (budget.held, one.charged) == (0, {})
    budget.charge("wpe", one, first)  # as good as another one at its address
    assert budget.held == 800
    with pytest.raises(recon.BudgetError, match="wte: keeping 400 more bytes"):
        budget.charge("wte", one, torch.zeros(100))


def test_what_two_passes_keep_is_charged_once_until_both_are_gone():
    passes = [Pass(run, 0, object, NoStart(), None, False) for run in range(2)]
    budget, shared = Budget(1000), torch.zeros(200)
    for one in passes:
        budget.charge("wte", one, shared)
    assert budget.held == 800
    budget.drop(passes[0])
    assert budget.held == 800
    budget.drop(passes[1])
    assert budget.held == 0


def test_a_budget_holds_for_embeddings_that_were_handed_in(model):
    embedded = torch.randn(2, 20, 32)
    for sites in ("wte", None):
        with (
            torch.no_grad(),
            pytest.raises(recon.BudgetError, match="wte: keeping 5,120 more bytes"),
            recon.capture(model, sites=sites, budget=100) as recorder,
        ):
            model(inputs_embeds=embedded)
        assert recorder.nbytes == 0
        assert recorder.trace.failure.startswith("BudgetError")


def test_the_budget_is_that_of_what_is_held_after_each_pass(model, ids):
    with (
        torch.no_grad(),
        recon.capture(model, keep="all", budget=10**9) as recorder,
    ):
        for _ in range(3):
            model(ids)
            assert recorder._budget.held == recorder.nbytes
    recorder.clear()
    assert recorder._budget.held == recorder.nbytes == 0


def test_clearing_makes_room_in_the_budget(model, ids):
    need = bytes_held(model, ids)
    with torch.no_grad(), recon.capture(model, keep="all", budget=need) as recorder:
        for _ in range(3):
            model(ids)
            recorder.clear()
    assert recorder.nbytes == 0
