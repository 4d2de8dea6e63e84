"""Checking a pass while it runs: the same verdicts, and one block's memory."""

import gc

import pytest
import torch

import recon
from recon import gpt2
from recon.checks import LEVELS, NO_PROOF, Levels
from recon.recorder import Options
from recon.streaming import CheckingRecorder
from tests import versions

EVERY = list(LEVELS)


def keyed(report):
    return {(c.site, c.identity, c.level): c.verdict for c in report.checks}


def both(model, ids, **inputs):
    """Return the reports of normal mode and of streaming."""
    torch.manual_seed(7)
    whole = recon.verify(model, ids, levels=EVERY, **inputs)
    torch.manual_seed(7)
    return whole, recon.verify(model, ids, levels=EVERY, stream=True, **inputs)


def damage(module, factor=1.5):
    """Make a module answer with something else, after recon has looked."""

    def times(m, args, out):
        return (out[0] * factor, *out[1:]) if isinstance(out, tuple) else out * factor

    return module.register_forward_hook(times)


# -- the verdicts are those of normal mode -------------------------------------


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_streaming_makes_the_checks_of_normal_mode(make_model, ids, kernel, dtype):
    whole, streamed = both(make_model(attention=kernel, dtype=dtype), ids)
    expected, found = keyed(whole), keyed(streamed)
    assert whole.verdict == streamed.verdict == "reconciled"
    assert {level for _, _, level in found} >= set(EVERY)
    assert {k: v for k, v in expected.items() if k in found} == found
    # What else the model returns is not asked for: it would keep every block.
    unasked = {"attentions", "past_key_values", "cache", "last_hidden_state", "logits"}
    assert {name for _, name, _ in expected.keys() - found.keys()} <= unasked


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_where_results_may_overflow_no_mode_and_no_level_says_rounding(
    make_model, ids, dtype
):
    model = make_model(dtype=dtype)
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.bias[3] = torch.finfo(dtype).max
    for report in both(model, ids):
        at = [c for c in report.checks if c.site == "h.1.mlp.pre"]
        found = {c.level: c for c in at}
        assert found["replay"].verdict == "exact"  # it is finite, and as it was
        for level in ("sketch", "certify"):
            assert found[level].verdict == "unverified"
            assert "overflow" in found[level].reason
        assert "rounding" in {c.verdict for c in report.checks if "h.0" in c.site}


def test_both_modes_bound_and_sharpen_alike(model, ids):
    whole, streamed = both(model, ids)
    expected = {(c.site, c.identity, c.level): c for c in whole.checks}
    for check in streamed.checks:
        other = expected.get((check.site, check.identity, check.level))
        if other is not None and check.level != "sketch":
            assert check == other


DAMAGED = [
    ("h.0.ln_1", "h.0.attn.qkv"),
    ("h.1.mlp", "h.1.resid_post"),
    ("h.1.mlp.act", "h.1.mlp.out"),
    ("h.2.attn.c_attn", "h.2.attn.k"),
    ("h.1", "h.2.resid_pre"),
    ("ln_f", "logits"),
    ("wpe", "embed"),
]


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("name", [name for name, _ in DAMAGED])
def test_a_damaged_run_fails_at_the_same_sites_in_both_modes(
    make_model, ids, kernel, name
):
    model = make_model(attention=kernel)
    damage(model.transformer.get_submodule(name))
    whole, streamed = both(model, ids)
    failing = [c.site for c in whole.failures if c.level != "ledger"]
    assert failing
    assert [c.site for c in streamed.failures if c.level != "ledger"] == failing
    shared = keyed(whole).keys() & keyed(streamed).keys()
    assert {k: keyed(whole)[k] for k in shared} == {
        k: keyed(streamed)[k] for k in shared
    }


@pytest.mark.parametrize(
    "inputs", ["train", "padded", "cross", "embeds", *["keep"] * versions.KEEPS_LOGITS]
)
def test_other_runs_stream_too(make_model, ids, inputs):
    model = make_model(add_cross_attention=inputs == "cross")
    given = {"input_ids": ids}
    if inputs == "train":
        model.train()
    elif inputs == "padded":
        given["attention_mask"] = (torch.arange(7) < 5).long().expand(3, -1)
    elif inputs == "cross":
        generator = torch.Generator().manual_seed(3)
        encoded = torch.randn(3, 5, 32, generator=generator)
        given["encoder_hidden_states"] = encoded
    elif inputs == "embeds":
        given = {"inputs_embeds": model.transformer.wte(ids).detach()}
    else:
        given["logits_to_keep"] = 2
    report = recon.verify(model, levels=EVERY, stream=True, **given)
    report.check()
    assert {check.level for check in report.checks} >= set(EVERY)


def test_streamed_states_are_compared_one_by_one(make_model, ids):
    report = recon.verify(make_model(), ids, levels=["ledger"], stream=True)
    states = [c.site for c in report.checks if c.level == "ledger"]
    assert states == [f"hidden_states.{i}" for i in range(4)]
    untied = make_model(tie_last_hidden_states=False)
    recon.verify(untied, ids, levels=["ledger"], stream=True).check()


# -- memory --------------------------------------------------------------------


def live_bytes():
    """Return the bytes of all live tensors that are not frozen, storages once."""
    held = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter):
            storage = thing.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
    return sum(held.values())


