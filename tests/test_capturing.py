"""The options of ``recon.capture``: what is kept, how, within which budget."""

import numpy as np
import pytest
import torch
from transformers import DynamicCache, StaticCache

import recon
from recon.gpt2.caches import entries
from recon.recorder.keeping import Budget
from recon.recorder.passes import Pass
from recon.trace import held_bytes
from tests.versions import CACHE

# Every test here is watched by the plugin: hooks or tensors that stay fail it.
pytestmark = pytest.mark.recon_no_leaks
DEPTH = 3


def names(trace):
    return [str(place) for place in trace]


class NoStart:
    """The start of a pass that was handed no tensor."""

    def tensors(self):
        return iter(())


def captured(model, ids, **options):
    with torch.no_grad(), recon.capture(model, **options) as recorder:
        model(ids)
    return recorder.trace


# -- sites= --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sites", "expected"),
    [
        ("h.1.attn.q", ["h.1.attn.q"]),
        ("h.*.ln_1", ["h.0.ln_1", "h.1.ln_1", "h.2.ln_1"]),
        ("h.1.attn.{q,k}", ["h.1.attn.q", "h.1.attn.k"]),
        (
            "h.{0,2}.{ln_1,mlp.out}",
            ["h.0.ln_1", "h.0.mlp.out", "h.2.ln_1", "h.2.mlp.out"],
        ),
        (["logits", "wte"], ["wte", "logits"]),
        ("blocks.1.hook_resid_post", ["h.1.resid_post"]),
        ("blocks.*.attn.hook_pattern", [f"h.{i}.attn.pattern" for i in range(DEPTH)]),
        ("transformer.h.1.mlp", ["h.1.mlp_out"]),
        ("transformer.h.2.attn.c_proj", ["h.2.attn.out"]),
        ("h.2.attn.c_proj.input", ["h.2.attn.z"]),
        (recon.site("h.0.resid_mid"), ["h.0.resid_mid"]),
        ("h.1.attn.scores", ["h.1.attn.scores"]),
        ("h.[02].ln_2", ["h.0.ln_2", "h.2.ln_2"]),
    ],
)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_sites_are_chosen_by_name_or_glob_in_any_vocabulary(
    make_model, ids, sites, expected, attention
):
    model = make_model(attention=attention)
    trace, everything = captured(model, ids, sites=sites), captured(model, ids)
    assert names(trace) == expected
    for name in expected:
        assert torch.equal(trace[name], everything[name])


def test_only_the_modules_that_the_sites_need_are_hooked(model):
    def hooked():
        return {path for path, m in model.named_modules() if m._forward_hooks}

    with recon.capture(model, sites="h.1.attn.{q,z}"):
        assert hooked() == {
            "",
            "transformer.h.1.attn.c_attn",
            "transformer.h.1.attn.c_proj",
        }


def test_a_site_that_was_not_asked_for_is_not_held(model, ids):
    trace = captured(model, ids, sites="h.1.ln_1")
    with pytest.raises(recon.CaptureError, match="asked for other sites"):
        trace["h.1.mlp.out"]


