"""The recorder's life: many passes, threads and errors, and a model left as it was."""

import contextlib
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import recon
from recon.checks import Levels, trace_checks
from recon.ops import split_heads
from recon.trace import held_bytes
from tests.versions import CACHE

# Every test here is watched by the plugin: hooks or tensors that stay fail it.
pytestmark = pytest.mark.recon_no_leaks

HOOK_DICTS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


def hooks_of(model):
    return [
        (path, name, tuple(getattr(module, name).items()))
        for path, module in model.named_modules()
        for name in HOOK_DICTS
    ]


def trivial_hook(module, args, output):
    return None


def fail_at(module, error=ValueError):
    """Make the next pass, and only that, raise when it reaches ``module``."""

    def fail(module, args):
        handle.remove()
        raise error("half way")

    handle = module.register_forward_pre_hook(fail)


def storage(tensor):
    return tensor.untyped_storage().data_ptr()


# -- by reference --------------------------------------------------------------


def test_captures_are_the_models_own_tensors(model, ids):
    seen = {}
    block = model.transformer.h[1]

    def keep(module, args, output):
        seen[module] = output

    modules = (block.attn.c_attn, block.mlp.act, block.ln_2)
    handles = [module.register_forward_hook(keep) for module in modules]
    with torch.no_grad(), recon.capture(model) as recorder:
        model(ids)
    for handle in handles:
        handle.remove()
    for name, module in (("h.1.attn.qkv", block.attn.c_attn), ("h.1.ln_2", block.ln_2)):
        assert recorder.trace[name].data_ptr() == seen[module].data_ptr()


@pytest.mark.parametrize("piece", [0, 1, 2])
def test_q_k_and_v_are_views_of_qkv(recorded, piece):
    trace, part = recorded.trace, "qkv"[piece]
    view, whole = trace[f"h.1.attn.{part}"], trace["h.1.attn.qkv"]
    assert trace.origin(f"h.1.attn.{part}") == "view"
    assert storage(view) == storage(whole)
    assert torch.equal(view, split_heads(whole.chunk(3, dim=-1)[piece], 4))


def test_dropout_that_rests_leaves_one_tensor_under_two_names(recorded):
    trace = recorded.trace
    assert trace["h.1.mlp.out"].data_ptr() == trace["h.1.mlp_out"].data_ptr()


def test_bytes_held_count_a_shared_storage_once(model, ids):
    with torch.no_grad(), recon.capture(model, sites=["h.1.attn.*"]) as recorder:
        model(ids)
    trace = recorder.trace
    captured = held_bytes(trace.tensors.values())
    # qkv counts once though q, k and v are shown; out and attn_out are one tensor.
    batch, tokens, width, heads = 3, 7, 32, 4
    pattern = batch * heads * tokens * tokens
    assert captured == 4 * (batch * tokens * width * (3 + 1 + 1) + pattern)
    # What was noted counts, too: the mask, and the cache's contents.
    call = trace.facts.attention[recon.site("h.1.attn_out")]
    noted = held_bytes([call.mask, call.keys, call.values])
    assert recorder.nbytes == trace.nbytes == captured + noted


def test_in_a_graph_captures_are_detached_unless_asked_for(model, ids):
    with recon.capture(model) as detached, recon.capture(model, grad=True) as attached:
        model(ids)
    assert not any(t.requires_grad for t in detached.trace.tensors.values())
    assert attached.trace["h.1.mlp.out"].requires_grad
    attached.trace["h.1.mlp.out"].sum().backward()
    assert model.transformer.h[0].mlp.c_fc.weight.grad is not None
    assert storage(detached.trace["ln_f"]) == storage(attached.trace["ln_f"])


def test_capture_changes_no_bit_of_the_output(model, ids):
    with torch.no_grad():
        bare = model(ids, output_hidden_states=True)
        with recon.capture(model):
            captured = model(ids, output_hidden_states=True)
    assert torch.equal(bare.logits, captured.logits)
    assert all(map(torch.equal, bare.hidden_states, captured.hidden_states))


# -- many passes ---------------------------------------------------------------


