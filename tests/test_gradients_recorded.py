"""Is the gradient seen that reaches each site, and does seeing it change nothing?"""

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformers import GPT2LMHeadModel

from recon import gpt2
from recon.recorder import GradientRecorder, Options, Recorder
from recon.sites import Site


@pytest.fixture
def model(make_model):
    return make_model(GPT2LMHeadModel)


@pytest.fixture
def recorder(model):
    return GradientRecorder(gpt2.plan(model), Options(keep="all", grad=True))


def objective(model, ids):
    return model(ids, use_cache=False).logits[:, -1].logsumexp(-1).sum()


def retained(model, ids, modules):
    """Run forward and backward; return what ``retain_grad`` keeps of outputs."""
    kept, handles = [], []

    def keep(module, args, output):
        output.retain_grad()
        kept.append(output)

    for module in modules:
        handles.append(module.register_forward_hook(keep))
    objective(model, ids).backward()
    for handle in handles:
        handle.remove()
    return [one.grad for one in kept]


def outputs(model):
    """Modules whose output is a site: blocks, c_attn, mlp, by the site's part."""
    blocks = model.transformer.h
    return {
        "resid_post": list(blocks),
        "attn.qkv": [block.attn.c_attn for block in blocks],
        "mlp.pre": [block.mlp.c_fc for block in blocks],
        "mlp_out": [block.mlp for block in blocks],
    }


def test_what_reaches_a_site_is_what_autograd_says(model, recorder, make_ids):
    for part, modules in outputs(model).items():
        with recorder:
            wanted = retained(model, make_ids(), modules)
        run = recorder.traces[-1].run
        (seen,) = recorder.gradients(run).values()
        for layer, gradient in enumerate(wanted):
            assert torch.equal(seen[Site(part, layer)], gradient)
    model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("hooked", ["ln_1", "ln_2", "mlp", "attn", ""])
def test_a_full_backward_hook_hides_nothing_of_a_gradient(
    model, recorder, make_ids, hooked
):
    """2026-11-29: the input of ln_2 had what goes back through ln_2 only."""
    ids = make_ids()
    with recorder:
        objective(model, ids).backward()
    (plain,) = recorder.gradients(0).values()
    block = model.transformer.h[1]
    module = getattr(block, hooked) if hooked else block
    handle = module.register_full_backward_hook(lambda module, before, after: None)
    with recorder:
        objective(model, ids).backward()
    handle.remove()
    model.zero_grad(set_to_none=True)
    (seen,) = recorder.gradients(1).values()
    assert seen.keys() == plain.keys()
    assert all(torch.equal(seen[place], plain[place]) for place in plain)


def test_backward_passes_are_kept_apart_and_in_order(model, recorder, make_ids):
    with recorder:
        logits = model(make_ids()).logits
        logits[:, -1, 5].sum().backward(retain_graph=True)
        logits[:, -1, 6].sum().backward()
    model.zero_grad(set_to_none=True)
    first, second = recorder.gradients(0).values()
    place = Site("logits")
    assert first[place][:, -1].nonzero()[:, 1].unique().tolist() == [5]
    assert second[place][:, -1].nonzero()[:, 1].unique().tolist() == [6]


def test_a_pass_without_gradients_has_none(model, recorder, make_ids):
    with recorder:
        model(make_ids())
        with torch.no_grad():
            model(make_ids())
    assert recorder.gradients(0) == recorder.gradients(1) == {}


def test_a_module_that_runs_twice_has_the_gradient_of_its_last_run(
    model, recorder, make_ids
):
    block, kept = model.transformer.h[0], []

    def keep(module, args, output):
        output.retain_grad()
        kept.append(output)

    def twice(module, args, output):
        return module.forward(args[0]) + 2 * output

    with (
        recorder,
        block.mlp.dropout.register_forward_hook(keep),
        block.mlp.register_forward_hook(twice),
    ):
        objective(model, make_ids()).backward()
    model.zero_grad(set_to_none=True)
    (seen,) = recorder.gradients(0).values()
    assert not torch.equal(kept[0].grad, kept[1].grad)
    assert torch.equal(seen[Site("mlp_out", 0)], kept[1].grad)