@pytest.mark.parametrize(
    ("sites", "words"),
    [
        ("h.1.atn.q", "unknown site 'h.1.atn.q'; did you mean h.1.attn.q"),
        ("h.3.ln_1", "unknown site 'h.3.ln_1'"),
        ("h.*.cross.q", r"unknown site 'h.\*.cross.q'"),
        (["ln_f", "ln_g"], "unknown site 'ln_g'; did you mean ln_f"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused_with_near_misses(
    model, sites, words
):
    with pytest.raises(recon.UnknownSiteError, match=words):
        recon.capture(model, sites=sites)


# -- the pattern and the scores ------------------------------------------------


@pytest.mark.parametrize(
    ("attention", "origin"), [("eager", "captured"), ("sdpa", "derived")]
)
def test_a_pattern_that_the_kernel_does_not_show_is_derived_and_says_so(
    make_model, ids, attention, origin
):
    trace = captured(make_model(attention=attention), ids)
    assert trace.origin("h.1.attn.pattern") == origin
    assert trace.origin("h.1.attn.scores") == "derived"


@pytest.mark.parametrize(
    "mask", [None, torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7, [0] + [1] * 6])]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_derived_pattern_is_close_to_the_one_that_eager_shows(
    make_model, ids, record, dtype, mask
):
    def pattern(attention):
        model = make_model(attention=attention, dtype=dtype)
        return record(model, ids, attention_mask=mask).trace["h.0.attn.pattern"]

    shown, derived = pattern("eager"), pattern("sdpa")
    rows = torch.ones(3, 7) if mask is None else mask
    live = rows.bool()[:, None, :, None]
    unit = torch.finfo(dtype).eps
    assert derived.dtype == shown.dtype
    assert float((derived - shown).float().mul(live).abs().max()) <= 4 * unit
    assert float(derived.float().mul(~live).abs().max()) == 0


def test_scores_give_the_pattern_by_softmax(recorded):
    trace = recorded.trace
    scores, pattern = trace["h.1.attn.scores"], trace["h.1.attn.pattern"]
    assert torch.equal(scores.softmax(-1), pattern)
    assert float(pattern.triu(1).abs().max()) == 0


def test_a_pattern_after_dropout_is_not_passed_off_as_derived(make_model, ids):
    model = make_model(attention="sdpa").train()
    trace = captured(model, ids)
    assert trace.origin("h.1.attn.pattern") is None
    assert trace.origin("h.1.attn.scores") == "derived"


# -- positions= ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("positions", "rows"),
    [
        (2, [2]),
        (-1, [6]),
        ([0, -1], [0, 6]),
        ((3, 3), [3, 3]),
        (range(2, 5), [2, 3, 4]),
        (slice(1, None, 2), [1, 3, 5]),
        (slice(-2, None), [5, 6]),
        (torch.tensor([5, 1]), [5, 1]),
        (torch.tensor(4), [4]),
        (np.array([0, 6]), [0, 6]),
    ],
    ids=repr,
)
def test_positions_keep_only_those_rows(model, ids, positions, rows):
    whole, some = captured(model, ids), captured(model, ids, positions=positions)
    assert some.positions == tuple(rows)
    for name in ("wpe", "h.1.resid_pre", "h.1.attn.qkv", "logits"):
        assert torch.equal(some[name], whole[name][:, rows])
    for name in ("h.1.attn.q", "h.1.attn.z", "h.1.attn.pattern"):
        assert torch.equal(some[name], whole[name][:, :, rows])


def test_positions_need_only_their_share_of_memory(model, ids):
    def held(**options):
        return held_bytes(captured(model, ids, **options).tensors.values())

    assert held(positions=-1) * 5 < held()


@pytest.mark.parametrize("positions", [7, -8, [0, 7], torch.tensor([9])], ids=repr)
def test_a_position_that_the_pass_does_not_have_is_one_clear_error(
    model, ids, positions
):
    with torch.no_grad(), recon.capture(model, positions=positions) as recorder:
        model(ids)  # a forward pass of the user's: nothing is raised in it
    words = "asked for, but this pass has 7 tokens"
    with pytest.raises(recon.CaptureError, match=words):
        _ = recorder.trace
    (trace,) = recorder.traces
    there = tuple(p for p in np.atleast_1d(positions).tolist() if p == 0)
    assert trace.positions == there
    assert trace.absent
    if there:
        assert trace["ln_f"].shape[1] == 1
        return
    assert len(trace) == 0
    with pytest.raises(recon.CaptureError, match=words):
        trace["ln_f"]


@pytest.mark.parametrize(
    ("positions", "rows"), [([-1], (6,)), ([6, 0], (6, 0)), (slice(5, None), (5, 6))]
)
@pytest.mark.parametrize("keep", [1, 2, torch.tensor([6]), torch.tensor([-1, 2])])
def test_positions_are_those_of_the_pass_also_where_few_logits_are_made(
    model, ids, positions, rows, keep
):
    embedded = model.transformer.wte(ids).detach()
    inputs = {"inputs_embeds": embedded, "logits_to_keep": keep}
    with torch.no_grad(), recon.capture(model, positions=positions) as recorder:
        output = model(**inputs)
    trace = recorder.trace
    assert trace.positions == trace.positions_at("wte") == rows
    assert torch.equal(trace["wte"], embedded[:, list(rows)])
    made = torch.arange(7)[-keep:] if isinstance(keep, int) else torch.arange(7)[keep]
    both = tuple(p for p in rows if p in made)
    assert trace.positions_at("logits") == both
    found = [made.tolist().index(p) for p in both]
    assert torch.equal(trace["logits"], output.logits[:, found])


def test_logits_that_were_made_for_no_position_are_not_held(model, ids):
    with torch.no_grad(), recon.capture(model, positions=[0, 3]) as recorder:
        model(ids, logits_to_keep=1)
    trace = recorder.trace
    assert trace["ln_f"].shape[1] == 2
    assert "logits" not in trace
    words = r"positions=\[0, 3\] asked for, but the pass made no logits of them"
    with pytest.raises(recon.CaptureError, match=words):
        trace["logits"]


@pytest.mark.parametrize(
    ("positions", "rows"),
    [
        ([3], [(3,), (), ()]),
        ([-1], [(6,), (0,), (0,)]),
        ([0, 3], [(0, 3), (0,), (0,)]),
        (slice(2, 4), [(2, 3), (), ()]),
    ],
    ids=repr,
)
def test_generate_runs_on_where_a_step_lacks_a_position(model, ids, positions, rows):
    asked = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    asked |= {"attention_mask": torch.ones_like(ids), "pad_token_id": 0}
    bare = model.generate(ids, **asked)
    with recon.capture(model, positions=positions, keep="all") as recorder:
        assert torch.equal(model.generate(ids, **asked), bare)
    assert [trace.positions for trace in recorder.traces] == rows
    for trace, there in zip(recorder.traces, rows, strict=True):
        held = [trace[place].shape[1] for place in ("ln_f",) if place in trace]
        assert held == ([len(there)] if there else [])


def test_positions_of_a_pass_are_saved_with_it(model, ids, tmp_path):
    with torch.no_grad(), recon.capture(model, positions=[0, 6, 9]) as recorder:
        model(ids, logits_to_keep=1)
    (trace,) = recorder.traces
    trace.save(tmp_path / "run.safetensors")
    loaded = recon.load_trace(tmp_path / "run.safetensors", model)
    for one in (trace, loaded):
        assert (one.positions, one.absent) == ((0, 6), (9,))
        assert one.positions_at("logits") == (6,)


@pytest.mark.parametrize(
    "positions",
    [
        torch.tensor([True] * 7),
        [True, False],
        1.0,
        torch.tensor([0.5]),
        "1",
        [None],
        [],
    ],
    ids=repr,
)
def test_positions_that_are_no_integers_are_refused(model, positions):
    with pytest.raises(recon.UsageError, match="positions="):
        recon.capture(model, positions=positions)


def test_what_some_positions_cannot_give_is_said(model, ids):
    trace = captured(model, ids, positions=1)
    with pytest.raises(recon.CaptureError, match="from a subset of the positions"):
        trace["h.1.attn.scores"]


def test_the_keys_of_an_encoder_are_kept_whole(make_model, ids):
    model = make_model(add_cross_attention=True)
    encoded = torch.randn(3, 2, 32)
    with recon.capture(model, positions=5) as recorder:
        model(ids, encoder_hidden_states=encoded)
    assert recorder.trace["h.1.cross.k"].shape == (3, 4, 2, 8)
    assert recorder.trace["h.1.cross.pattern"].shape == (3, 4, 1, 2)


# -- dtype=, device=, clone= ---------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_converts_what_is_kept_and_nothing_else(model, ids, dtype):
    whole, other = captured(model, ids), captured(model, ids, dtype=dtype)
    for place in whole.tensors:
        assert torch.equal(other[place], whole[place].to(dtype))
    assert other.altered == f"dtype={dtype}"


def test_device_moves_what_is_kept(model, ids):
    trace = captured(model, ids, device="meta")
    assert {tensor.device.type for tensor in trace.tensors.values()} == {"meta"}


def test_without_clone_an_edit_in_place_reaches_the_capture(model, ids):
    with torch.no_grad(), recon.capture(model) as recorder:
        output = model(ids)
    before = recorder.trace["logits"].clone()
    output.logits.add_(1)
    assert torch.equal(recorder.trace["logits"], before + 1)


def test_a_clone_stays_what_it_was_when_the_original_is_edited(model, ids):
    def edit(module, args, output):
        output.add_(1)

    whole = captured(model, ids)
    mlp = model.transformer.h[1].mlp
    with (
        torch.no_grad(),
        recon.capture(model, clone=True) as recorder,
        # After recon's own hook: too late to reach what was cloned.
        mlp.register_forward_hook(edit),
    ):
        output = model(ids)
    output.logits.zero_()
    for name in ("h.1.mlp.out", "h.1.mlp_out", "h.1.resid_mid", "h.0.attn.q"):
        assert torch.equal(recorder.trace[name], whole[name])
    assert recorder.trace["logits"].any()


@pytest.mark.parametrize("options", [{"clone": True}, {"dtype": torch.float64}])
def test_a_copy_of_embeddings_handed_in_is_one(model, options):
    embedded = torch.randn(2, 5, 32)
    with torch.no_grad(), recon.capture(model, **options) as recorder:
        model(inputs_embeds=embedded)
    before = embedded.to(options.get("dtype", torch.float32), copy=True)
    embedded.zero_()
    assert recorder.trace.origin("wte") == "given"
    assert recorder.trace["wte"].dtype == before.dtype
    assert torch.equal(recorder.trace["wte"], before)


@pytest.mark.parametrize("options", [{"dtype": torch.float32}, {"device": "cpu"}])
def test_a_converted_copy_is_a_copy_also_where_there_is_nothing_to_convert(
    model, ids, options
):
    whole = captured(model, ids)
    with torch.no_grad(), recon.capture(model, **options) as recorder:
        output = model(ids, output_hidden_states=True)
    for state in (*output.hidden_states, output.logits):
        state.zero_()
    for place in ("h.1.resid_pre", "logits"):
        assert torch.equal(recorder.trace[place], whole[place])


@pytest.mark.parametrize("inference", [False, True])
def test_a_clone_verifies_after_mask_cache_and_states_were_edited(
    make_model, ids, all_exact, inference
):
    model = make_model(attention="sdpa", add_cross_attention=True)
    with torch.inference_mode(inference), torch.no_grad():
        mask, states = torch.zeros(3, 1, 7, 7), torch.randn(3, 2, 32)
        cache = DynamicCache(config=model.config)
        inputs = {"attention_mask": mask, "encoder_hidden_states": states}
        with recon.capture(model, clone=True) as recorder:
            model(ids, **inputs, **{CACHE: cache})
        for key, value in entries(cache):
            key.zero_()
            value.zero_()
        mask.fill_(-torch.inf)
        states.zero_()
        all_exact(recon.verify_trace(recorder.trace))


def test_a_mask_that_all_blocks_are_handed_is_copied_once(model, ids):
    trace = captured(model, ids, clone=True)
    masks = {call.mask.data_ptr() for call in trace.facts.attention.values()}
    assert len(masks) == 1


def test_a_mask_that_is_edited_between_two_blocks_is_copied_twice(model, ids):
    mask = torch.zeros(3, 1, 7, 7)

    def edit(module, args, output):
        mask.fill_(-1.0)

    with (
        torch.no_grad(),
        model.transformer.h[0].register_forward_hook(edit),
        recon.capture(model, clone=True) as recorder,
    ):
        model(ids, attention_mask=mask)
    calls = recorder.trace.facts.attention
    masks = [calls[recon.site(f"h.{i}.attn_out")].mask for i in range(DEPTH)]
    assert [float(mask[0, 0, 6, 0]) for mask in masks] == [0.0, -1.0, -1.0]


def test_clones_share_no_storage(model, ids):
    tensors = captured(model, ids, clone=True).tensors.values()
    storages = [tensor.untyped_storage().data_ptr() for tensor in tensors]
    assert len(set(storages)) == len(storages)


def test_clones_verify_like_the_originals(model, ids, all_exact):
    all_exact(recon.verify_trace(captured(model, ids, clone=True)))


@pytest.mark.parametrize("positions", [None, [1, 2]])
def test_a_copy_has_no_graph_unless_asked_for(model, ids, positions):
    options = {"positions": positions, "clone": True}
    with (
        recon.capture(model, **options) as detached,
        recon.capture(model, grad=True, **options) as attached,
    ):
        model(ids)
    assert not detached.trace["ln_f"].requires_grad
    assert attached.trace["ln_f"].requires_grad


# -- budget= -------------------------------------------------------------------


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
    one, budget = Pass(0, 0, NoStart(), None, False), Budget(1000)
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
    passes = [Pass(run, 0, NoStart(), None, False) for run in range(2)]
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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep": "first"}, "keep='first': expected 'last' or 'all'"),
        ({"budget": 0}, "budget=0: expected a number of bytes above 0"),
        ({"dtype": torch.int64}, "dtype=torch.int64: expected a floating-point dtype"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(model, options, words):
    with pytest.raises(recon.UsageError, match=words):
        recon.capture(model, **options)


# -- the facts of a pass -------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_facts_are_what_each_attention_received(make_model, ids, attention):
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7, [0] + [1] * 6])
    model = make_model(
        attention=attention, scale_attn_by_inverse_layer_idx=False
    ).train()
    with torch.no_grad(), recon.capture(model) as recorder:
        model(ids, attention_mask=mask)
    facts = recorder.trace.facts
    call = facts.attention[recon.site("h.1.attn_out")]
    assert call.kernel == attention
    assert call.dropout == pytest.approx(0.1)
    assert call.mask.shape == (3, 1, 7, 7)
    assert call.mask.dtype == (torch.float32 if attention == "eager" else torch.bool)
    assert facts.dropout[recon.site("h.1.mlp_out")] == pytest.approx(0.1)
    assert facts.environment.training
    assert facts.environment.attention == attention


