"""What a profile says of recon's own capture, and of other people's."""

import gc
import math
import random

import pytest
import torch

import recon
from recon.census import census, foreign
from recon.errors import LeakError, UsageError
from recon.profiling import hooks, memory
from recon.profiling.results import AGAIN, BARE
from recon.profiling.session import STATES
from recon.profiling.timing import interleaved, ratio
from recon.recorder import Options
from recon.watch import hooks_put_back

FAST = {"rounds": 2, "leak_rounds": 3}
KEPT: list = []


def right(model, input_ids):
    kept = {}

    def keep(module, args, output):
        kept["h.1"] = output

    block = model.transformer.h[1]
    with torch.no_grad(), block.register_forward_hook(keep):
        model(input_ids)
    return kept


def keeps_all(model, input_ids):
    KEPT.append(right(model, input_ids))
    return KEPT[-1]


def with_a_graph(model, input_ids):
    kept = []
    with model.transformer.h[1].register_forward_hook(lambda m, a, o: kept.append(o)):
        model(input_ids)
    return kept


@pytest.fixture(scope="module")
def own(make_model, make_ids, module_without_type_checks, quick_collections):
    model = make_model()
    before = census(model), model.training, torch.get_rng_state()
    found = recon.profile(model, inputs={"input_ids": make_ids()}, **FAST)
    after = census(model), model.training, torch.get_rng_state()
    return found, before, after


def test_recons_own_capture_is_clean_and_kept_to_the_byte(own):
    found, _, _ = own
    assert found.check() is found
    assert found.verdict == "clean"
    assert found.watch.verdict == "clean"
    named = sum(one.held for one in found.memory.sites)
    assert named == found.memory.needed > 0
    assert found.memory.elsewhere == found.memory.held - named >= 0
    assert (found.release.alive, found.release.nbytes) == (0, 0)
    assert found.release.captured > 3 * 7


def test_every_level_is_timed_against_the_bare_pass(own):
    found, _, _ = own
    names = [one.name for one in found.times]
    levels = [f"capture + {name}" for name in ("ledger", "sketch", "replay", "certify")]
    assert names == [BARE, AGAIN, STATES, "capture", *levels]
    assert found.overhead.name == "capture"
    assert all(one.low <= one.ratio <= one.high for one in found.times)
    assert all(one.quartiles[0] <= one.quartiles[1] for one in found.times)


def test_hooks_are_counted_and_timed_by_what_they_sit_on(own):
    found, _, _ = own
    assert found.hooks == 7 * 3 + 7
    block = next(
        tap for tap in found.taps if tap.place == "transformer.h.*.attn.c_attn"
    )
    assert (block.firings, block.sites) == (3, ("h.*.ln_1", "h.*.attn.qkv"))
    assert all(tap.seconds > 0 for tap in found.taps)
    assert [t.seconds for t in found.taps] == sorted(
        (t.seconds for t in found.taps), reverse=True
    )
    assert 0 < found.hook.fire < 1e-3
    assert found.hook.register > 0 < found.hook.remove


def test_the_model_and_the_generators_are_left_as_they_were(own):
    _, (hooks_then, mode_then, state_then), (hooks_now, mode_now, state_now) = own
    assert (hooks_then, mode_then) == (hooks_now, mode_now)
    assert torch.equal(state_then, state_now)


def test_a_correct_function_is_clean(model, ids):
    found = recon.profile(model, target=right, inputs={"input_ids": ids}, **FAST)
    assert found.verdict == "clean"
    assert found.overhead.name == "right"
    assert [one.site for one in found.memory.sites] == ["['h.1']"]
    assert found.memory.needed == 3 * 7 * 32 * 4 == found.memory.held
    assert found.hooks == 1
    assert found.hook is None


@pytest.fixture
def older_holders():
    """Let the collector see everything again: what holds is to be named."""
    gc.unfreeze()
    yield
    gc.freeze()


@pytest.mark.usefixtures("older_holders")
def test_a_function_that_keeps_everything_is_told_with_who_holds_it(model, ids):
    found = recon.profile(model, target=keeps_all, inputs={"input_ids": ids}, **FAST)
    KEPT.clear()
    assert found.verdict == "leaks"
    assert found.release.alive == 1
    assert found.watch.nbytes.low == found.watch.nbytes.per_round == 3 * 7 * 32 * 4
    with pytest.raises(
        LeakError, match=r"held by tests\.test_profiling\.KEPT\["
    ) as told:
        found.check()
    assert told.value.findings == found.findings


def test_a_graph_is_counted_among_what_is_held_elsewhere(model, ids):
    given = {"input_ids": ids}
    found = recon.profile(model, target=with_a_graph, inputs=given, **FAST)
    assert found.verdict == "clean"
    assert found.memory.elsewhere > 10 * found.memory.needed
    assert found.memory.graph > 0
    assert any("gradients on" in note for note in found.notes)
    assert [one.name for one in found.times][-1] == "bare, under no_grad"


