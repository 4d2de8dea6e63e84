"""What sits on a model besides its own code, and whose it is."""

from functools import partial

import pytest
import torch

import recon
from recon.census import census, foreign
from recon.target import load_function
from tests import versions


def of_mine(*args):
    return None


class Hook:
    def __call__(self, *args):
        return None

    def method(self, *args):
        return None


def kinds(model):
    return [(one.kind, one.module) for one in census(model)]


def test_a_fresh_model_carries_nothing(model):
    assert census(model) == ()


@pytest.mark.parametrize(
    ("register", "kind"),
    [
        ("register_forward_hook", "forward hook"),
        ("register_forward_pre_hook", "forward pre-hook"),
        ("register_full_backward_hook", "backward hook"),
        ("register_full_backward_pre_hook", "backward pre-hook"),
    ],
)
@pytest.mark.parametrize("path", ["", "transformer.h.1.mlp", "lm_head"])
def test_every_kind_of_hook_is_found_where_it_sits(model, register, kind, path):
    handle = getattr(model.get_submodule(path), register)(of_mine)
    (found,) = census(model)
    assert (found.kind, found.module, found.key) == (kind, path, handle.id)
    assert found.owner == f"{__name__}.of_mine"
    assert str(found) == f"{kind} {__name__}.of_mine on {path or 'the model'}"
    handle.remove()
    assert census(model) == ()


def test_two_hooks_of_one_owner_are_two(model):
    first = model.transformer.register_forward_hook(of_mine)
    second = model.transformer.register_forward_hook(of_mine)
    assert [one.key for one in census(model)] == [first.id, second.id]


@pytest.mark.parametrize(
    ("hook", "name"),
    [
        (of_mine, "of_mine"),
        (partial(of_mine, 1), "of_mine"),
        (partial(partial(of_mine, 1), 2), "of_mine"),
        (Hook(), "Hook"),
        (Hook().method, "Hook.method"),
        (lambda *args: None, "<lambda>"),
    ],
)
def test_a_hook_is_named_by_the_function_behind_it(model, hook, name):
    model.transformer.register_forward_hook(hook)
    (found,) = census(model)
    assert found.owner == f"{__name__}.{name}"


def test_a_global_hook_is_found(model):
    handle = torch.nn.modules.module.register_module_forward_hook(of_mine)
    try:
        assert kinds(model) == [("global forward hook", "*")]
    finally:
        handle.remove()
    assert census(model) == ()


def test_a_forward_replaced_on_one_module_is_found(model):
    module = model.transformer.h[1].mlp
    module.forward = partial(type(module).forward, module)
    assert kinds(model) == [("forward override", "transformer.h.1.mlp")]


def test_a_forward_of_another_module_is_foreign_and_a_module_s_own_is_not(model):
    ours, other = model.transformer.h[1].mlp, model.transformer.h[0].mlp
    ours.forward = type(ours).forward.__get__(ours)
    assert foreign(census(model)) == ()
    ours.forward = other.forward
    (found,) = foreign(census(model))
    assert found.owner == f"{type(other).__name__}.forward bound to transformer.h.0.mlp"


@pytest.mark.skipif(not versions.HOOKED, reason="no hooks stay behind")
def test_hooks_of_transformers_are_known_by_owner_and_not_foreign(model, ids):
    model(ids, output_hidden_states=True)
    model.transformer.h[1].register_forward_hook(of_mine)
    found = census(model)
    assert sum(one.by_transformers for one in found) == len(found) - 1 >= 3
    assert [one.owner for one in foreign(found)] == [f"{__name__}.of_mine"]


def test_hooks_of_recon_are_seen_while_they_are_on(model):
    with recon.capture(model):
        assert {one.owner.split(".")[0] for one in census(model)} == {"recon"}
    assert census(model) == ()


def test_a_hook_of_a_file_that_was_loaded_is_named_after_the_file(model, tmp_path):
    code = "def capture(model, ids):\n    pass\n\ndef keep(*seen):\n    pass\n"
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    with load_function(f"{tmp_path / 'mine.py'}:capture") as loaded:
        keep = loaded.function.__globals__["keep"]
    assert keep.__module__ != "mine"
    handle = model.register_forward_hook(keep)
    assert str(census(model)[0]) == "forward hook mine.keep on the model"
    handle.remove()
