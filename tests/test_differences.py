"""Two runs side by side: where they part, and whether each of them is right."""

from dataclasses import replace

import pytest
import torch

import recon
from recon.sites import Site

STATES = ["h.0.resid_pre", "h.1.resid_pre", "h.2.resid_pre", "h.2.resid_post"]


def run(model, *args, **inputs):
    with torch.no_grad(), recon.capture(model) as recorder:
        model(*args, **inputs)
    return recorder.trace


@pytest.fixture(scope="module")
def eager(make_model, make_ids):
    return run(make_model(), make_ids())


@pytest.fixture(scope="module")
def fused(make_model, make_ids):
    return run(make_model(attention="sdpa"), make_ids())


@pytest.fixture(scope="module")
def coarse(make_model, make_ids):
    return run(make_model(dtype=torch.bfloat16), make_ids())


def without_weights(trace):
    return replace(trace, facts=replace(trace.facts, makers={}, weights_at_run=()))


# -- verdicts and sentences ----------------------------------------------------


def test_a_run_and_its_repetition_are_equal(eager, make_model, ids):
    found = recon.diff(eager, run(make_model(), ids))
    assert (found.verdict, found.first) == ("equal", None)
    assert found.conclusion() == "A and B are bit-equal at every site"
    assert all(a.equal and a.max_abs == a.relative == 0 for a in found.sites)
    assert [a.site for a in found.sites] == sorted(eager.tensors)


def test_runs_of_some_sites_cannot_be_certified_and_are_refused(make_model, ids):
    model = make_model()
    with torch.no_grad(), recon.capture(model, sites="h.1.attn.q") as recorder:
        model(ids)
    with pytest.raises(recon.UsageError, match="holds only the sites asked for"):
        recon.diff(recorder.trace, recorder.trace)


def test_eager_and_sdpa_differ_by_rounding_that_grew_from_z(eager, fused):
    found = recon.diff(eager, fused, names=("eager", "sdpa"))
    assert found.verdict == "rounding"
    assert found.first.site.part == "attn.z"
    place = found.first.site
    assert found.conclusion() == (
        f"both are right, they differ by rounding that grew from {place}"
    )
    found.first_report.check()
    found.second_report.check()
    assert not found.only
    assert Site("attn.pattern", 0) not in {a.site for a in found.sites}


def test_float32_and_bfloat16_differ_by_rounding_from_the_first_site(eager, coarse):
    for pair in ((eager, coarse), (coarse, eager)):
        found = recon.diff(*pair)
        assert found.verdict == "rounding"
        assert str(found.first.site) == "wte"
        assert 0 < found.first.relative < 2.0**-8


def test_a_dtype_alone_makes_a_site_unequal(eager):
    trace = eager.replace("wpe", eager["wpe"].double())
    found = recon.diff(eager, trace)
    assert found.first.site == Site("wpe")
    assert found.first.max_abs == 0


def test_a_difference_in_one_bit_is_a_difference(eager):
    other = eager["h.1.mlp.post"].clone()
    other[0, 0, 0] = torch.nextafter(other[0, 0, 0], torch.tensor(9.0))
    found = recon.diff(eager, eager.replace("h.1.mlp.post", other))
    assert [str(a.site) for a in found.sites if not a.equal] == ["h.1.mlp.post"]
    assert found.first.max_abs > 0
    assert found.verdict == "rounding"


@pytest.mark.parametrize("name", ["h.1.mlp.post", "h.2.attn.z", "h.0.ln_1", "logits"])
def test_a_wrong_run_is_named_at_its_site_whichever_it_is(eager, fused, name):
    wrong = fused.replace(name, fused[name] * 1.01)
    found = recon.diff(eager, wrong, names=("eager", "sdpa"))
    assert found.verdict == "diverged"
    assert found.conclusion() == f"sdpa is wrong at {name}"
    turned = recon.diff(wrong, eager, names=("sdpa", "eager"))
    assert turned.verdict == "diverged"
    assert turned.conclusion() == f"sdpa is wrong at {name}"


def test_a_wrong_run_is_wrong_even_if_both_are(eager):
    wrong = eager.replace("h.1.ln_2", eager["h.1.ln_2"] * 2)
    found = recon.diff(wrong, wrong)
    assert found.verdict == "diverged"
    assert found.conclusion() == "A is wrong at h.1.ln_2"


def test_runs_of_other_weights_say_which_and_blame_no_rounding(eager, make_model, ids):
    found = recon.diff(eager, run(make_model(seed=1), ids))
    assert found.verdict == "diverged"
    assert found.conclusion() == (
        "the models differ: transformer.wte.weight is not the same weight"
    )
    model = make_model()
    with torch.no_grad():
        model.transformer.h[2].ln_2.bias[0] += 1
    found = recon.diff(eager, run(model, ids))
    assert found.other_weights == "transformer.h.2.ln_2.bias"


def test_weights_that_differ_by_a_cast_alone_are_the_same(eager, coarse):
    assert not recon.diff(eager, coarse).other_weights


def test_without_weights_a_difference_is_unverified(eager, fused):
    found = recon.diff(eager, without_weights(fused), names=("eager", "sdpa"))
    assert found.verdict == "unverified"
    assert found.second_report is None
    assert found.conclusion() == (
        f"they differ from {found.first.site} on; whether by rounding is not proven: "
        "sdpa comes without its weights"
    )


