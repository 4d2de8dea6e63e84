"""Level replay: one changed bit in any captured site is found there, not earlier."""

import pytest
import torch

import recon
from recon.gpt2 import identities
from recon.replay import replay

DEPTH = 3
STEM = ("wte", "wpe", "embed")
BLOCK = (
    *("resid_pre", "ln_1", "attn.qkv", "attn.z", "attn.out", "attn_out"),
    *("resid_mid", "ln_2", "mlp.pre", "mlp.post", "mlp.out", "mlp_out", "resid_post"),
)
CROSS = (
    *("attn.pattern", "cross.resid_pre", "cross.ln", "cross.q", "cross.kv"),
    *("cross.pattern", "cross.z", "cross.out", "cross_out"),
)
HEAD = ("ln_f", "logits")
ENCODED = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(3))


def every(parts):
    blocks = [f"h.{layer}.{part}" for layer in range(DEPTH) for part in parts]
    return [*STEM, *blocks, *HEAD]


PLAIN_SITES = every(BLOCK)
CROSS_SITES = every(BLOCK + CROSS)
VIEWS = [f"h.1.attn.{part}" for part in "qkv"]
CROSS_VIEWS = [*VIEWS, "h.1.cross.k", "h.1.cross.v"]


@pytest.fixture(scope="module")
def plain(make_model, make_ids, record):
    return record(make_model(attention="sdpa"), make_ids())


@pytest.fixture(scope="module")
def crossed(make_model, make_ids, record):
    model = make_model(attention="eager", add_cross_attention=True)
    return record(model, make_ids(), encoder_hidden_states=ENCODED)


def one_bit_more(tensor):
    """Return a copy whose middle element is the next larger number, and its index."""
    damaged = tensor.clone(memory_format=torch.contiguous_format)
    index = tuple(size // 2 for size in tensor.shape)
    damaged[index] = torch.nextafter(damaged[index], torch.tensor(torch.inf))
    assert not torch.equal(damaged, tensor)
    return damaged, index


def assert_found_there_and_no_earlier(recorded, name, with_output):
    damaged, index = one_bit_more(recorded.trace[name])
    trace = recorded.trace.replace(name, damaged)
    report = recon.verify_trace(trace, recorded.output if with_output else None)
    first = report.failures[0]
    assert (first.site, first.index, first.max_ulp) == (name, index, 1)
    with pytest.raises(recon.ReconciliationError, match=f"\n{name}: off by"):
        report.check()


def test_the_twins_cover_every_captured_site(plain, crossed):
    assert [str(place) for place in plain.trace.tensors] == PLAIN_SITES
    assert {str(place) for place in crossed.trace.tensors} == set(CROSS_SITES)


def test_without_damage_nothing_is_found(plain, crossed, all_exact):
    all_exact(recon.verify_trace(*plain))
    all_exact(recon.verify_trace(*crossed))


@pytest.mark.parametrize("name", PLAIN_SITES)
def test_one_changed_bit_is_found_at_its_site(plain, name):
    assert_found_there_and_no_earlier(plain, name, with_output=True)


@pytest.mark.parametrize("name", CROSS_SITES)
def test_one_changed_bit_is_found_at_its_site_with_cross_attention(crossed, name):
    assert_found_there_and_no_earlier(crossed, name, with_output=True)


@pytest.mark.parametrize("name", PLAIN_SITES)
def test_one_changed_bit_is_found_at_its_site_without_the_models_output(plain, name):
    assert_found_there_and_no_earlier(plain, name, with_output=False)


@pytest.mark.parametrize("name", CROSS_VIEWS)
def test_a_split_of_ones_own_is_checked_against_the_whole(crossed, name):
    trace = crossed.trace.replace(name, crossed.trace[name].clone())
    report = recon.verify_trace(trace, crossed.output).check()
    assert [c.site for c in report.checks if c.identity == "split"] == [name]


@pytest.mark.parametrize("name", CROSS_VIEWS)
def test_one_changed_bit_in_a_split_is_found_there(crossed, name):
    damaged, index = one_bit_more(crossed.trace[name])
    trace = crossed.trace.replace(name, damaged)
    first = recon.verify_trace(trace, crossed.output).failures[0]
    assert (first.site, first.identity, first.index) == (name, "split", index)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("h.1.attn.q", "h.1.attn.k"),
        ("h.1.attn.v", "h.2.attn.v"),
        ("h.1.resid_pre", "h.2.resid_pre"),
        ("h.1.mlp.out", "h.1.attn.out"),
        ("h.2.resid_post", "ln_f"),
    ],
)
def test_a_tensor_of_another_place_is_found(plain, name, other):
    trace = plain.trace.replace(name, plain.trace[other])
    assert recon.verify_trace(trace, plain.output).failures[0].site == name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(
    "name", ["h.1.attn.qkv", "h.1.attn.z", "h.1.mlp.post", "logits"]
)
def test_one_changed_bit_is_found_in_every_dtype(make_model, ids, record, dtype, name):
    recorded = record(make_model(dtype=dtype), ids)
    damaged = recorded.trace[name].clone()
    bits = damaged.view({2: torch.int16, 8: torch.int64}[damaged.element_size()])
    bits[(1,) * bits.ndim] += 1
    trace = recorded.trace.replace(name, damaged)
    first = recon.verify_trace(trace, recorded.output).failures[0]
    assert (first.site, first.max_ulp, first.index) == (name, 1, (1,) * bits.ndim)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["embed", "h.1.attn.z", "h.1.attn_out", "h.1.mlp_out"])
def test_damage_after_a_dropout_is_found(make_model, ids, record, name, attention):
    recorded = record(make_model(attention=attention).train(), ids)
    damaged = recorded.trace[name].clone()
    index = tuple(torch.nonzero(damaged)[5].tolist())
    damaged[index] *= 1.001
    trace = recorded.trace.replace(name, damaged)
    first = recon.verify_trace(trace, recorded.output).failures[0]
    assert (first.site, first.index) == (name, index)


@pytest.mark.parametrize("step", [0, 2])
@pytest.mark.parametrize("name", ["h.1.attn.qkv", "h.1.attn.k", "h.1.attn.z", "ln_f"])
def test_damage_in_a_decoding_step_is_found(make_model, ids, name, step):
    model = make_model()
    with recon.capture(model, keep="all") as recorder:
        model.generate(ids, max_new_tokens=3, pad_token_id=0)
    trace = recorder.traces[step]
    damaged, index = one_bit_more(trace[name])
    first = recon.verify_trace(trace.replace(name, damaged)).failures[0]
    assert (first.site, first.index) == (name, index)


def test_replay_yields_one_check_an_identity_in_order(plain):
    listed = list(identities(plain.trace))
    found = list(replay(plain.trace, listed))
    assert [(c.site, c.identity) for c in found] == [
        (str(i.site), i.name) for i in listed
    ]
    assert {check.level for check in found} == {"replay"}


def test_an_input_that_does_not_fit_leaves_a_site_unverified_and_fails(plain):
    trace = plain.trace.replace("h.1.ln_1", plain.trace["h.1.ln_1"][..., :-1])
    checks = recon.verify_trace(trace, plain.output).failures
    (found,) = [check for check in checks if check.identity == "qkv"]
    assert (found.site, found.verdict) == ("h.1.attn.qkv", "unverified")
    assert found.reason.startswith("cannot be recomputed from h.1.ln_1: ")