def test_hooks_that_a_function_leaves_are_taken_away_at_the_end(model, ids):
    def leaves(model, input_ids):
        model.transformer.h[0].register_forward_hook(lambda module, args, output: None)
        model.transformer.h[0].kept = torch.ones(3)
        return model(input_ids).logits

    before = census(model)
    found = recon.profile(model, target=leaves, inputs={"input_ids": ids}, **FAST)
    assert found.verdict == "leaks"
    assert found.watch.hooks.per_round == 2
    assert census(model) == before
    assert not hasattr(model.transformer.h[0], "kept")


def test_a_function_that_raises_is_told_in_one_line(model, ids):
    def raises(model, input_ids):
        raise ValueError("no\nluck")

    with pytest.raises(UsageError, match=r"raises raised ValueError: no luck$"):
        recon.profile(model, target=raises, inputs={"input_ids": ids}, **FAST)


@pytest.mark.parametrize("rounds", [{"rounds": 1}, {"leak_rounds": 2}])
def test_too_few_rounds_to_tell_anything_are_refused(model, rounds):
    with pytest.raises(UsageError, match="expected at least 2 and 3"):
        recon.profile(model, **rounds)


def test_a_profile_cannot_be_taken_for_a_truth_value(own):
    with pytest.raises(TypeError, match=r"read profile\.verdict"):
        bool(own[0])


# -- bytes -----------------------------------------------------------------------------


def test_views_are_counted_once_and_a_slice_holds_more_than_it_needs():
    whole = torch.zeros(10, 30)
    q, k = whole[:, :10], whole[:, 10:20]
    rows = memory.by_site({"q": q, "k": k, "q again": q.T})
    assert [(r.held, r.needed, r.shared_with) for r in rows] == [
        (1200, 400, ""),
        (0, 400, "q"),
        (0, 0, "q"),
    ]


def test_tensors_of_other_widths_and_none_at_all_are_counted():
    half = torch.zeros(7, dtype=torch.bfloat16)[1::2]
    rows = memory.by_site(
        {"half": half, "empty": torch.zeros(0), "one": torch.ones(())}
    )
    assert [(r.held, r.needed) for r in rows] == [(14, 6), (0, 0), (4, 4)]


def test_an_expanded_tensor_needs_what_it_stores():
    (row,) = memory.by_site({"mask": torch.zeros(1, 5).expand(100, 5)})
    assert (row.held, row.needed) == (20, 20)


def test_without_a_cuda_device_the_reason_is_given(own):
    assert own[0].memory.allocator is None
    assert "cpu" in own[0].memory.allocator_reason


# -- times -----------------------------------------------------------------------------


def test_the_ratio_of_paired_times_and_its_interval():
    dice = random.Random(0)
    base = [1 + dice.random() for _ in range(60)]
    found = ratio("twice", [2 * b for b in base], base, random.Random(1))
    assert (found.ratio, found.low, found.high) == (2, 2, 2)
    assert found.tells(0.5)
    noisy = ratio("same", [1 + dice.random() for _ in base], base, random.Random(1))
    assert noisy.low < 1 < noisy.high
    assert not noisy.tells(0.0)


def test_the_interval_of_a_ratio_holds_it_in_about_19_of_20_cases():
    dice = random.Random(0)
    covered = 0
    for _ in range(60):
        base = [math.exp(dice.gauss(0, 0.1)) for _ in range(25)]
        mine = [1.3 * math.exp(dice.gauss(0, 0.1)) for _ in range(25)]
        found = ratio("x", mine, base, dice)
        covered += found.low <= 1.3 <= found.high
    assert covered >= 51


def test_variants_run_in_turn_and_what_is_around_them_is_not_timed():
    ran = []
    found = interleaved(
        {"a": lambda: ran.append("a"), "b": lambda: ran.append("b")},
        rounds=5,
        warm_up=1,
    )
    assert sorted(ran) == ["a"] * 6 + ["b"] * 6
    assert all({*ran[n : n + 2]} == {"a", "b"} for n in range(0, 12, 2))
    assert [one.name for one in found] == ["a", "b"]


def test_a_noisy_machine_is_told(own):
    from dataclasses import replace

    found = own[0]
    bare, again, *others = found.times
    loud = replace(again, low=0.7, high=1.2)
    assert replace(found, times=(bare, loud, *others)).noisy
    quiet = replace(again, low=0.99, high=1.02)
    assert replace(found, times=(bare, quiet, *others)).noise == pytest.approx(0.02)
    assert not replace(found, times=(bare, quiet, *others)).noisy


# -- hooks -----------------------------------------------------------------------------


def test_a_clocked_recorder_records_as_the_plain_one(model, ids):
    from recon import gpt2

    recorder = hooks.TimedRecorder(gpt2.plan(model), Options())
    with recorder, torch.no_grad():
        model(ids)
    with recon.capture(model) as plain, torch.no_grad():
        model(ids)
    assert {*recorder.trace.tensors} == {*plain.trace.tensors}
    assert all(count == 1 for count, _ in recorder.spent.values())


def test_hooks_are_put_back_also_after_an_exception(model):
    def fail():
        with hooks_put_back(model):
            model.register_forward_hook(lambda *_: None)
            assert foreign(census(model))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert foreign(census(model)) == ()