@pytest.mark.parametrize(("keep", "runs"), [("last", [2]), ("all", [0, 1, 2])])
def test_passes_are_counted_and_kept_as_asked(model, make_ids, keep, runs):
    with torch.no_grad(), recon.capture(model, keep=keep) as recorder:
        for tokens in (5, 6, 7):
            model(make_ids(3, tokens))
    assert [trace.run for trace in recorder.traces] == runs
    assert [trace["embed"].shape[1] for trace in recorder.traces] == [
        5 + run for run in runs
    ]
    assert recorder.trace.run == 2


def test_keeping_the_last_lets_go_of_the_one_before(model, ids):
    with torch.no_grad(), recon.capture(model) as recorder:
        model(ids)
        old = weakref.ref(recorder.trace.tensors[recon.site("h.1.attn.qkv")])
        held = recorder.nbytes
        model(ids)
        gc.collect()
        assert old() is None
        assert recorder.nbytes == held


def test_clearing_lets_go_of_everything(model, ids):
    with torch.no_grad(), recon.capture(model, keep="all") as recorder:
        model(ids)
        model(ids)
        recorder.clear()
        assert (recorder.nbytes, recorder.traces) == (0, ())
        model(ids)
    assert [trace.run for trace in recorder.traces] == [2]


def test_a_trace_outlives_the_recorder_and_later_passes(model, ids):
    with torch.no_grad(), recon.capture(model) as recorder:
        model(ids)
        first = recorder.trace
        before = first["h.2.resid_post"].clone()
        model(ids.flip(1))
    del recorder
    assert torch.equal(first["h.2.resid_post"], before)


def test_the_same_trace_is_returned_each_time(recorded, model, ids):
    with torch.no_grad(), recon.capture(model) as recorder:
        model(ids)
    assert recorder.trace is recorder.trace


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("cache", ["dynamic", "static", None])
def test_generate_is_recorded_step_by_step(make_model, ids, cache, attention):
    model = make_model(attention=attention)
    options = {"use_cache": False} if cache is None else {"cache_implementation": cache}
    with recon.capture(model, keep="all") as recorder:
        sequence = model.generate(ids, max_new_tokens=3, pad_token_id=0, **options)
    lengths = [trace["embed"].shape[1] for trace in recorder.traces]
    assert lengths == ([7, 8, 9] if cache is None else [7, 1, 1])
    for step, trace in enumerate(recorder.traces):
        chosen = trace["logits"][:, -1].argmax(-1)
        assert torch.equal(chosen, sequence[:, 7 + step])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_decoding_step_shows_the_pattern_over_all_keys(make_model, ids, attention):
    model = make_model(attention=attention)
    with recon.capture(model) as recorder:
        model.generate(ids, max_new_tokens=3, pad_token_id=0)
    trace = recorder.trace
    assert trace["h.1.attn.pattern"].shape == (3, 4, 1, 9)
    assert trace["h.1.attn.k"].shape == (3, 4, 1, 8)


# -- what it leaves behind -----------------------------------------------------


def test_leaving_takes_away_exactly_what_was_added(model, ids):
    block = model.transformer.h[1]
    with block.register_forward_hook(trivial_hook, always_call=True):
        before = hooks_of(model)
        with recon.capture(model):
            assert hooks_of(model) != before
            model(ids)
        assert hooks_of(model) == before


def test_leaving_by_an_error_takes_away_exactly_what_was_added(model, ids):
    before = hooks_of(model)

    def fail_outside():
        with recon.capture(model):
            model(ids)
            raise ValueError("outside")

    with pytest.raises(ValueError, match="outside"):
        fail_outside()
    assert hooks_of(model) == before


@pytest.mark.parametrize(
    "path", ["transformer.wte", "transformer.h.1.attn", "lm_head", ""]
)
def test_an_error_half_way_through_registering_leaves_nothing(model, ids, path):
    module = model.get_submodule(path)
    before = hooks_of(model)

    def refuse(*args, **kwargs):
        raise RuntimeError("no hook for you")

    module.register_forward_hook = refuse
    recorder = recon.capture(model)
    with pytest.raises(RuntimeError, match="no hook for you"), recorder:
        pass
    assert hooks_of(model) == before
    del module.register_forward_hook
    with recorder:
        model(ids)
    assert recorder.trace.complete
    assert hooks_of(model) == before


