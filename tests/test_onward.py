"""What goes on after the hooks of others, and does watching it disturb anything?"""

from contextlib import ExitStack

import pytest
import torch
from torch import nn

from recon import Site, gpt2
from recon.recorder import Onward

pytestmark = pytest.mark.recon_no_leaks

MADE = (
    ("", "resid_post"),
    ("ln_1", "ln_1"),
    ("attn.c_attn", "attn.qkv"),
    ("attn.c_proj", "attn.out"),
    ("attn", "attn_out"),
    ("ln_2", "ln_2"),
    ("mlp.c_fc", "mlp.pre"),
    ("mlp.act", "mlp.post"),
    ("mlp.c_proj", "mlp.out"),
    ("mlp", "mlp_out"),
)
TAKEN = (("", "resid_pre"), ("attn.c_proj", "attn.z"), ("mlp.act", "mlp.pre"))


@pytest.fixture
def model(make_model):
    return make_model()


@pytest.fixture
def ids(make_ids):
    return make_ids()


def halved(value):
    return (value[0] * 0.5, *value[1:]) if isinstance(value, tuple) else value * 0.5


def run(model, ids, *registers):
    """Run once, watched, with hooks that are made after recon's; return the edits."""
    with Onward(gpt2.plan(model), gpt2.passages(model)) as onward, ExitStack() as stack:
        for register in registers:
            stack.callback(register().remove)
        with torch.no_grad():
            model(ids)
    (edits,) = onward.edits
    return edits


def block(model, path=""):
    return model.transformer.h[1].get_submodule(path)


@pytest.mark.parametrize(("path", "part"), MADE)
def test_an_edit_of_what_a_module_makes_is_seen_on_both_sides(model, ids, path, part):
    seen = []
    module = block(model, path)
    (edit,) = run(
        model,
        ids,
        lambda: module.register_forward_hook(lambda m, a, o: seen.append(o)),
        lambda: module.register_forward_hook(lambda m, a, o: halved(o)),
    )
    made = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    assert edit.place == Site(part, 1)
    assert torch.equal(edit.before, made)
    assert torch.equal(edit.after, made * 0.5)


@pytest.mark.parametrize(("path", "part"), TAKEN)
def test_an_edit_of_what_a_module_takes_is_seen_on_both_sides(model, ids, path, part):
    module = block(model, path)
    (edit,) = run(
        model,
        ids,
        lambda: module.register_forward_pre_hook(lambda m, a: (a[0] * 0.5, *a[1:])),
    )
    assert edit.place == Site(part, 1)
    assert torch.equal(edit.after, edit.before * 0.5)
    assert edit.after.ndim == len(edit.place.row.shape.split())


def test_an_edit_in_place_is_seen_as_it_goes_on(model, ids):
    seen = []
    (edit,) = run(
        model,
        ids,
        lambda: block(model, "mlp").register_forward_hook(
            lambda m, a, o: seen.append(o.clone())
        ),
        lambda: block(model, "mlp").register_forward_hook(lambda m, a, o: o.mul_(0.5)),
    )
    assert edit.before is None
    assert torch.equal(edit.after, seen[0] * 0.5)


def test_zeros_in_place_of_what_is_no_number_are_an_edit(model, ids):
    def spoil(module, args):
        return (args[0].index_fill(1, torch.tensor([0]), torch.nan),)

    def mend(module, args, output):
        return output.nan_to_num(0.0)

    mlp = block(model, "mlp")
    # There before recon watches: what it does is no edit of what is watched.
    with mlp.register_forward_pre_hook(spoil):
        (edit,) = run(model, ids, lambda: mlp.register_forward_hook(mend))
    assert edit.place == Site("mlp_out", 1)
    assert edit.before.isnan().any()
    assert not edit.after.isnan().any()


@pytest.mark.parametrize(
    "hook",
    [
        lambda m, a, o: None,
        lambda m, a, o: o,
        lambda m, a, o: o.clone(),
        lambda m, a, o: o.detach(),
    ],
    ids=["nothing", "the same", "a copy", "the same, detached"],
)
def test_a_hook_that_changes_no_value_makes_no_edit(model, ids, hook):
    assert run(model, ids, lambda: block(model).register_forward_hook(hook)) == ()


class Around(nn.Module):
    """Adds something to what a module inside of it makes."""

    def __init__(self, inner, more):
        super().__init__()
        self.inner, self.more = inner, more

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs) + self.more


@pytest.mark.parametrize("more", [1.0, 0.0])
def test_a_module_put_around_another_is_told_if_it_makes_something_else(
    model, ids, more
):
    attention = block(model, "attn")
    plain = attention.c_attn
    with Onward(gpt2.plan(model), gpt2.passages(model)) as onward, torch.no_grad():
        attention.c_attn = Around(plain, more)
        model(ids)
        attention.c_attn = plain
    (edits,) = onward.edits
    assert len(edits) == (more != 0.0)
    for edit in edits:
        assert (edit.place, edit.inner, edit.put) == (
            Site("attn.qkv", 1),
            "inner",
            True,
        )
        assert edit.around == "Around at transformer.h.1.attn.c_attn"
        assert torch.equal(edit.after, edit.before + more)


def test_a_module_that_was_around_another_is_looked_into_if_that_is_hooked(model, ids):
    attention = block(model, "attn")
    attention.c_attn = Around(attention.c_attn, 1.0)
    inner = attention.c_attn.inner
    (edit,) = run(model, ids, lambda: inner.register_forward_hook(lambda m, a, o: None))
    assert (edit.place, edit.inner, edit.put) == (Site("attn.qkv", 1), "inner", False)
    assert run(model, ids) == ()


def test_each_pass_has_its_own_edits_and_one_that_raises_has_none(model, ids):
    def fail(module, args):
        raise ValueError("on purpose")

    with Onward(gpt2.plan(model), gpt2.passages(model)) as onward, torch.no_grad():
        model(ids)
        with block(model).register_forward_hook(lambda m, a, o: o * 0.5):
            with (
                model.lm_head.register_forward_pre_hook(fail),
                pytest.raises(ValueError, match="on purpose"),
            ):
                model(ids)
            model(ids)
    assert [len(edits) for edits in onward.edits] == [0, 1]


def test_edits_change_no_bit_of_the_result_and_hooks_keep_their_order(model, ids):
    def outputs(watched):
        order = []
        with ExitStack() as stack, torch.no_grad():
            if watched:
                stack.enter_context(Onward(gpt2.plan(model), gpt2.passages(model)))
            for number in (1, 2):
                handle = block(model).register_forward_hook(
                    lambda m, a, o, n=number: order.append(n) or o * n
                )
                stack.callback(handle.remove)
            return model(ids).logits, order

    (plain, before), (watched, after) = outputs(False), outputs(True)
    assert torch.equal(plain, watched)
    assert before == after == [1, 2]
