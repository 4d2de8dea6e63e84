"""Does an audit know gradients for what they are, and leave the rest as it was?"""

import pytest
import torch
from transformers import GPT2LMHeadModel

import recon
from recon.auditing.calls import Caller
from recon.auditing.situations import Situation


@pytest.fixture
def model(make_model):
    return make_model(GPT2LMHeadModel, n_positions=64)


def tapped(model, input_ids, module, objective):
    """Return the output of a module, and the gradients of some objectives there."""
    taps = []
    handle = module.register_forward_hook(lambda m, args, out: taps.append(out))
    with torch.enable_grad():
        try:
            logits = model(input_ids).logits
        finally:
            handle.remove()
        grads = [
            torch.autograd.grad(one, taps, retain_graph=True)[0]
            for one in objective(logits)
        ]
    return taps[0], grads


def one_of(logits):
    return [logits[:, -1].logsumexp(-1).sum()]


def two_of(logits):
    return [logits[:, -1, 5].sum(), logits[:, -1, 6].sum()]


def audited(model, capture):
    # What checks types in tests draws random numbers while the code runs.
    return recon.audit(capture, model, effort="quick", ignore=["RC210"])


def codes(report, severity=("error", "warning")):
    return {f.rule.code for f in report.findings if f.severity in severity}


def told(report, name):
    return next(one for one in report.tensors if one.name == name)


@pytest.mark.parametrize(
    "name", ["grad_h.1.mlp_out", "mlp_out_1_grad", "dL_d_mlp_out_1"]
)
def test_the_gradient_at_a_site_is_right_under_its_name(model, name):
    def capture(model, input_ids):
        block = model.transformer.h[1]
        _, (gradient,) = tapped(model, input_ids, block.mlp, one_of)
        return {name: gradient}

    report = audited(model, capture)
    assert not report.findings
    assert told(report, name).claim == "the gradient at h.1.mlp_out"


@pytest.mark.parametrize(
    ("layer", "part", "code"),
    [(0, "mlp", "RC102"), (1, "attn.c_proj", "RC101"), (1, "mlp.c_fc", "RC101")],
)
def test_the_gradient_at_another_place_is_told(model, layer, part, code):
    def capture(model, input_ids):
        module = model.transformer.h[layer].get_submodule(part)
        _, (gradient,) = tapped(model, input_ids, module, one_of)
        # Goes down to the first block, so that every site has a gradient.
        tapped(model, input_ids, model.transformer.h[0].ln_1, one_of)
        return {"grad_h.1.mlp_out": gradient}

    assert codes(audited(model, capture)) == {code}


def test_what_no_gradient_reached_is_not_judged(model):
    """The graph was cut below the MLP: what follows it stands for it."""

    def capture(model, input_ids):
        leaf = []

        def cut(module, args, output):
            leaf.append(output.detach().requires_grad_(True))
            return leaf[0]

        handle = model.transformer.h[1].mlp.register_forward_hook(cut)
        with torch.enable_grad():
            loss = one_of(model(input_ids).logits)[0]
            handle.remove()
            (gradient,) = torch.autograd.grad(loss, leaf)
        return {"grad_h.1.mlp_out": gradient}

    report = audited(model, capture)
    assert codes(report) == {"RC217"}
    assert told(report, "grad_h.1.mlp_out").status == "unclaimed"
    assert "the gradient at h.1.resid_post" in told(report, "grad_h.1.mlp_out").sentence


def test_the_gradient_after_an_edit_is_not_taken_for_that_of_another_site(model):
    def capture(model, input_ids):
        edit = model.transformer.h[1].mlp.register_forward_hook(
            lambda module, args, output: 2 * output
        )
        with edit:
            module = model.transformer.h[1].mlp
            _, (gradient,) = tapped(model, input_ids, module, one_of)
            # Goes down to the first block, so that every site has a gradient.
            tapped(model, input_ids, model.transformer.h[0].ln_1, one_of)
        return {"grad_h.1.mlp_out": gradient}

    report = audited(model, capture)
    assert not [code for code in codes(report) if code.startswith("RC1")]


@pytest.mark.parametrize("change", ["normed", "unknown"])
def test_what_recon_does_not_know_is_a_note(model, change):
    def capture(model, input_ids):
        module = model.transformer.h[1].mlp
        _, (gradient,) = tapped(model, input_ids, module, one_of)
        changed = {"normed": gradient.sign(), "unknown": gradient.cumsum(1).exp()}
        return {"grad_h.1.mlp_out": changed[change]}

    report = audited(model, capture)
    assert codes(report) == set()
    assert codes(report, ("note",)) == {"RC120"}


def test_without_a_backward_pass_such_names_promise_as_little_as_before(model):
    def capture(model, input_ids):
        with torch.no_grad():
            out = model(input_ids, output_hidden_states=True)
        return {"grad_resid_post_1": out.hidden_states[2].sign()}

    report = audited(model, capture)
    assert codes(report) == set()
    assert told(report, "grad_resid_post_1").claim == ""


@pytest.mark.parametrize(("names", "wrong"), [
    (("grad_h.1.mlp_out.a", "grad_h.1.mlp_out.b"), True),
    (("grad_h.1.mlp_out.a", "grad_h.1.mlp_out.sum"), False),
])  # fmt: skip
def test_gradients_that_pile_up_are_wrong_beside_a_single_one(model, names, wrong):
    def capture(model, input_ids):
        module = model.transformer.h[1].mlp
        _, (first, second) = tapped(model, input_ids, module, two_of)
        return dict(zip(names, (first, first + second), strict=True))

    assert codes(audited(model, capture)) == ({"RC106"} if wrong else set())