# -- nothing changes for the code -------------------------------------------------


def parameters_and_state(model, ids, recorder):
    """Go backward with a recorder on; return all that autograd left."""
    with recorder:
        block = model.transformer.h[1]
        (state,) = retained(model, ids, [block])
    left = {name: one.grad for name, one in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return {**left, "state": state}


def test_no_gradient_is_another_for_being_seen(model, recorder, make_ids):
    plain = Recorder(gpt2.plan(model), Options(keep="all", grad=True))
    without = parameters_and_state(model, make_ids(), plain)
    seen = parameters_and_state(model, make_ids(), recorder)
    assert without.keys() == seen.keys()
    for name, one in without.items():
        assert (one is None) == (seen[name] is None)
        assert one is None or torch.equal(one, seen[name])


def test_what_is_seen_is_no_memory_of_the_code(model, recorder, make_ids):
    kept = []

    def spoil(module, args, output):
        output.register_hook(lambda gradient: kept.append(gradient))

    with recorder, model.transformer.h[1].register_forward_hook(spoil):
        objective(model, make_ids()).backward()
    model.zero_grad(set_to_none=True)
    (seen,) = recorder.gradients(0).values()
    before = seen[Site("resid_post", 1)].clone()
    kept[0].zero_()
    assert torch.equal(seen[Site("resid_post", 1)], before)
    assert bool(before.any())


def test_tensors_are_let_go_and_free_of_hooks_afterwards(model, recorder, make_ids):
    kept = []

    def keep(module, args, output):
        leaf = output.detach().requires_grad_(True)
        kept.append(leaf)
        return leaf

    with recorder, model.transformer.h[1].register_forward_hook(keep):
        objective(model, make_ids()).backward()
    assert kept[0]._backward_hooks
    recorder.clear()
    assert not kept[0]._backward_hooks
    assert not recorder.traces
    model.zero_grad(set_to_none=True)


def test_the_graph_of_a_gradient_is_not_kept(model, recorder, make_ids):
    kept = []
    block = model.transformer.h[1]
    with recorder:
        handle = block.register_forward_hook(lambda m, args, out: kept.append(out))
        loss = objective(model, make_ids())
        handle.remove()
        (first,) = torch.autograd.grad(loss, kept, create_graph=True)
        first.square().sum().backward()
    model.zero_grad(set_to_none=True)
    passes = list(recorder.gradients(0).values())
    assert len(passes) == 2
    assert torch.equal(passes[0][Site("resid_post", 1)], first)
    assert not any(one.requires_grad for seen in passes for one in seen.values())


def test_transformations_are_left_alone(model, recorder, make_ids):
    embedded = model.transformer.wte(make_ids(1, 4)).detach()

    def loss(given):
        return model(inputs_embeds=given).logits.logsumexp(-1).mean()

    plain = torch.func.grad(loss)(embedded)
    with recorder:
        found = torch.func.grad(loss)(embedded)
    assert recorder.gradients(0) == {}
    assert torch.equal(found, plain)


def test_a_jacobian_of_many_rows_at_once_is_left_alone(model, recorder, make_ids):
    embedded = model.transformer.wte(make_ids(1, 4)).detach().requires_grad_(True)

    def rows(given):
        return model(inputs_embeds=given).logits[0, -1, :3]

    plain = torch.autograd.functional.jacobian(rows, embedded, vectorize=True)
    with recorder:
        found = torch.autograd.functional.jacobian(rows, embedded, vectorize=True)
    assert torch.allclose(found, plain)
    assert recorder.gradients(0) == {}


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_blocks_go_backward_as_ever(model, recorder, make_ids, reentrant):
    block = model.transformer.h[1]
    forward = block.forward
    ids = make_ids()

    def go():
        block.forward = lambda x, *args, **more: checkpoint(
            lambda x: forward(x, *args, **more), x, use_reentrant=reentrant
        )
        try:
            objective(model, ids).backward()
        finally:
            del block.forward
        found = {name: one.grad for name, one in model.named_parameters()}
        model.zero_grad(set_to_none=True)
        return found

    plain = go()
    with recorder:
        seen = go()
    assert all(torch.equal(seen[name], one) for name, one in plain.items())