def test_others_may_come_and_go_meanwhile(model, ids):
    block = model.transformer.h[1]
    theirs = block.register_forward_hook(trivial_hook)
    staying = block.attn.register_forward_hook(trivial_hook)
    before = hooks_of(model)
    with recon.capture(model):
        theirs.remove()
        added = block.register_forward_hook(trivial_hook)
        model(ids)
    assert staying.id in block.attn._forward_hooks
    assert list(block._forward_hooks) == [added.id]
    added.remove()
    assert len(hooks_of(model)) == len(before)
    staying.remove()


def test_hooks_that_someone_else_cleared_meanwhile_do_no_harm(model, ids):
    with recon.capture(model) as recorder:
        model(ids)
        for module in model.modules():
            module._forward_hooks.clear()
    assert recorder.trace.complete
    assert not any(held for _, _, held in hooks_of(model))


def test_a_loop_that_writes_its_next_token_in_place_leaves_the_captures_right(model):
    prompt = torch.tensor([[3, 1, 4, 1, 5]])
    positions = torch.arange(5)[None]
    with recon.capture(model) as recorder, torch.no_grad():
        model(prompt, position_ids=positions)
    prompt[:, -1] = 9
    positions += 1
    checks = trace_checks(recorder.trace, None, Levels(("ledger", "replay")))
    assert all(check.passed for check in checks)


def test_a_recorder_cannot_be_entered_twice(model, ids):
    before = hooks_of(model)
    with recon.capture(model) as recorder:
        with pytest.raises(recon.UsageError, match="on already"), recorder:
            pass
        model(ids)
    assert recorder.trace.complete
    assert hooks_of(model) == before


def test_a_recorder_can_be_used_again_after_it_was_left(model, ids):
    recorder = recon.capture(model, keep="all")
    for _ in range(2):
        with torch.no_grad(), recorder:
            model(ids)
        model(ids)
    assert [trace.run for trace in recorder.traces] == [0, 1]
    assert all(trace.complete for trace in recorder.traces)


@pytest.mark.parametrize("inner_left_first", [True, False])
def test_captures_of_one_model_nest_in_any_order(model, ids, inner_left_first):
    before = hooks_of(model)
    outer, inner = recon.capture(model), recon.capture(model, sites="h.1.*")
    outer.__enter__()
    inner.__enter__()
    model(ids)
    first, second = (inner, outer) if inner_left_first else (outer, inner)
    first.__exit__(None, None, None)
    model(ids)
    second.__exit__(None, None, None)
    assert hooks_of(model) == before
    assert (first.trace.run, second.trace.run) == (0, 1)
    assert {place.layer for place in inner.trace} == {1}


def test_a_capture_of_the_body_and_one_of_the_whole_see_the_same(model, ids):
    with recon.capture(model) as whole, recon.capture(model.transformer) as body:
        model(ids)
    assert set(whole.trace) - set(body.trace) == {recon.site("logits")}
    assert whole.trace["ln_f"].data_ptr() == body.trace["ln_f"].data_ptr()


# -- passes that fail ----------------------------------------------------------


def test_a_pass_that_raised_leaves_an_incomplete_trace(model, ids):
    with recon.capture(model, keep="all") as recorder:
        model(ids)
        fail_at(model.transformer.h[1])
        with pytest.raises(ValueError, match="half way"):
            model(ids)
        model(ids)
    good, bad, after = recorder.traces
    assert (good.complete, bad.complete, after.complete) == (True, False, True)
    assert bad.failure == "ValueError: half way"
    assert "h.0.resid_post" in bad
    assert "h.1.resid_post" not in bad
    assert torch.equal(after["ln_f"], good["ln_f"])


@pytest.mark.parametrize("use", [recon.verify_trace, recon.reconstruct])
def test_an_incomplete_trace_refuses_to_verify(model, ids, use):
    with recon.capture(model) as recorder:
        fail_at(model.transformer.h[1])
        with pytest.raises(ValueError, match="half way"):
            model(ids)
    with pytest.raises(recon.UsageError, match=r"run 0 did not finish .*half way"):
        use(recorder.trace)


