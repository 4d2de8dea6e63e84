"""The residual stream, rebuilt from embeddings and updates alone."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel, GPT2Model

import recon
from tests import versions

MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7, [0] + [1] * 6])
ENCODED = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(3))
EMBEDDED = torch.randn(3, 7, 32, generator=torch.Generator().manual_seed(4))
TYPES = torch.arange(21).view(3, 7) % 2
CASES = {
    "plain": ({}, {}),
    "padded": ({}, {"attention_mask": MASK}),
    "cross-attention": (
        {"add_cross_attention": True},
        {"encoder_hidden_states": ENCODED},
    ),
    "token types": ({}, {"token_type_ids": TYPES}),
    "one block": ({"n_layer": 1}, {}),
    "12 blocks": ({"n_layer": 12, "n_embd": 16}, {}),
    "small epsilon": ({"layer_norm_epsilon": 1e-12}, {}),
}
# Each level of splitting sums some dozens of terms in another order than the model.
# A sum of n terms errs by at most (n-1) unit roundoffs of the sum of their sizes.
TERMS = 200


def allowance(terms, dtype):
    """Bound what the order of summation can change in the sum of ``terms``."""
    sizes = sum(term.double().abs() for term in terms)
    return TERMS * torch.finfo(dtype).eps / 2 * sizes


def total(terms):
    result = None
    for term in terms.values():
        result = term if result is None else result + term
    return result


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize(("config", "inputs"), CASES.values(), ids=CASES)
def test_the_rebuilt_states_are_the_models_bit_by_bit(
    make_model, ids, record, config, inputs, mode, dtype, attention
):
    model = make_model(attention=attention, dtype=dtype, **config)
    model.train(mode == "train")
    inputs = {
        name: given.to(dtype) if given.is_floating_point() else given
        for name, given in inputs.items()
    }
    trace, output = record(model, ids, **inputs)
    rebuilt = recon.reconstruct(trace)
    assert len(rebuilt) == len(output.hidden_states) == trace.facts.depth + 1
    assert all(map(torch.equal, rebuilt, output.hidden_states))


@pytest.mark.parametrize("kind", [GPT2Model, GPT2LMHeadModel])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_the_rarer_dtypes_are_rebuilt_too(make_model, ids, record, kind, dtype):
    trace, output = record(make_model(kind, dtype=dtype), ids)
    assert all(map(torch.equal, recon.reconstruct(trace), output.hidden_states))


@pytest.mark.parametrize("types", [None, TYPES], ids=["embeds", "embeds and types"])
def test_a_run_from_embeddings_is_rebuilt(model, record, types):
    trace, output = record(model, inputs_embeds=EMBEDDED, token_type_ids=types)
    assert trace.origin("wte") == "given"
    assert all(map(torch.equal, recon.reconstruct(trace), output.hidden_states))


def test_a_run_under_autocast_is_rebuilt_outside_of_it(model, ids, record):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trace, output = record(model, ids)
    assert all(map(torch.equal, recon.reconstruct(trace), output.hidden_states))


@pytest.mark.skipif(not versions.HOOKED, reason="the last state is always tied")
@pytest.mark.parametrize("granularity", ["update", "head", "neuron"])
def test_an_untied_last_state_is_the_last_blocks_output(
    make_model, ids, record, granularity
):
    trace, output = record(make_model(tie_last_hidden_states=False), ids)
    last = recon.reconstruct(trace, granularity=granularity)[-1]
    assert torch.allclose(last, trace["h.2.resid_post"], atol=1e-4)
    assert torch.equal(output.hidden_states[-1], trace["h.2.resid_post"])


def test_a_blocks_own_input_and_output_are_never_read(recorded):
    trace = recorded.trace
    for part in ("resid_pre", "resid_post", "resid_mid"):
        for layer in range(3):
            name = f"h.{layer}.{part}"
            trace = trace.replace(name, torch.full_like(trace[name], torch.nan))
    trace = trace.replace("ln_f", torch.full_like(trace["ln_f"], torch.nan))
    rebuilt = recon.reconstruct(trace)
    assert all(map(torch.equal, rebuilt, recorded.output.hidden_states))


@pytest.mark.parametrize(
    ("name", "first"),
    [("wte", 0), ("h.0.attn_out", 1), ("h.1.mlp_out", 2), ("h.2.mlp_out", 3)],
)
def test_a_changed_update_shows_from_its_block_on(recorded, name, first):
    trace = recorded.trace
    damaged = trace[name].clone()
    damaged[1, 2, 3] += 1
    rebuilt = recon.reconstruct(trace.replace(name, damaged))
    same = list(map(torch.equal, rebuilt, recorded.output.hidden_states))
    assert same == [index < first for index in range(4)]


def test_rebuilding_needs_no_gradient_and_leaves_grad_mode(model, ids):
    with recon.capture(model, grad=True) as recorder:
        model(ids)
    assert not any(state.requires_grad for state in recon.reconstruct(recorder.trace))
    assert torch.is_grad_enabled()


# -- heads and neurons ---------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("granularity", ["head", "neuron"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("cross", [False, True])
def test_finer_parts_rebuild_the_states_up_to_rounding(
    make_model, ids, record, cross, mode, dtype, granularity, attention
):
    model = make_model(attention=attention, dtype=dtype, add_cross_attention=cross)
    model.train(mode == "train")
    given = {"encoder_hidden_states": ENCODED.to(dtype)} if cross else {}
    trace, output = record(model, ids, **given)
    rebuilt = recon.reconstruct(trace, granularity=granularity)
    for index, (found, state) in enumerate(
        zip(rebuilt[:-1], output.hidden_states[:-1], strict=True)
    ):
        terms = recon.decompose(trace, index, granularity=granularity).values()
        gap = (found.double() - state.double()).abs()
        assert bool((gap <= allowance(terms, dtype)).all())
        assert found.dtype == state.dtype


def test_finer_parts_do_differ_in_the_last_bits(recorded):
    # Otherwise the allowance above would test nothing.
    rebuilt = recon.reconstruct(recorded.trace, granularity="head")
    assert not torch.equal(rebuilt[1], recorded.output.hidden_states[1])


@pytest.mark.parametrize("granularity", ["head", "neuron"])
def test_a_part_that_is_left_out_breaks_the_allowance(recorded, granularity):
    trace = recorded.trace
    terms = recon.decompose(trace, 2, granularity=granularity)
    dropped = next(name for name in terms if name.endswith(("head.1", "-127")))
    rest = {name: term for name, term in terms.items() if name != dropped}
    gap = (total(rest).double() - trace["h.2.resid_pre"].double()).abs()
    assert bool((gap > allowance(terms.values(), torch.float32)).any())


@pytest.mark.parametrize(
    "state", [0, 1, 2, 3, "embed", "h.1.resid_mid", "h.2.resid_post"]
)
@pytest.mark.parametrize("granularity", ["update", "head", "neuron"])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_terms_add_up_to_the_state(
    make_model, ids, record, mode, granularity, state
):
    trace, _ = record(make_model().train(mode == "train"), ids)
    places = [f"h.{i}.resid_pre" for i in range(3)] + ["h.2.resid_post"]
    expected = trace[places[state] if isinstance(state, int) else state]
    terms = recon.decompose(trace, state, granularity=granularity)
    gap = (total(terms).double() - expected.double()).abs()
    assert bool((gap <= allowance(terms.values(), torch.float32)).all())
    if granularity == "update":
        assert torch.equal(total(terms), expected)


@pytest.mark.parametrize(
    ("granularity", "expected"),
    [
        ("update", ["h.0.attn_out", "h.0.mlp_out", "h.1.attn_out"]),
        (
            "head",
            [
                *(f"h.0.attn.head.{head}" for head in range(4)),
                "h.0.attn.bias",
                "h.0.mlp_out",
                *(f"h.1.attn.head.{head}" for head in range(4)),
                "h.1.attn.bias",
            ],
        ),
        (
            "neuron",
            ["h.0.attn_out", "h.0.mlp.neurons.0-127", "h.0.mlp.bias", "h.1.attn_out"],
        ),
    ],
)
def test_the_terms_have_names_in_the_models_order(recorded, granularity, expected):
    terms = recon.decompose(recorded.trace, "h.1.resid_mid", granularity=granularity)
    assert list(terms) == ["wte", "wpe", *expected]


def test_cross_attention_is_split_by_head_too(make_model, ids, record):
    model = make_model(add_cross_attention=True)
    trace, _ = record(model, ids, encoder_hidden_states=ENCODED)
    before = recon.decompose(trace, "h.1.cross.resid_pre")
    after = recon.decompose(trace, "h.1.resid_mid", granularity="head")
    assert list(before)[-1] == "h.1.attn_out"
    assert list(after)[-1] == "h.1.cross.bias"
    assert torch.equal(total(before), trace["h.1.cross.resid_pre"])


def test_many_neurons_come_in_groups(make_model, ids, record):
    trace, _ = record(make_model(n_inner=600, n_layer=1), ids)
    terms = recon.decompose(trace, 1, granularity="neuron")
    groups = [name for name in terms if "neurons" in name]
    assert groups == [
        "h.0.mlp.neurons.0-255",
        "h.0.mlp.neurons.256-511",
        "h.0.mlp.neurons.512-599",
    ]


def test_the_bias_is_no_heads(model, recorded):
    terms = recon.decompose(recorded.trace, 1, granularity="head")
    bias = model.transformer.h[0].attn.c_proj.bias
    assert torch.equal(terms["h.0.attn.bias"], bias.detach().expand(3, 7, -1))
    silent = recorded.trace["h.0.attn.z"].clone()
    silent[:, 2] = 0
    quiet = recon.decompose(
        recorded.trace.replace("h.0.attn.z", silent), 1, granularity="head"
    )
    assert not quiet["h.0.attn.head.2"].any()
    assert terms["h.0.attn.head.2"].any()


def test_names_of_other_libraries_name_a_state_too(recorded):
    ours = recon.decompose(recorded.trace, "h.1.resid_mid")
    theirs = recon.decompose(recorded.trace, "blocks.1.hook_resid_mid")
    assert list(ours) == list(theirs)


# -- errors --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (4, "state 4: this model has states 0 to 3"),
        (-1, "state -1: this model has states 0 to 3"),
        ("h.3.resid_mid", "h.3.resid_mid: this model has blocks 0 to 2"),
        ("h.1.ln_1", "h.1.ln_1 is no state of the residual stream"),
        ("ln_f", "ln_f is no state"),
        ("h.1.resid", "unknown site 'h.1.resid'"),
    ],
)
def test_a_state_that_does_not_exist_is_refused(recorded, state, words):
    with pytest.raises(recon.UsageError, match=words):
        recon.decompose(recorded.trace, state)


@pytest.mark.parametrize(
    "use", [recon.reconstruct, lambda trace, **how: recon.decompose(trace, 1, **how)]
)
def test_an_unknown_granularity_is_refused(recorded, without_type_checks, use):
    with pytest.raises(recon.UsageError, match="granularity='layer': expected update"):
        use(recorded.trace, granularity="layer")


@pytest.mark.parametrize("name", ["wte", "h.1.attn_out", "h.2.mlp_out"])
def test_a_missing_update_is_named(recorded, name):
    held = {s: t for s, t in recorded.trace.tensors.items() if str(s) != name}
    trace = dataclasses.replace(recorded.trace, tensors=held)
    with pytest.raises(recon.CaptureError, match=f"{name} is not in the trace"):
        recon.reconstruct(trace)


@pytest.mark.parametrize("options", [{"positions": 1}, {"dtype": torch.float64}])
def test_an_altered_trace_is_refused(model, ids, options):
    with recon.capture(model, **options) as recorder:
        model(ids)
    with pytest.raises(
        recon.UsageError, match="no longer holds what the model computed"
    ):
        recon.reconstruct(recorder.trace)


@pytest.mark.parametrize("state", [np.int64(1), np.uint8(1), torch.tensor(1)])
def test_any_kind_of_whole_number_names_a_state(recorded, state):
    terms, plain = (
        recon.decompose(recorded.trace, state),
        recon.decompose(recorded.trace, 1),
    )
    assert terms.keys() == plain.keys()


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize("state", [1.0, None, [1]])
def test_what_is_no_whole_number_names_no_state(recorded, state):
    with pytest.raises(recon.UsageError, match="expected a number, or a site"):
        recon.decompose(recorded.trace, state)


def test_a_state_that_a_model_does_not_have_is_refused_for_any_kind_of_number(recorded):
    with pytest.raises(recon.UsageError, match="state 4: this model has states 0 to 3"):
        recon.decompose(recorded.trace, np.int64(4))
