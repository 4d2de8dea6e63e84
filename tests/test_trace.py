"""What one run recorded: frozen, by every name, and honest about what is derived."""

import copy
import dataclasses
import pickle

import pytest
import torch

import recon
from recon.sites import all_sites
from recon.trace import held_bytes

ENCODED = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(3))
SIZES = {"B": 3, "T": 7, "S": 7, "E": 5, "D": 32, "H": 4, "d": 8, "M": 128, "V": 97}
SIZES |= {"2D": 64, "3D": 96, "1|B": 1}


@pytest.fixture(scope="module")
def crossed(make_model, make_ids, record):
    model = make_model(add_cross_attention=True)
    return record(model, make_ids(), encoder_hidden_states=ENCODED).trace


@pytest.mark.parametrize("place", [s for s in all_sites(3) if str(s) != "token_type"])
def test_every_site_has_the_shape_that_the_vocabulary_promises(crossed, place):
    expected = tuple(SIZES[axis] for axis in place.row.shape.split())
    assert tuple(crossed[place].shape) == expected


@pytest.mark.parametrize(
    "name",
    ["h.1.attn.q", "blocks.1.attn.hook_q", "h.1.mlp", "transformer.h.1.mlp.output"],
)
def test_a_tensor_is_found_by_every_name(recorded, name):
    trace = recorded.trace
    assert name in trace
    assert torch.equal(trace[name], trace[recon.site(name)])


def test_a_trace_is_a_mapping_in_the_order_of_computation(recorded):
    trace = recorded.trace
    assert list(trace) == sorted(trace)
    assert len(trace) == len(list(trace.items())) == len(trace.sites)
    assert all(place in trace and trace[place] is not None for place in trace)
    # Captured ones, and per block q, k, v and the scores.
    assert len(trace) == len(trace.tensors) + 3 * 4


@pytest.mark.parametrize(
    ("name", "origin"),
    [
        ("h.1.attn.qkv", "captured"),
        ("h.1.attn.pattern", "captured"),
        ("h.1.attn.q", "view"),
        ("h.1.attn.scores", "derived"),
        ("token_type", None),
        ("h.1.cross.q", None),
        ("h.7.ln_1", None),
    ],
)
def test_it_says_where_a_site_comes_from(recorded, name, origin):
    assert recorded.trace.origin(name) == origin
    assert (name in recorded.trace) == (origin is not None)


def test_what_the_caller_gave_is_marked_as_given(model, record):
    embedded = torch.randn(3, 7, 32)
    trace = record(model, inputs_embeds=embedded).trace
    assert trace.origin("wte") == "given"
    assert torch.equal(trace["wte"], embedded)


@pytest.mark.parametrize("name", ["token_type", "h.1.cross.z", "h.7.ln_1"])
def test_a_site_that_the_pass_does_not_compute_is_not_held(recorded, name):
    with pytest.raises(recon.CaptureError) as caught:
        recorded.trace[name]
    assert str(caught.value) == (
        f"{name} is not in the trace of run 0: this pass does not compute it, or its "
        "inputs were not captured"
    )
    assert isinstance(caught.value, KeyError)


def test_a_name_that_is_no_site_is_told_apart_from_one_that_is_not_held(recorded):
    with pytest.raises(recon.UnknownSiteError, match=r"did you mean h\.1\.attn\.q"):
        recorded.trace["h.1.atn.q"]
    assert recorded.trace.get("h.1.atn.q") is None


def test_a_trace_is_frozen(recorded):
    trace = recorded.trace
    with pytest.raises(dataclasses.FrozenInstanceError):
        trace.run = 1
    with pytest.raises(TypeError):
        trace.tensors[recon.site("ln_f")] = torch.zeros(1)
    with pytest.raises(TypeError):
        trace["ln_f"] = torch.zeros(1)


def test_replacing_makes_another_trace(recorded):
    trace, other = recorded.trace, torch.zeros(3, 7, 32)
    changed = trace.replace("blocks.1.hook_resid_mid", other)
    assert changed["h.1.resid_mid"] is other
    assert trace["h.1.resid_mid"] is not other
    assert changed["h.2.resid_mid"] is trace["h.2.resid_mid"]


def test_a_replaced_view_no_longer_follows_its_whole(recorded):
    trace = recorded.trace
    changed = trace.replace("h.1.attn.q", torch.zeros(3, 4, 7, 8))
    assert changed.origin("h.1.attn.q") == "captured"
    assert not changed["h.1.attn.q"].any()
    assert torch.equal(changed["h.1.attn.k"], trace["h.1.attn.k"])