def test_an_incomplete_trace_says_so_where_a_site_is_missing(model, ids):
    with recon.capture(model) as recorder:
        fail_at(model.transformer.h[1])
        with pytest.raises(ValueError, match="half way"):
            model(ids)
    with pytest.raises(
        recon.CaptureError, match=r"h\.2\.ln_1 .* did not finish .*half way"
    ):
        recorder.trace["h.2.ln_1"]


def test_a_pass_that_raised_replaces_the_one_before(model, ids):
    # Mixing old and new tensors would be worse than having few.
    with recon.capture(model) as recorder:
        model(ids)
        fail_at(model.transformer.h[1])
        with pytest.raises(ValueError, match="half way"):
            model(ids)
    (trace,) = recorder.traces
    assert (trace.run, trace.complete) == (1, False)


def test_a_failed_pass_keeps_no_frame_alive(model, ids):
    class Large:
        pass

    def forward(module, args):
        large = Large()
        alive.append(weakref.ref(large))
        raise ValueError("half way")

    alive = []
    handle = model.transformer.h[1].register_forward_pre_hook(forward)
    with recon.capture(model) as recorder:
        with pytest.raises(ValueError, match="half way"):
            model(ids)
        handle.remove()
    gc.collect()
    assert alive[0]() is None
    assert not recorder.trace.complete


def test_an_interrupt_that_leaves_the_block_marks_the_pass(model, ids):
    before = hooks_of(model)
    recorder = recon.capture(model)
    fail_at(model.transformer.h[1], KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt), recorder:
        model(ids)
    assert hooks_of(model) == before
    assert not recorder.trace.complete
    assert "KeyboardInterrupt" in recorder.trace.failure


def test_an_interrupt_caught_inside_the_block_does_not_taint_the_next_pass(model, ids):
    with torch.no_grad(), recon.capture(model) as recorder:
        fail_at(model.transformer.h[1], KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            model(ids)
        model(ids)
        assert recorder.trace.complete
        assert [trace.run for trace in recorder.traces] == [1]
        recon.verify_trace(recorder.trace).check()


# -- nothing was recorded ------------------------------------------------------


def test_no_pass_at_all_is_a_clear_error(model):
    with recon.capture(model) as recorder:
        pass
    with pytest.raises(recon.CaptureError, match="no forward pass of GPT2LMHeadModel"):
        _ = recorder.trace
    assert recorder.traces == ()


@pytest.mark.parametrize("path", ["transformer", "transformer.h.1.mlp"])
def test_calling_only_a_submodule_is_a_clear_error(model, ids, path):
    given = ids if path == "transformer" else torch.ones(1, 2, 32)
    with recon.capture(model) as recorder:
        model.get_submodule(path)(given)
    with pytest.raises(recon.CaptureError, match="calling one of its submodules"):
        _ = recorder.trace
    assert recorder.nbytes == 0


def test_a_module_that_never_ran_is_a_clear_error(model, make_model, ids):
    with recon.capture(model) as recorder:
        model.transformer.h[1].mlp.act = make_model().transformer.h[1].mlp.act
        model(ids)
    with pytest.raises(recon.CaptureError) as caught:
        _ = recorder.trace
    assert str(caught.value) == (
        "transformer.h.1.mlp.act was hooked but never ran, though "
        f"{len(recorder.traces[0].tensors)} sites were captured; was the block "
        "replaced or compiled after capture began?"
    )


def test_a_cross_attention_that_rests_is_no_module_that_never_ran(make_model, ids):
    model = make_model(add_cross_attention=True)
    with recon.capture(model) as recorder:
        model(ids)
    assert "h.1.cross.q" not in recorder.trace


# -- threads -------------------------------------------------------------------


def in_threads(work, arguments):
    """Run ``work(argument)`` in one thread each, all at once; raise what they raise."""
    errors = []
    barrier = threading.Barrier(len(arguments))

    def run(argument):
        try:
            barrier.wait()
            work(argument)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(one,)) for one in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("keep", ["last", "all"])