def peak_of(model, ids, **options):
    """Return the most bytes of new tensors alive at the end of an MLP or block."""
    peak = 0

    def look(*_):
        nonlocal peak
        peak = max(peak, live_bytes())

    recorder = recon.capture(model, **options)
    with torch.no_grad(), recorder:
        model(ids, use_cache=False)
        recorder.clear()
        gc.collect()
        gc.freeze()
        # After recon's own hooks, which were there first.
        hooks = [m.register_forward_hook(look) for m in model.transformer.h]
        hooks += [m.mlp.register_forward_hook(look) for m in model.transformer.h]
        model(ids, use_cache=False)
    gc.unfreeze()
    for hook in hooks:
        hook.remove()
    return peak


def test_peak_memory_of_a_checked_pass_does_not_grow_with_depth(make_model, make_ids):
    ids = make_ids(4, 20)
    models = {n: make_model(n_layer=n, attention="sdpa") for n in (6, 12, 24)}
    peaks = {n: peak_of(m, ids, check=["ledger", "sketch"]) for n, m in models.items()}
    state = 4 * 20 * 32 * 4
    assert max(peaks.values()) - min(peaks.values()) <= state
    # A block: qkv 3, mlp 4 and 4, and some 9 of one state's size.
    assert peaks[24] <= 25 * state
    # The twin: normal capture holds every block.
    kept = {n: peak_of(models[n], ids) for n in (6, 24)}
    assert kept[24] - kept[6] >= 15 * 14 * state


def test_a_checked_pass_keeps_no_tensor(model, ids):
    with torch.no_grad(), recon.capture(model, check="sketch") as recorder:
        model(ids)
        assert recorder.nbytes == 0
        assert not recorder.trace.tensors
    (report,) = recorder.reports
    assert report.check().levels == ("sketch",)
    with torch.no_grad(), recon.capture(model) as recorder:
        model(ids)
        assert recorder.nbytes > 0


# -- recon.capture(check=) -----------------------------------------------------


@pytest.mark.parametrize("check", ["sketch", "certify", ["ledger", "replay"]])
def test_every_pass_of_generate_gets_a_report(model, ids, check):
    with recon.capture(model, check=check, keep="all") as recorder:
        model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert len(recorder.reports) == 4
    assert [report.shape[1] for report in recorder.reports] == [7, 1, 1, 1]
    for report in recorder.reports:
        report.check()
    assert recorder.nbytes == 0


def test_a_checking_recorder_under_probabilistic_bounds_says_they_are_no_proof(
    model, ids
):
    levels = Levels(("certify",), "probabilistic")
    recorder = CheckingRecorder(gpt2.plan(model), Options(), levels)
    with recorder, torch.no_grad():
        model(ids)
    assert recorder.reports[-1].notes[0] == NO_PROOF


def test_without_keep_all_only_the_last_pass_has_a_report(model, ids):
    with torch.no_grad(), recon.capture(model, check="ledger") as recorder:
        model(ids)
        model(ids[:, :3])
    assert [report.shape for report in recorder.reports] == [(3, 3)]


@pytest.mark.parametrize(
    "options",
    [
        {"sites": "h.0.*"},
        {"positions": -1},
        {"dtype": torch.float64},
        {"device": "cpu"},
        {"clone": True},
        {"grad": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_checking_refuses_options_that_change_what_is_seen(model, options):
    (name,) = options
    with pytest.raises(recon.UsageError, match=f"{name}="):
        recon.capture(model, check="sketch", **options)
    recon.capture(model, **options)


@pytest.mark.parametrize("check", ["skecth", [], ["ledger", "all"]])
def test_checking_refuses_an_unknown_level(model, check):
    with pytest.raises(recon.UsageError, match=r"levels=.*expected some of ledger"):
        recon.capture(model, check=check)


def test_a_pass_that_raises_has_an_unverified_report(model, ids):
    def fail(*_):
        raise RuntimeError("no more memory")

    handle = model.transformer.h[2].mlp.register_forward_pre_hook(fail)
    with recon.capture(model, check=EVERY, keep="all") as recorder, torch.no_grad():
        with pytest.raises(RuntimeError, match="no more memory"):
            model(ids)
        handle.remove()
        model(ids)
    broken, sound = recorder.reports
    assert broken.verdict == "diverged"
    first = broken.failures[0]
    assert first.verdict == "unverified"
    assert "did not finish (RuntimeError: no more memory)" in first.reason
    with pytest.raises(recon.ReconciliationError, match="did not finish"):
        broken.check()
    sound.check()
    assert recorder.nbytes == 0


@pytest.mark.parametrize(("name", "place"), DAMAGED)
def test_a_damaged_pass_is_reported_by_a_checking_recorder(model, ids, name, place):
    with recon.capture(model, check=["ledger", "replay"], keep="all") as recorder:
        handle = damage(model.transformer.get_submodule(name))
        with torch.no_grad():
            model(ids)
            handle.remove()
            model(ids)
    damaged, sound = recorder.reports
    sound.check()
    assert damaged.failures[0].site in {place, _own(name)}
    with pytest.raises(recon.ReconciliationError):
        damaged.check()


def _own(name):
    """Name the site that a module puts out, where a capture before the damage shows."""
    return {"h.1.mlp.act": "h.1.mlp.post"}.get(name, name)


def test_an_edit_before_capture_shows_in_the_products(model, ids):
    handle = damage(model.transformer.h[1].mlp.c_fc, 1.01)
    with torch.no_grad(), recon.capture(model, check="sketch") as recorder:
        model(ids)
    handle.remove()
    assert [c.site for c in recorder.reports[-1].failures] == ["h.1.mlp.pre"]
