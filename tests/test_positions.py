"""``positions=`` of ``recon.capture``: which rows of a pass are kept."""

import numpy as np
import pytest
import torch

import recon
from recon.trace import held_bytes

# Every test here is watched by the plugin: hooks or tensors that stay fail it.
pytestmark = pytest.mark.recon_no_leaks


def captured(model, ids, **options):
    with torch.no_grad(), recon.capture(model, **options) as recorder:
        model(ids)
    return recorder.trace


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


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize("keep", [slice(4, 7), [6, 5, 5]])
def test_rows_of_logits_are_told_also_where_they_are_named_as_no_type_allows(
    model, ids, keep
):
    with torch.no_grad(), recon.capture(model, positions=[0, 5, 6]) as recorder:
        output = model(ids, logits_to_keep=keep)
    trace = recorder.trace
    assert trace.positions_at("logits") == (5, 6)
    found = [torch.arange(7)[keep].tolist().index(p) for p in (5, 6)]
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