def test_each_thread_sees_its_own_passes(model, make_ids, keep):
    with recon.capture(model, keep=keep) as recorder:

        def work(seed):
            ids = make_ids(2, 4 + seed, seed=seed)
            for _ in range(5):
                with torch.no_grad():
                    output = model(ids)
                trace = recorder.trace
                assert trace["logits"].data_ptr() == output.logits.data_ptr()
                assert trace.complete

        in_threads(work, range(4))
    assert len(recorder.traces) == (4 if keep == "last" else 20)
    for trace in recorder.traces:
        recon.verify_trace(trace).check()


def test_a_thread_without_a_pass_of_its_own_is_told_of_the_others(model, ids):
    found = []
    with recon.capture(model) as recorder:
        model(ids)

        def look(_):
            with pytest.raises(recon.CaptureError, match="1 ran in others") as caught:
                _ = recorder.trace
            found.append(caught.value)

        in_threads(look, [None])
    assert found


@pytest.mark.parametrize(("keep", "tokens"), [("last", [5, 6]), ("all", [4, 5, 6])])
def test_threads_that_run_one_after_the_other_are_told_apart(
    model, make_ids, keep, tokens
):
    # The system gives a new thread the number of one that has ended.
    with recon.capture(model, keep=keep) as recorder:

        def work(seed):
            with pytest.raises(recon.CaptureError, match="no "):
                _ = recorder.trace
            model(make_ids(1, 4 + seed))
            assert recorder.trace["embed"].shape[1] == 4 + seed

        for seed in range(3):
            in_threads(work, [seed])
    assert [trace["embed"].shape[1] for trace in recorder.traces] == tokens


def test_a_thread_for_each_request_does_not_add_up(model, ids):
    kept = []
    with torch.no_grad(), recon.capture(model, budget=10**9) as recorder:
        model(ids)
        one = recorder.nbytes
        for _ in range(20):
            in_threads(model, [ids])
            kept.append(len(recorder.traces))
        # This thread's, the last one's, and the one before, whose end the last noticed.
        assert kept == [2] + 19 * [3]
        assert recorder._budget.held == recorder.nbytes <= 3 * one
        model(ids)
        assert len(recorder.traces) == 3


def test_the_threads_of_a_pool_that_ended_have_each_their_last_pass(model, make_ids):
    started = threading.Barrier(4)

    def work(seed):
        if seed < 4:
            started.wait()
        with torch.no_grad():
            model(make_ids(1, 2 + seed))
        return 2 + seed

    with recon.capture(model) as recorder:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(12)))
        tokens = [trace["embed"].shape[1] for trace in recorder.traces]
        assert len(tokens) == 4
        assert 13 in tokens  # no thread ran anything after the last of them
        model(make_ids(1, 1))  # this thread was there before they ended
        assert len(recorder.traces) == 5


def test_a_thread_that_ended_half_way_leaves_no_pass_that_still_runs(model, ids):
    fail_at(model.transformer.h[1], SystemExit)
    with recon.capture(model, keep="all") as recorder:

        def work():
            with contextlib.suppress(SystemExit):
                model(ids)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        (trace,) = recorder.traces
        assert trace.failure == "interrupted"
        recorder.clear()
        assert recorder.traces == ()


def test_an_error_in_one_thread_leaves_the_others_alone(model, ids):
    good, started = [], threading.Event()

    def stop_one(module, args):
        if threading.current_thread().name == "bad":
            started.wait(5)
            raise ValueError("only here")

    handle = model.transformer.h[1].register_forward_pre_hook(stop_one)
    with recon.capture(model) as recorder:

        def fail():
            with pytest.raises(ValueError, match="only here"):
                model(ids)

        bad = threading.Thread(target=fail, name="bad")
        bad.start()
        with torch.no_grad():
            good.append(model(ids))
        started.set()
        bad.join()
    handle.remove()
    assert sorted(trace.complete for trace in recorder.traces) == [False, True]
    recon.verify_trace(recorder.trace).check()