def test_a_replaced_whole_changes_its_views(recorded):
    trace = recorded.trace
    changed = trace.replace("h.1.attn.qkv", torch.zeros(3, 7, 96))
    assert not changed["h.1.attn.v"].any()
    assert trace["h.1.attn.v"].any()


def test_scores_show_causality_and_scaling(recorded):
    trace = recorded.trace
    q, k, scores = (trace[f"h.1.attn.{part}"] for part in ("q", "k", "scores"))
    products = torch.einsum("bhtd,bhsd->bhts", q, k) / 8**0.5
    seen = torch.ones(7, 7).tril().bool()
    assert torch.allclose(scores[..., seen], products[..., seen], atol=1e-5)
    assert float(scores[..., ~seen].max()) < -1e30


def test_it_can_be_shown_briefly(recorded):
    trace = recorded.trace
    held = f"{len(trace)} sites, {trace.nbytes:,} bytes"
    assert repr(trace) == f"Trace(run=0, {held})"


def test_bytes_are_those_of_distinct_storages():
    whole, other = torch.zeros(4, 6), torch.zeros(5, dtype=torch.float64)
    assert held_bytes([whole, whole[1], whole.T, other]) == 4 * 6 * 4 + 5 * 8
    # A view keeps all of its storage alive.
    assert held_bytes([whole[0, :1]]) == 4 * 6 * 4
    assert held_bytes([]) == 0


def test_empty_tensors_hold_nothing():
    assert held_bytes([torch.zeros(0), torch.zeros(0, 3)]) == 0


# -- as a mapping ----------------------------------------------------------------


def test_a_trace_equals_itself_and_no_other(recorded):
    trace = recorded.trace
    assert trace == trace
    assert trace != copy.copy(trace)
    assert {trace: 1}[trace] == 1
    assert trace in [trace]


@pytest.mark.parametrize("name", ["nope", "h.0.atn.q", "", 3, None, ("wte",)])
def test_what_is_no_site_is_not_in_a_trace(recorded, name):
    assert name not in recorded.trace
    if isinstance(name, str):
        assert recorded.trace.get(name) is None


@pytest.mark.parametrize(
    "sites", ["h.0.attn.q", "h.1.attn.scores", ["wte", "h.*.attn.pattern"], "h.2.*"]
)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_what_is_in_a_trace_is_what_it_iterates_over(make_model, ids, sites, attention):
    model = make_model(attention=attention)
    with torch.no_grad(), recon.capture(model, sites=sites) as recorder:
        model(ids)
    trace = recorder.trace
    assert list(trace) == [s for s in all_sites(3) if s in trace] == list(trace.keys())
    assert all(trace[s] is not None for s in trace)
    for place in all_sites(3):
        if place not in trace:
            assert trace.origin(place) is None
            with pytest.raises(recon.CaptureError, match=r"asked for other|not comp"):
                trace[place]


def test_a_deep_copy_has_tensors_of_its_own_and_the_models_weights(
    model, ids, all_exact
):
    with torch.no_grad(), recon.capture(model) as recorder:
        model(ids)
    trace = recorder.trace
    twin = copy.deepcopy(trace)
    assert list(twin) == list(trace)
    mine = {t.untyped_storage().data_ptr() for t in trace.tensors.values()}
    mine |= {t.untyped_storage().data_ptr() for t in trace.facts.tensors()}
    for tensor in (*twin.tensors.values(), *twin.facts.tensors()):
        assert tensor.untyped_storage().data_ptr() not in mine
    assert twin.nbytes == trace.nbytes
    for tensor in trace.tensors.values():
        tensor.zero_()
    all_exact(recon.verify_trace(twin))
    assert recon.verify_trace(trace).verdict == "diverged"
    made = twin.facts.makers[recon.site("h.1.mlp.post")]
    assert made.module is model.transformer.h[1].mlp.act


def test_a_deep_copy_of_a_trace_with_a_graph_stays_in_the_graph(model, ids):
    with recon.capture(model, grad=True) as recorder:
        model(ids)
    twin = copy.deepcopy(recorder.trace)
    assert torch.equal(twin["ln_f"], recorder.trace["ln_f"])
    twin["ln_f"].sum().backward()
    assert model.transformer.wpe.weight.grad is not None


@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
def test_pickling_is_refused_in_one_line_that_names_save(recorded, protocol):
    with pytest.raises(recon.UsageError, match=r"with trace\.save\(path\)") as caught:
        pickle.dumps(recorded.trace, protocol)
    assert "\n" not in str(caught.value)
