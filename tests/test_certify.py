"""Level certify: correct runs are inside their bounds, planted faults are not."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import recon
from recon import certify as certifying
from recon.activations import known
from recon.certify import certify
from recon.compare import Check
from recon.facts import Identity
from recon.gpt2 import identities
from recon.models import load_model
from recon.ops import Same, sdp_backends, set_sdp_backends
from recon.replay import replay
from recon.rounding import Arithmetic, Bounded
from recon.sites import Site, site
from recon.softmax import attention_weights
from tests import versions
from tests.planted import EVERYWHERE, FAULTS

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
KERNELS = ["eager", "sdpa"]
ENCODED = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(3))


def certified(trace, form="deterministic"):
    """Return the checks of every identity of a trace."""
    return list(certify(trace, identities(trace), form))


def assert_inside(checks):
    assert checks
    outside = [c.describe() for c in checks if not c.passed]
    assert not outside, "\n".join(outside)
    assert all(0 <= c.bound_ratio <= 1 for c in checks)
    assert all(c.allowed is not None and c.sharpness >= 0 for c in checks)


def first_failing(trace):
    checks = certify(trace, identities(trace))
    return next((c for c in checks if not c.passed), None)


def run(model, *args, grad=False, **inputs):
    with torch.set_grad_enabled(grad), recon.capture(model) as recorder:
        model(*args, **inputs)
    return recorder.trace


# -- correct runs are inside their bounds --------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_identity_of_a_correct_run_certifies(make_model, ids, kernel, dtype):
    trace = run(make_model(attention=kernel, dtype=dtype), ids)
    checks = certified(trace)
    assert len(checks) == len(list(identities(trace)))
    assert_inside(checks)
    assert any(c.verdict == "rounding" for c in checks)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_probabilistic_form_holds_too(make_model, ids, dtype):
    assert_inside(certified(run(make_model(dtype=dtype), ids), "probabilistic"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_padded_rows_certify_and_rows_without_keys_are_counted(
    make_model, ids, kernel, side, dtype
):
    mask = torch.ones_like(ids)
    mask[1, :3] = 0 if side == "left" else 1
    mask[1, 4:] = 1 if side == "left" else 0
    trace = run(make_model(attention=kernel, dtype=dtype), ids, attention_mask=mask)
    checks = certified(trace)
    assert_inside(checks)
    idle = sum(c.excluded for c in checks if c.site.endswith("attn.z"))
    assert idle == (3 * 3 if side == "left" else 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_run_in_train_mode_certifies(make_model, ids, kernel, dtype):
    torch.manual_seed(5)
    model = make_model(attention=kernel, dtype=dtype).train()
    assert_inside(certified(run(model, ids, grad=True)))


@pytest.mark.parametrize("kernel", KERNELS)
def test_dropout_that_leaves_nothing_certifies(make_model, ids, kernel):
    # 2026-11: 0 of the fused kernel's weights over 0 had no bound.
    rates = dict.fromkeys(("embd_pdrop", "resid_pdrop", "attn_pdrop"), 1.0)
    model = make_model(attention=kernel, **rates).train()
    assert_inside(certified(run(model, ids)))


def test_a_weight_that_is_no_number_is_not_called_an_overflow(make_model, ids):
    model = make_model()
    trace = run(model, ids)
    model.transformer.h[1].ln_2.bias.data[3] = float("nan")
    (failing,) = [c for c in certified(trace) if not c.passed]
    assert (failing.site, failing.verdict) == ("h.1.ln_2", "unverified")
    assert failing.reason.endswith("21 elements: the bias that makes them holds NaN")


def test_dropout_in_a_fused_kernel_is_unverified_without_its_random_state(
    make_model, ids
):
    trace = run(make_model(attention="sdpa").train(), ids)
    forgotten = {s: replace(c, rng=()) for s, c in trace.facts.attention.items()}
    facts = replace(trace.facts, attention=forgotten)
    failing = [c for c in certified(replace(trace, facts=facts)) if not c.passed]
    assert [c.site for c in failing] == [f"h.{i}.attn.z" for i in range(3)]
    assert {c.verdict for c in failing} == {"unverified"}
    assert all("random state was not recorded" in c.reason for c in failing)


@pytest.mark.parametrize("place", ["embed", "h.1.mlp_out", "h.1.attn_out"])
def test_dropout_that_drops_all_or_scales_wrongly_is_found(make_model, ids, place):
    trace = run(make_model().train(), ids)
    for wrong in (0.0, 0.9):
        assert first_failing(trace.replace(place, trace[place] * wrong)).site == place


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_cross_attention_certifies(make_model, ids, kernel, dtype):
    model = make_model(attention=kernel, dtype=dtype, add_cross_attention=True)
    trace = run(model, ids, encoder_hidden_states=ENCODED.to(dtype))
    checks = certified(trace)
    assert_inside(checks)
    assert {"h.1.cross.kv", "h.1.cross.z", "h.1.cross_out"} <= {c.site for c in checks}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_each_step_of_cached_decoding_certifies(make_model, ids, kernel, dtype):
    model = make_model(attention=kernel, dtype=dtype)
    with torch.no_grad(), recon.capture(model, keep="all") as recorder:
        model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert len(recorder.traces) == 4
    for trace in recorder.traces:
        assert_inside(certified(trace))


@pytest.mark.parametrize("kernel", KERNELS)
def test_under_autocast_each_site_is_judged_in_the_dtype_it_has(
    make_model, ids, kernel
):
    model = make_model(attention=kernel)
    with torch.autocast("cpu", torch.bfloat16):
        trace = run(model, ids)
    assert trace["h.1.attn.qkv"].dtype == torch.bfloat16
    assert_inside(certified(trace))


def test_autocast_around_a_check_changes_nothing_that_it_computes(recorded):
    # 2026-11: |X||W|, computed in float32, came out in bfloat16 and too small.
    with torch.autocast("cpu", torch.bfloat16):
        checks = certified(recorded.trace)
    assert checks == certified(recorded.trace)


@pytest.mark.parametrize(
    "config",
    [
        {"scale_attn_by_inverse_layer_idx": True},
        {"reorder_and_upcast_attn": True},
        {"scale_attn_weights": False},
        {"n_inner": 48, "layer_norm_epsilon": 1e-3},
    ],
    ids=lambda c: next(iter(c)),
)
def test_other_configurations_certify(make_model, ids, config):
    for dtype in (torch.float32, torch.bfloat16):
        assert_inside(certified(run(make_model(dtype=dtype, **config), ids)))


def test_token_types_embeddings_and_kept_logits_certify(make_model, ids):
    model = make_model()
    assert_inside(certified(run(model, ids, token_type_ids=ids // 2)))
    keep = {"logits_to_keep": 2} if versions.KEEPS_LOGITS else {}
    assert_inside(certified(run(model, ids, **keep)))
    embedded = model.transformer.wte(ids).detach()
    assert_inside(certified(run(model, inputs_embeds=embedded)))


ACTIVATIONS = [
    *("gelu_new", "gelu", "gelu_fast", "gelu_python", "gelu_pytorch_tanh"),
    *("gelu_accurate", "gelu_10", "quick_gelu", "relu", "relu2", "relu6"),
    *("silu", "swish", "mish", "laplace", "linear", "leaky_relu"),
    *("sigmoid", "tanh"),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_has_a_bound_that_holds(name, dtype, make_model, ids):
    model = make_model(activation_function=name, n_layer=1, dtype=dtype)
    checks = [c for c in certified(run(model, ids)) if c.identity == "mlp_post"]
    assert_inside(checks)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_no_activations_bound_covers_another_activation(name, make_model, ids):
    trace = run(make_model(activation_function=name, n_layer=1), ids)
    place = "h.0.mlp.post"
    other = torch.nn.functional.elu(trace["h.0.mlp.pre"])
    assert first_failing(trace.replace(place, other)).site == place


# -- what has no bound is unverified -------------------------------------------


class Snake(nn.Module):
    """An activation that transformers does not have."""

    def forward(self, x):
        """Return x + sin(x)^2."""
        return x + torch.sin(x).square()


def test_an_unknown_activation_is_unverified_by_name_and_never_a_pass(model, ids):
    model.transformer.h[1].mlp.act = Snake()
    assert not known(Snake())
    failing = [c for c in certified(run(model, ids)) if not c.passed]
    assert [(c.site, c.verdict) for c in failing] == [("h.1.mlp.post", "unverified")]
    assert "Snake" in failing[0].reason
    report = recon.verify(model, ids, levels=["certify"])
    assert report.verdict == "diverged"
    with pytest.raises(recon.ReconciliationError, match="Snake"):
        report.check()


def test_an_activation_named_like_one_of_transformers_is_not_taken_for_it(ids, model):
    class NewGELUActivation(Snake):
        pass

    model.transformer.h[1].mlp.act = NewGELUActivation()
    assert first_failing(run(model, ids)).site == "h.1.mlp.post"


def test_products_that_may_be_summed_in_half_are_unverified(make_model, ids):
    trace = run(make_model(attention="sdpa", dtype=torch.bfloat16), ids)
    environment = replace(trace.facts.environment, reduced=True)
    facts = replace(trace.facts, environment=environment)
    checks = certified(replace(trace, facts=facts))
    unverified = {c.identity for c in checks if c.verdict == "unverified"}
    products = {"qkv", "z", "attn_out", "mlp_pre", "mlp_out", "logits"}
    assert unverified == products
    assert {c.identity for c in checks if not c.passed} == products


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("allowed", [False, True])
def test_fused_scores_that_may_be_kept_in_half_are_unverified(
    make_model, ids, dtype, allowed
):
    # 2026-11: the math kernel then strays up to 6 bounds.
    before = sdp_backends()
    try:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(allowed)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            trace = run(make_model(attention="sdpa", dtype=dtype), ids)
    finally:
        set_sdp_backends(before)
    half = dtype in (torch.bfloat16, torch.float16)
    failing = [c for c in certified(trace) if not c.passed]
    assert {c.identity for c in failing} == ({"z"} if half and allowed else set())
    assert all(c.verdict == "unverified" for c in failing)
    assert all("kept in half precision" in c.reason for c in failing)
    assert all(check.verdict == "exact" for check in replay(trace, identities(trace)))


def test_a_missing_input_is_missing_and_a_wrong_shape_or_dtype_diverges(recorded):
    trace = recorded.trace
    place = "h.1.mlp.pre"
    short = trace.replace(place, trace[place][..., :-1])
    assert first_failing(short).site == place
    assert first_failing(short).verdict == "diverged"
    tensors = {s: t for s, t in trace.tensors.items() if str(s) != place}
    missing = first_failing(replace(trace, tensors=tensors))
    assert (missing.site, missing.verdict) == (place, "missing")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", ["h.1.attn.pattern", "h.1.mlp.out", "logits"])
def test_what_is_not_finite_diverges(recorded, place, value):
    tensor = recorded.trace[place].clone()
    tensor[0, -1, 0] = value
    failing = first_failing(recorded.trace.replace(place, tensor))
    assert (failing.site, failing.verdict) == (place, "diverged")
    assert "not finite" in failing.reason


# -- planted faults are caught, at their site ----------------------------------


def tiny_run(dtype):
    """Return a run of random:tiny with eager attention, all certified."""
    model = load_model("random:tiny", dtype=dtype, attention="eager").model
    generator = torch.Generator().manual_seed(0)
    trace = run(model, torch.randint(0, 3000, (2, 32), generator=generator))
    assert_inside(certified(trace))
    return trace


@pytest.fixture(scope="module")
def tiny():
    return tiny_run(torch.float32)


@pytest.fixture(scope="module")
def tiny_bfloat16():
    return tiny_run(torch.bfloat16)


@pytest.fixture(scope="module")
def narrow(make_model, make_ids):
    """A run of twelve narrow blocks, all certified."""
    trace = run(make_model(n_layer=12, n_embd=16), make_ids(tokens=12))
    assert_inside(certified(trace))
    return trace


def named(fault):
    return f"{fault.name} at {fault.part}"


# Where the variance is large, eps is nothing beside it.
UNSEEN = {("LayerNorm eps 1e-6 for 1e-5", part) for part in ("ln_2", "ln_f")}
SEEN = [fault for fault in EVERYWHERE if (fault.name, fault.part) not in UNSEEN]


@pytest.mark.parametrize("fault", SEEN, ids=named)
@pytest.mark.parametrize("which", ["tiny", "narrow"])
def test_every_planted_fault_is_caught_in_float32_at_its_site(request, which, fault):
    place, wrong = fault.plant(request.getfixturevalue(which))
    found = first_failing(wrong)
    assert found is not None
    assert (found.site, found.verdict) == (str(place), "diverged")
    assert found.bound_ratio > 1


@pytest.mark.parametrize("fault", FAULTS, ids=named)
def test_a_small_enough_share_of_a_fault_is_rounding_and_a_larger_one_is_not(
    tiny, fault
):
    def verdict(share):
        place, wrong = fault.plant(tiny, share)
        (check,) = own_check(wrong, str(place))
        return check.verdict

    assert verdict(2.0**-2) == "diverged"
    assert verdict(2.0**-40) in ("exact", "rounding")


COARSE = {
    "erf gelu for tanh gelu",
    "LayerNorm eps 1e-6 for 1e-5",
    "variance with ddof 1",
}


@pytest.mark.parametrize(
    "fault", [f for f in FAULTS if f.name not in COARSE], ids=lambda fault: fault.name
)
def test_the_planted_faults_that_bfloat16_shows_are_caught_in_it(tiny_bfloat16, fault):
    place, wrong = fault.plant(tiny_bfloat16)
    found = first_failing(wrong)
    assert found is not None
    assert found.site == str(place)


def test_bfloat16_cannot_tell_the_two_gelus_apart_and_float32_can(tiny, tiny_bfloat16):
    erf = FAULTS[0]
    assert erf.name == "erf gelu for tanh gelu"
    (place, coarse), (_, fine) = erf.plant(tiny_bfloat16), erf.plant(tiny)
    assert not torch.equal(coarse[place], tiny_bfloat16[place])
    (unseen,), (seen,) = own_check(coarse, str(place)), own_check(fine, str(place))
    assert unseen.verdict == "rounding"
    assert seen.bound_ratio > 10


def damaged(trace, check, times):
    """Damage one element of a site by ``times`` its stated sharpness."""
    tensor = trace[check.site].clone(memory_format=torch.contiguous_format)
    row = tensor[0, -1] if tensor.ndim == 3 else tensor[0, 0, -1]
    scale = float(row.double().square().mean().sqrt())
    where = int(row.abs().argmin())
    row[where] += times * check.sharpness * scale
    return trace.replace(check.site, tensor)


def own_check(trace, place):
    wanted = [i for i in identities(trace) if str(i.site) == place]
    return [certifying.check(trace, i) for i in wanted]


CAPTURED = [
    *("wte", "wpe", "embed", "ln_f", "logits"),
    *(
        f"h.1.{part}"
        for part in (
            *("resid_pre", "ln_1", "attn.qkv", "attn.pattern", "attn.z", "attn.out"),
            *("attn_out", "resid_mid", "ln_2", "mlp.pre", "mlp.post", "mlp.out"),
            *("mlp_out", "resid_post"),
        )
    ),
]


@pytest.mark.parametrize("place", CAPTURED)
def test_a_fault_above_the_stated_sharpness_is_caught_at_its_site(tiny, place):
    (check,) = own_check(tiny, place)
    if not check.sharpness:
        check = replace(check, sharpness=1e-6)
    found = first_failing(damaged(tiny, check, 1.5))
    assert found is not None
    assert found.site == place


@pytest.mark.parametrize("place", ["h.1.mlp.out", "h.1.ln_1", "logits"])
def test_a_fault_far_below_the_stated_sharpness_is_not_caught(tiny, place):
    (check,) = own_check(tiny, place)
    (again,) = own_check(damaged(tiny, check, 1e-3), place)
    assert again.passed


def test_the_sites_that_are_damaged_are_all_that_were_captured(tiny):
    per_block = {p.part for p in tiny.tensors}
    assert per_block == {site(name).part for name in CAPTURED}


# -- how it computes -----------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
def test_pieces_give_what_the_whole_gives(make_model, ids, kernel, monkeypatch):
    trace = run(make_model(attention=kernel), ids)
    whole = certified(trace)
    monkeypatch.setattr(certifying, "_AT_ONCE", 30)
    for one, other in zip(whole, certified(trace), strict=True):
        assert (one.site, one.verdict, one.index) == (
            other.site,
            other.verdict,
            other.index,
        )
        assert one.bound_ratio == pytest.approx(other.bound_ratio, rel=1e-6)
        assert one.sharpness == pytest.approx(other.sharpness, rel=1e-4)


@pytest.mark.parametrize("place", ["logits", "h.1.attn.pattern", "h.1.attn.z"])
def test_a_fault_in_a_late_piece_is_found_at_its_place(recorded, place, monkeypatch):
    monkeypatch.setattr(certifying, "_AT_ONCE", 30)
    tensor = recorded.trace[place].clone()
    index = tuple(n - 1 for n in tensor.shape)
    tensor[index] += 0.5
    failing = first_failing(recorded.trace.replace(place, tensor))
    assert (failing.site, failing.index) == (place, index)


def test_captures_made_elsewhere_certify(recorded, model, tmp_path):
    trace = recorded.trace
    copies = {s: t.clone().contiguous() for s, t in trace.tensors.items()}
    assert_inside(certified(replace(trace, tensors=copies)))
    trace.save(tmp_path / "run.safetensors")
    loaded = recon.load_trace(tmp_path / "run.safetensors", model)
    assert_inside(certified(loaded))
    wrong = loaded.replace("h.1.mlp.out", loaded["h.1.mlp.out"] * 1.01)
    assert first_failing(wrong).site == "h.1.mlp.out"


def test_no_module_of_the_model_is_called(make_model, ids):
    def never(*_):
        raise AssertionError("a module of the model was called")

    for kernel in KERNELS:
        model = make_model(attention=kernel)
        trace = run(model, ids)
        for module in model.modules():
            module.register_forward_pre_hook(never)
            module.forward = never
        assert_inside(certified(trace))
        with pytest.raises(AssertionError, match="was called"):
            model(ids)


def test_certify_says_the_same_under_grad_and_leaves_no_graph(recorded):
    with torch.enable_grad():
        checks = certified(recorded.trace)
    assert checks == certified(recorded.trace)


def test_an_operation_that_cannot_be_recomputed_is_unverified(recorded):
    trace = recorded.trace
    place = "h.1.ln_2"
    narrow = trace.replace("h.1.resid_mid", trace["h.1.resid_mid"][..., :-1])
    (check,) = own_check(narrow, place)
    assert check.verdict == "unverified"
    assert "cannot be recomputed" in check.reason


def test_nothing_captured_is_missing_and_no_exact_agreement():
    # 2026-11: two empty tensors are equal.
    nothing = torch.ones(1, 0, 2)
    identity = Identity("chain", Site("embed"), Same())
    blank = Check("embed", "chain", "certify", "unverified")
    arithmetic = Arithmetic(torch.float32)
    check = certifying._moved(nothing, nothing, identity, arithmetic, blank)
    assert check.verdict == "missing"


def test_scores_that_may_overflow_are_unverified_though_softmax_hides_them(make_model):
    # exp makes a 0 of minus infinity, which nothing after it shows.
    model, ids = make_model(dtype=torch.float16, attention="eager"), [[3, 5, 7]]
    trace = run(model, torch.tensor(ids))
    q, k = (trace[f"h.1.attn.{part}"].clone() for part in "qk")
    q[..., 0], k[..., 0] = 300.0, -300.0
    op = next(i.op for i in identities(trace) if str(i.site) == "h.1.attn.pattern")
    with torch.no_grad():
        scores = q @ k.transpose(-1, -2)
    assert bool(scores.isneginf().all())
    pieces = list(certifying._pattern(op, [q, k], q, Arithmetic(torch.float16)))
    assert all(bool(p.error[..., 1, :2].isinf().all()) for _, p in pieces)
    fine = list(certifying._pattern(op, [q / 300, k], q, Arithmetic(torch.float16)))
    assert all(bool(p.error.isfinite().all()) for _, p in fine)


def test_a_hidden_key_that_outweighs_an_added_mask_leaves_no_bound():
    # 2026-11: 65,000 - 65,504 is more than -600, so that the hidden key takes all.
    q = torch.tensor([[250.0, 1.0]], dtype=torch.float16)
    k = torch.tensor([[-2.0, -100.0], [250.0, 2500.0]], dtype=torch.float16)
    allowed = torch.tensor([[True, False]])
    mask = torch.tensor([0.0, -65504.0], dtype=torch.float16)
    assert (q @ k.T + mask).softmax(-1).tolist() == [[0.0, 1.0]]
    half = Arithmetic(torch.float16)
    shown = attention_weights(q, k, 1.0, allowed, None, half)
    assert bool(shown.error.isposinf().all())
    # Before it is scaled the hidden score is an infinity: the softmax is no number.
    early = attention_weights(2 * q, k, 0.01, allowed, None, half)
    assert bool(early.error.isposinf().all())
    fine = attention_weights(q / 10, k, 1.0, allowed, None, half)
    assert float(fine.error[0, 1]) < 1e-30
    assert fine.weights.tolist() == [[1.0, 0.0]]


def test_a_prediction_that_is_not_a_number_vouches_for_nothing():
    # 2026-11: a nan is not above 0, so it counted as no error at all.
    found = torch.ones(1, 1, 2)
    nan = torch.full((1, 1, 2), torch.nan, dtype=torch.float64)
    bounded = Bounded(nan, torch.ones_like(nan), Arithmetic(torch.float32))
    identity = Identity("chain", Site("embed"), Same())
    blank = Check("embed", "chain", "certify", "unverified")
    check = certifying.judge([((), bounded)], found, identity, [found], blank)
    assert check.verdict == "diverged"