def test_leaving_while_another_thread_still_runs_marks_its_pass(model, ids):
    inside, leave = threading.Event(), threading.Event()

    def wait(module, args):
        inside.set()
        leave.wait(5)

    handle = model.transformer.h[1].register_forward_pre_hook(wait)
    with recon.capture(model) as recorder:
        thread = threading.Thread(target=model, args=(ids,))
        thread.start()
        inside.wait(5)
    leave.set()
    thread.join()
    handle.remove()
    (trace,) = recorder.traces
    assert trace.failure == "interrupted"


# -- while it runs -------------------------------------------------------------


def test_a_trace_looked_at_during_its_pass_is_incomplete(model, ids):
    seen = []

    def look(module, args):
        seen.append(recorder.trace)

    block = model.transformer.h[1]
    with block.register_forward_pre_hook(look), recon.capture(model) as recorder:
        model(ids)
    (early,) = seen
    assert (early.complete, early.failure) == (False, "still running")
    assert "h.0.resid_post" in early
    assert recorder.trace.complete


def test_the_representation_says_what_is_held(model, ids):
    with torch.no_grad(), recon.capture(model) as recorder:
        model(ids)
        held = f"1 runs kept, {recorder.nbytes:,} bytes held"
        assert repr(recorder) == f"Recorder(GPT2LMHeadModel, on, {held})"
    assert ", off, " in repr(recorder)


def test_the_cache_that_a_pass_keeps_alive_counts_as_memory_held():
    model = recon.load_model("random:tiny", attention="eager").model
    ids = torch.arange(12).view(2, 6)
    with recon.capture(model, keep="all") as recorder:
        for length in (4, 5, 6):
            model(ids[:, :length], use_cache=True)
    kept = [*(t for trace in recorder.traces for t in trace.tensors.values())]
    calls = [c for trace in recorder.traces for c in trace.facts.attention.values()]
    cached = [t for call in calls for t in (call.keys, call.values)]
    assert recorder.nbytes >= held_bytes([*kept, *cached]) > held_bytes(kept)


def test_a_trace_counts_the_cache_that_it_keeps_alive(model, ids):
    with torch.no_grad():
        past = model(ids).past_key_values
        with recon.capture(model) as recorder:
            model(ids[:, :1], **{CACHE: past})
    trace = recorder.trace
    calls = trace.facts.attention.values()
    cached = held_bytes(t for call in calls for t in (call.keys, call.values))
    assert cached > 0
    assert trace.nbytes >= cached + held_bytes(trace.tensors.values())


def test_embeddings_that_were_handed_in_count_where_they_are_kept(model):
    embedded = torch.randn(2, 20, 32)
    for sites, held in (("wte", embedded.nbytes), ("h.2.ln_2", embedded.nbytes)):
        with torch.no_grad(), recon.capture(model, sites=sites) as recorder:
            model(inputs_embeds=embedded)
        # Not those of another site: ln_2 alone has the same size.
        assert recorder.nbytes == recorder.trace.nbytes == held


@pytest.mark.parametrize("keep", ["last", "all"])
def test_the_graph_behind_an_encoders_states_is_let_go(make_model, ids, keep):
    model = make_model(add_cross_attention=True)
    source, alive = torch.randn(3, 2, 32, requires_grad=True), []
    with recon.capture(model, sites="h.*.cross.k", keep=keep) as recorder:
        for _ in range(2):
            inner = (source * 2).exp()
            alive.append(weakref.ref(inner.untyped_storage()))
            model(ids, encoder_hidden_states=inner * 3)
            del inner
    assert [one() for one in alive] == [None, None]
    assert recorder.trace["h.1.cross.k"].shape == (3, 4, 2, 8)


def test_the_graph_behind_a_mask_is_let_go(model, ids):
    source = torch.zeros(3, 1, 7, 7, requires_grad=True)
    with recon.capture(model) as recorder:
        inner = source.exp()
        alive = weakref.ref(inner.untyped_storage())
        model(ids, attention_mask=inner * 3)
        del inner
    assert alive() is None
    assert recorder.trace.facts.attention[recon.site("h.1.attn_out")].mask is not None