def test_without_weights_equal_runs_are_equal_and_wrong_ones_are_wrong(eager):
    bare = without_weights(eager)
    assert recon.diff(bare, bare).verdict == "equal"
    wrong = eager.replace("h.1.ln_2", eager["h.1.ln_2"] * 2)
    assert recon.diff(bare, wrong).verdict == "diverged"


def test_what_cannot_be_certified_is_unverified_by_name(make_model, ids):
    class Snake(torch.nn.Module):
        def forward(self, x):
            """Return x + sin(x)^2."""
            return x + torch.sin(x).square()

    traces = []
    for attention in ("eager", "sdpa"):
        model = make_model(attention=attention)
        model.transformer.h[0].mlp.act = Snake()
        traces.append(run(model, ids))
    found = recon.diff(*traces)
    assert found.verdict == "unverified"
    assert "A: h.0.mlp.post: the activation Snake" in found.conclusion()


def test_a_site_that_one_run_alone_has_is_no_rounding(eager, make_model, ids):
    found = recon.diff(eager, run(make_model(), ids, token_type_ids=ids), names="xy")
    assert found.verdict == "diverged"
    assert found.conclusion() == (
        "only y has token_type: the runs computed different things"
    )


def test_what_dropout_draws_is_not_laid_to_rounding(eager, make_model, ids):
    model = make_model().train()
    torch.manual_seed(0)
    first = run(model, ids)
    second = run(model, ids)
    torch.manual_seed(0)
    again = run(model, ids)
    assert recon.diff(first, again).verdict == "equal"
    for pair in ((first, second), (first, eager), (eager, first)):
        found = recon.diff(*pair)
        assert found.verdict == "unverified"
        assert found.first_report.verdict == "reconciled"
        assert found.second_report.verdict == "reconciled"
        name = "B" if pair[0] is eager else "A"
        assert found.conclusion() == (
            "they differ from embed on; whether by rounding is not proven: "
            f"dropout was on in {name}"
        )


# -- growth --------------------------------------------------------------------


def test_growth_is_that_of_the_stream_before_each_block_and_after_the_last(
    eager, coarse
):
    found = recon.diff(eager, coarse)
    assert [str(a.site) for a in found.growth] == STATES
    for apart in found.growth:
        gap = eager[apart.site].double() - coarse[apart.site].double()
        assert apart.max_abs == float(gap.abs().max())
        size = eager[apart.site].double().square().mean().sqrt()
        relative = float(gap.square().mean().sqrt() / size)
        assert apart.relative == pytest.approx(relative)


def test_where_the_first_run_is_zero_the_difference_is_infinite(eager):
    none = eager.replace("wpe", torch.zeros_like(eager["wpe"]))
    (apart,) = (a for a in recon.diff(none, eager).sites if a.site == Site("wpe"))
    assert apart.relative == float("inf")


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"position_ids": torch.arange(7).flip(0)[None]}, "wpe looked up other ids"),
        (
            {"attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1, 1]] * 3)},
            "h.0.attn_out: the attention masks differ",
        ),
    ],
)
def test_runs_that_were_asked_for_different_things_differ_by_no_rounding(
    eager, make_model, ids, inputs, words
):
    found = recon.diff(eager, run(make_model(), ids, **inputs))
    assert found.verdict == "diverged"
    assert found.conclusion() == f"the runs computed different things: {words}"


def test_another_eps_or_activation_is_no_rounding(eager, make_model, ids):
    model = make_model()
    model.transformer.h[1].ln_2.eps = 1e-2
    words = recon.diff(eager, run(model, ids)).conclusion()
    assert words.endswith("h.1.ln_2 has eps 1e-05 and 0.01")
    words = recon.diff(eager, run(make_model(activation_function="gelu"), ids))
    assert "NewGELUActivation and GELUActivation" in words.conclusion()


# -- what cannot be compared ---------------------------------------------------


def test_runs_of_other_shapes_or_ids_are_refused(eager, make_model, make_ids):
    model = make_model()
    with pytest.raises(recon.UsageError, match="different inputs: 3x7 and 3x5"):
        recon.diff(eager, run(model, make_ids(tokens=5)))
    with pytest.raises(recon.UsageError, match="different token ids"):
        recon.diff(eager, run(model, make_ids(seed=1)))


def test_runs_of_models_of_another_width_or_depth_are_no_rounding(
    eager, make_model, ids
):
    with pytest.raises(recon.UsageError, match=r"wte is \(3, 7, 32\) in one run"):
        recon.diff(eager, run(make_model(n_embd=16), ids))
    found = recon.diff(eager, run(make_model(n_layer=2), ids))
    assert found.verdict == "diverged"


def test_an_unfinished_run_is_refused(eager, model, ids):
    model.transformer.h[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with recon.capture(model) as recorder, pytest.raises(ZeroDivisionError):
        model(ids)
    with pytest.raises(recon.UsageError, match=r"B did not finish \(ZeroDivision"):
        recon.diff(eager, recorder.trace)


def test_runs_with_no_site_in_common_prove_nothing(eager):
    bare = without_weights(replace(eager, tensors={}))
    found = recon.diff(bare, bare)
    assert (found.verdict, found.conclusion()) == ("unverified", "nothing was compared")


def test_a_difference_is_neither_true_nor_false(eager):
    with pytest.raises(TypeError, match="read its verdict"):
        bool(recon.diff(eager, eager))