def test_what_each_head_counts_for_is_known_in_either_order(model):
    def capture(model, input_ids):
        taps, heads = [], model.config.n_head
        projection = model.transformer.h[1].attn.c_proj
        handle = projection.register_forward_pre_hook(lambda m, a: taps.append(a[0]))
        with torch.enable_grad(), handle:
            (loss,) = one_of(model(input_ids).logits)
            (gradient,) = torch.autograd.grad(loss, taps)
        each = (gradient * taps[0].detach()).unflatten(-1, (heads, -1)).sum(-1)
        return {"grad_x_z_1": each, "z_x_grad_1": each.transpose(1, 2).clone()}

    report = audited(model, capture)
    assert codes(report) == set()
    assert {one.status for one in report.tensors} == {"right"}
    claim = "the gradient times the value at h.1.attn.z"
    assert {one.claim for one in report.tensors} == {claim}


def test_zeros_are_a_gradient_where_zeros_arrived(model):
    def capture(model, input_ids):
        _, (gradient,) = tapped(
            model, input_ids, model.transformer.h[1].mlp, lambda x: [0 * x.sum()]
        )
        return {"grad_h.1.mlp_out": gradient}

    report = audited(model, capture)
    assert codes(report) == set()
    assert told(report, "grad_h.1.mlp_out").status == "right"


def test_zeros_are_none_where_something_else_arrived(model):
    def capture(model, input_ids):
        module = model.transformer.h[1].mlp
        _, (gradient,) = tapped(model, input_ids, module, one_of)
        return {"grad_h.1.mlp_out": torch.zeros_like(gradient)}

    assert codes(audited(model, capture)) == {"RC110"}


def test_a_gradient_whose_name_promises_nothing_is_known_for_what_it_is(model):
    def capture(model, input_ids):
        module = model.transformer.h[1].mlp
        state, (gradient,) = tapped(model, input_ids, module, one_of)
        return {"importance": gradient, "influence": (gradient * state).detach()}

    report = audited(model, capture)
    assert codes(report) == set()
    sentences = {one.name: one.sentence for one in report.tensors}
    assert "is the gradient at h.1.mlp_out" in sentences["importance"]
    assert "the gradient times the value at h.1.mlp_out" in sentences["influence"]


def test_a_gradient_under_a_plain_name_is_told_and_under_a_doubtful_one_noted(model):
    def capture(model, input_ids):
        module = model.transformer.h[1].mlp
        _, (gradient,) = tapped(model, input_ids, module, one_of)
        return {"h.1.mlp_out": gradient, "importance_mlp_out_1": gradient.clone()}

    report = audited(model, capture)
    (error,) = [f for f in report.findings if f.severity == "error"]
    assert error.rule.code == "RC101"
    assert error.places == ("h.1.mlp_out",)
    assert "is the gradient at h.1.mlp_out" in error.message


# -- nothing else is told because gradients are looked at -----------------------------


def test_hooks_of_ours_are_not_counted_among_those_of_the_code(model, make_ids):
    def capture(model, input_ids):
        out = model(input_ids, output_hidden_states=True)
        out.hidden_states[1].retain_grad()
        one_of(out.logits)[0].backward()
        model.zero_grad(set_to_none=True)
        return {"grad_h.0.resid_post": out.hidden_states[1].grad}

    call = Caller(capture, model).call(Situation("", {"input_ids": make_ids()}))
    assert call.hooks == 0
    assert len(call.backward) == 1
    report = audited(model, capture)
    assert not report.findings


def test_a_state_that_holds_its_graph_is_told_as_ever(model):
    def capture(model, input_ids):
        state, (gradient,) = tapped(
            model, input_ids, model.transformer.h[1].mlp, one_of
        )
        return {"h.1.mlp_out": state, "grad_h.1.mlp_out": gradient}

    report = audited(model, capture)
    assert codes(report, ("error", "warning", "note")) == {"RC302"}
    (kept,) = [f for f in report.findings if f.rule.code == "RC302"]
    assert kept.places == ("h.1.mlp_out",)


def test_what_was_returned_holds_no_hook_of_ours(model, make_ids):
    returned = []

    def capture(model, input_ids):
        out = model(input_ids, output_hidden_states=True)
        one_of(out.logits)[0].backward()
        model.zero_grad(set_to_none=True)
        returned.append(out.hidden_states[1])
        return {"h.0.resid_post": out.hidden_states[1]}

    call = Caller(capture, model).call(Situation("", {"input_ids": make_ids()}))
    assert call.backward
    assert not returned[0]._backward_hooks


def test_what_fails_with_gradients_too_is_no_matter_of_no_grad(model):
    def capture(model, input_ids):
        if len(input_ids) == 2 and not model.training:
            raise ValueError("two prompts are too few")
        embedded = model.transformer.wte(input_ids).detach().requires_grad_()
        model(inputs_embeds=embedded).logits.sum().backward()
        model.zero_grad()
        return {"grad_of_logits_wrt_embed": embedded.grad}

    (found,) = recon.audit(capture, model, ignore=["RC210"]).findings
    assert (found.rule.name, found.severity) == ("raises-sometimes", "error")
    assert found.run == "two prompts"