def test_a_cached_step_knows_what_came_before_it(model, ids):
    cache = StaticCache(model.config, max_cache_len=20)
    with torch.no_grad(), recon.capture(model, keep="all") as recorder:
        model(ids, **{CACHE: cache}, use_cache=True)
        model(ids[:, :2], **{CACHE: cache}, use_cache=True)
    first, second = (
        trace.facts.attention[recon.site("h.2.attn_out")] for trace in recorder.traces
    )
    assert (first.past, second.past) == (0, 7)
    # The cache was written again in place; what the first pass saw was not.
    assert float(first.keys[:, :, 7:9].abs().max()) == 0
    assert float(second.keys[:, :, 7:9].abs().max()) > 0


# -- nothing of recon's is raised in someone's forward pass -----------------------


@pytest.mark.parametrize(
    "options", [{}, {"sites": ["wpe", "h.1.attn.pattern"]}, {"check": "ledger"}]
)
@pytest.mark.parametrize("part", ["received", "looked", "end"])
def test_an_error_in_a_hook_of_recon_is_told_by_the_trace(
    model, ids, options, part, monkeypatch
):
    def fail(*_):
        raise TypeError("cannot be read")

    if part == "end":
        monkeypatch.setattr("recon.gpt2.weights.Slots.read", fail)
    else:
        monkeypatch.setattr(f"recon.gpt2.hooking.{part}", fail)
    with torch.no_grad():
        bare = model(ids).logits
        with recon.capture(model, **options) as recorder:
            assert torch.equal(model(ids).logits, bare)
        assert torch.equal(model(ids).logits, bare)
    monkeypatch.undo()
    (trace,) = recorder.traces
    assert not trace.complete
    assert "recon's own hook at " in trace.failure
    assert trace.failure.endswith("raised TypeError: cannot be read")
    with pytest.raises(recon.UsageError, match="recon's own hook at "):
        recon.verify_trace(trace)
    if "check" in options:
        assert recorder.reports[0].verdict != "reconciled"


def test_an_error_in_the_check_of_a_stage_is_told_by_the_report(
    model, ids, monkeypatch
):
    def fail(*_):
        raise TypeError("cannot be checked")

    monkeypatch.setattr("recon.streaming.identity_checks", fail)
    with torch.no_grad(), recon.capture(model, check="sketch") as recorder:
        model(ids)
    (found,) = recorder.reports
    assert found.verdict != "reconciled"
    assert "raised TypeError: cannot be checked" in found.checks[0].describe()
