"""The options of ``recon.capture``: what is kept, how, within which budget."""

import pytest
import torch
from transformers import DynamicCache, StaticCache

import recon
from recon.gpt2.caches import entries
from tests.versions import CACHE

# Every test here is watched by the plugin: hooks or tensors that stay fail it.
pytestmark = pytest.mark.recon_no_leaks
DEPTH = 3


def names(trace):
    return [str(place) for place in trace]


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


# -- dtype=, device=, clone= ---------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_converts_what_is_kept_and_nothing_else(model, ids, dtype):
    whole, other = captured(model, ids), captured(model, ids, dtype=dtype)
    for place in whole.tensors:
        assert torch.equal(other[place], whole[place].to(dtype))
    assert other.altered == f"dtype={dtype}"


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_scores_are_derived_from_what_was_converted_also_with_a_cache(
    make_model, ids, dtype, attention
):
    # 2026-11: the contents of the cache were not of the dtype of q.
    model = make_model(attention=attention)
    whole, other = captured(model, ids), captured(model, ids, dtype=dtype)
    assert other.attention(recon.site("h.1.attn.q")).keys.dtype == torch.float32
    scores, expected = other["h.1.attn.scores"], whole["h.1.attn.scores"]
    seen = expected > -1e30
    unit = torch.finfo(dtype).eps + torch.finfo(torch.float32).eps
    gap = (scores.double() - expected.double())[seen].abs()
    assert float(gap.max()) <= 16 * unit * float(expected[seen].abs().max())


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


# -- what is refused -----------------------------------------------------------


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
