"""Is everything that is watched told when it changes, by its rule, and put back?"""

import gc
import os
import random
import signal
import sys
from collections import deque
from functools import partial
from pathlib import Path
from types import MethodType

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module

from recon.watch import Keeper, State, changes
from recon.watch.process import SETTINGS, UNKNOWN, same
from recon.watch.tables import each

# -- what a model has ----------------------------------------------------------------


class Sub(nn.Dropout):
    """A class of one's own, for a module to become."""


def prepared(model):
    """Give a model something of every kind that it may lose."""
    mlp = model.transformer.h[0].mlp
    for _ in range(2):
        mlp.register_forward_hook(note)
        mlp.register_full_backward_hook(note)
    mlp.c_fc.bias.register_hook(lambda grad: grad)
    for weight in (mlp.c_fc.weight, mlp.c_proj.weight):
        weight.grad = torch.randn(weight.shape)
    mlp.register_buffer("scale", torch.ones(3))
    model.flag, model.names = 1, {"a": [1, {2}], "b": (deque([3]),)}
    model._own = "mine"
    model.config.deep = {"d": {"a": [1]}}
    return model


def note(*_):
    """Do nothing, as a hook."""


def mlp(model):
    return model.transformer.h[0].mlp


def set_on(path, name, value):
    """Return an edit that sets an attribute."""
    return lambda model: setattr(model.get_submodule(path), name, value)


def of_names(edit):
    return lambda model: edit(model.names)


def training_in_part(model):
    mlp(model).train()


def other_order(model):
    mlp(model)._forward_hooks.move_to_end(next(iter(mlp(model)._forward_hooks)))


def shared_hook(model):
    torch_module.register_module_forward_hook(note)


def sparse_gradient(model):
    weight = mlp(model).c_fc.weight
    weight.grad = weight.grad.to_sparse()


def weight(edit, name="c_fc"):
    return lambda model: edit(getattr(mlp(model), name).weight)


def tied(model):
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())


# An edit, and the rule that tells of it.
EDITS = {
    "forward hook": (lambda m: mlp(m).register_forward_hook(note), "hooks-left"),
    "pre-hook": (lambda m: m.register_forward_pre_hook(note), "hooks-left"),
    "backward hook": (lambda m: m.register_full_backward_hook(note), "hooks-left"),
    "hook on a weight": (
        lambda m: mlp(m).c_proj.weight.register_hook(note),
        "hooks-left",
    ),
    "hooks cleared": (lambda m: mlp(m)._forward_hooks.clear(), "hooks-removed"),
    "order of hooks": (other_order, "hooks-removed"),
    "global hook": (shared_hook, "global-state-changed"),
    "forward": (set_on("transformer.ln_f", "forward", note), "forward-replaced"),
    "method": (set_on("", "generate", note), "forward-replaced"),
    "function of a class": (
        lambda m: setattr(nn.LayerNorm, "forward", MethodType(note, m)),
        "forward-replaced",
    ),
    "module": (set_on("transformer", "drop", nn.Identity()), "forward-replaced"),
    "module gone": (lambda m: delattr(mlp(m), "dropout"), "forward-replaced"),
    "class of a module": (
        lambda m: setattr(m.transformer.drop, "__class__", Sub),
        "forward-replaced",
    ),
    "mode of all": (lambda m: m.train(), "mode-changed"),
    "mode of one": (training_in_part, "mode-changed"),
    "values": (weight(lambda w: w.data.add_(1)), "weights-changed"),
    "one value of a buffer": (lambda m: mlp(m).scale.add_(1), "weights-changed"),
    "dtype": (lambda m: mlp(m).double(), "weights-changed"),
    "shape": (
        weight(lambda w: setattr(w, "data", w.data[:, :2].clone())),
        "weights-changed",
    ),
    "tying": (tied, "weights-changed"),
    "new weight": (set_on("", "more", nn.Parameter(torch.ones(1))), "weights-changed"),
    "weight gone": (
        lambda m: mlp(m).c_fc.register_parameter("bias", None),
        "weights-changed",
    ),
    "requires_grad": (
        weight(lambda w: w.requires_grad_(False), "c_proj"),
        "requires-grad-changed",
    ),
    "gradient made": (
        lambda m: setattr(m.transformer.wpe.weight, "grad", torch.ones(24, 32)),
        "requires-grad-changed",
    ),
    "gradient added to": (weight(lambda w: w.grad.add_(5)), "requires-grad-changed"),
    "gradient replaced": (
        weight(lambda w: setattr(w, "grad", w.grad.clone())),
        "requires-grad-changed",
    ),
    "gradient gone": (
        weight(lambda w: setattr(w, "grad", None)),
        "requires-grad-changed",
    ),
    "gradient made sparse": (sparse_gradient, "requires-grad-changed"),
    "attribute": (set_on("", "flag", 2), "config-changed"),
    "attribute gone": (lambda m: delattr(m, "flag"), "config-changed"),
    "attribute new": (set_on("transformer", "things", [1, 2]), "config-changed"),
    "private attribute": (set_on("", "_own", "yours"), "config-changed"),
    "private attribute new": (set_on("", "_seen_by_me", True), "config-changed"),
    "list in a dict": (of_names(lambda n: n["a"].append(9)), "config-changed"),
    "set in a list": (of_names(lambda n: n["a"][1].add(9)), "config-changed"),
    "deque in a tuple": (of_names(lambda n: n["b"][0].append(9)), "config-changed"),
    "tensor kept": (set_on("", "last", [torch.ones(1)]), "tensor-left"),
    "tensor kept in a dict": (
        of_names(lambda n: n["a"].append(torch.ones(1))),
        "tensor-left",
    ),
    "config": (lambda m: setattr(m.config, "use_cache", False), "config-changed"),
    "config, new key": (lambda m: setattr(m.config, "foo", 1), "config-changed"),
    "config, key gone": (lambda m: delattr(m.config, "deep"), "config-changed"),
    "config, a list in it": (
        lambda m: m.config.deep["d"]["a"].append(9),
        "config-changed",
    ),
    "generation config": (
        lambda m: setattr(m.generation_config, "max_length", 7),
        "config-changed",
    ),
}


def as_before(keeper, model):
    """Whether a model and the process are as at first, under all that tells of them."""
    return not list(changes(keeper.state, State.of(model)))


@pytest.mark.parametrize("kind", EDITS)
def test_what_code_changes_in_a_model_is_told_by_its_rule_and_put_back(model, kind):
    edit, rule = EDITS[kind]
    keeper = Keeper(prepared(model))
    assert as_before(keeper, model)
    edit(model)
    seen = keeper.look()
    found = list(changes(keeper.state, seen))
    keeper.put_back(seen.weights)
    assert {change.rule for change in found} == {rule}
    assert as_before(keeper, model)


@pytest.mark.parametrize("kind", EDITS)
def test_what_code_changed_in_a_model_is_put_back_without_a_look(model, kind):
    keeper = Keeper(prepared(model))
    values = {name: t.clone() for name, t in model.state_dict().items()}
    EDITS[kind][0](model)
    keeper.put_back()
    assert as_before(keeper, model)
    assert all(torch.equal(t, values[name]) for name, t in model.state_dict().items())
    assert model.names == {"a": [1, {2}], "b": (deque([3]),)}
    assert model.config.deep == {"d": {"a": [1]}}


def test_a_gradient_comes_back_with_its_values_and_as_the_same_tensor(model):
    keeper = Keeper(prepared(model))
    kept = mlp(model).c_fc.weight.grad
    before = kept.clone()
    kept.mul_(2)
    mlp(model).c_fc.weight.grad = None
    keeper.put_back()
    assert mlp(model).c_fc.weight.grad is kept
    assert torch.equal(kept, before)


def test_a_sparse_gradient_comes_back_with_its_values(model):
    sparse_gradient(prepared(model))
    keeper, kept = Keeper(model), mlp(model).c_fc.weight.grad
    before = kept.to_dense()
    kept.mul_(2)
    assert not as_before(keeper, model)
    keeper.put_back()
    assert as_before(keeper, model)
    assert torch.equal(kept.to_dense(), before)


def test_marks_that_the_libraries_make_are_taken_away_and_not_told(model, ids):
    keeper = Keeper(model)
    marks = set(vars(model.transformer)) | set(vars(model))
    model(ids, output_hidden_states=True)
    model.generate(
        ids, max_new_tokens=2, do_sample=False, cache_implementation="static"
    )
    model.compile(backend="eager")
    assert {*vars(model.transformer), *vars(model)} - marks
    assert as_before(keeper, model)
    keeper.put_back()
    assert {*vars(model.transformer), *vars(model)} == marks
    assert as_before(keeper, model)


# -- what a process has --------------------------------------------------------------

BACKENDS = torch.backends


def trace(*_):
    """Trace nothing."""


# How each setting may become another, from what it is.
OTHER = {
    "torch's generator": lambda _: torch.manual_seed(5),
    "numpy's generator": lambda _: np.random.seed(5),
    "Python's generator": lambda _: random.seed(5),
    "gradient mode": lambda on: torch.set_grad_enabled(not on),
    "default device": lambda _: torch.set_default_device("meta"),
    "signal": lambda _: signal.signal(signal.SIGTERM, signal.SIG_IGN),
    "recursion limit": lambda n: sys.setrecursionlimit(n + 1),
    "garbage collection": lambda _: gc.disable(),
    "tracing": lambda _: sys.settrace(trace),
    "anomaly mode": lambda on: torch.autograd.set_detect_anomaly(not on),
    "default dtype": lambda _: torch.set_default_dtype(torch.float64),
    "number of threads": lambda n: torch.set_num_threads(n + 1),
    "working directory": lambda _: os.chdir(os.sep),
    "environment": lambda _: os.environ.update(PATH="nowhere", RECON_TEST="new"),
    "deterministic algorithms": lambda _: torch.use_deterministic_algorithms(True),
    "precision of matrix products": lambda _: torch.set_float32_matmul_precision(
        "medium"
    ),
}


def another(setting, now):
    """Make a setting another one; switches and choices the plain way."""
    if setting.name in OTHER:
        OTHER[setting.name](now)
    elif isinstance(now, bool):
        setting.write(not now)
    elif isinstance(now, torch.dtype):
        setting.write({torch.float16, torch.bfloat16}.difference({now}).pop())
    else:
        setting.write("ieee" if now == "tf32" else "tf32")


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda one: one.name)
def test_what_code_sets_in_the_process_is_told_by_its_rule_and_put_back(model, setting):
    keeper = Keeper(model)
    before = keeper.state.process
    try:
        another(setting, before[setting.name])
        found = list(changes(keeper.state, keeper.look()))
    finally:
        keeper.put_back()
    assert {change.rule for change in found} == {setting.rule}
    places = [change.place for change in found]
    assert any(place.startswith(setting.name) for place in places) or (
        "fp32_precision" in " ".join(places)  # which an old setting writes
    )
    after = State.of(model).process
    assert [name for name in before if not same(before[name], after[name])] == []


def test_the_values_of_variables_of_the_environment_are_never_told(model, monkeypatch):
    monkeypatch.setenv("RECON_OLD", "secret")
    keeper = Keeper(model)
    del os.environ["RECON_OLD"]
    os.environ["RECON_NEW"] = "secret"
    os.environ["PATH"] += ":/secret"
    found = {one.place: one.words for one in changes(keeper.state, keeper.look())}
    keeper.put_back()
    assert found == {
        "environment RECON_OLD": "is gone",
        "environment RECON_NEW": "is new",
        "environment PATH": "is another",
    }
    assert os.environ["RECON_OLD"] == "secret"
    assert "RECON_NEW" not in os.environ


@pytest.mark.parametrize("warn_only", [True, False])
def test_deterministic_algorithms_come_back_as_strict_as_they_were(model, warn_only):
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    try:
        keeper = Keeper(model)
        torch.use_deterministic_algorithms(False)
        keeper.put_back()
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled() == warn_only
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.fixture
def newer():
    """Use torch's newer setting of precision, by which the older cannot be read."""
    BACKENDS.mkldnn.matmul.fp32_precision = "bf16"
    yield
    BACKENDS.mkldnn.matmul.fp32_precision = "none"


def test_a_precision_of_the_newer_kind_is_read_told_and_put_back(model, newer):
    keeper = Keeper(model)
    assert keeper.state.process["precision of matrix products"] is UNKNOWN
    assert as_before(keeper, model)
    BACKENDS.cuda.matmul.fp32_precision = "tf32"
    torch.set_float32_matmul_precision("medium")
    found = [change.place for change in changes(keeper.state, keeper.look())]
    keeper.put_back()
    assert found == ["torch.backends.cuda.matmul.fp32_precision"]
    assert BACKENDS.mkldnn.matmul.fp32_precision == "bf16"
    assert as_before(keeper, model)


def test_a_deleted_working_directory_is_told_and_left(model, tmp_path):
    keeper, gone = Keeper(model), tmp_path / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    (told,) = changes(keeper.state, keeper.look())
    keeper.put_back()
    assert told.place == "working directory"
    assert as_before(keeper, model)


# -- what cannot be put back ---------------------------------------------------------


def raising():
    raise RuntimeError("not now")


def test_every_step_is_taken_also_after_one_that_raises():
    taken = []
    steps = [partial(taken.append, 1), raising, partial(taken.append, 2)]
    with pytest.raises(RuntimeError, match="not now"):
        each(steps)
    assert taken == [1, 2]


def test_what_cannot_be_put_back_keeps_nothing_else_from_it(model, tmp_path):
    here = Path.cwd()
    (tmp_path / "home").mkdir()
    os.chdir(tmp_path / "home")
    keeper = Keeper(model)
    os.chdir(here)
    (tmp_path / "home").rmdir()
    torch.use_deterministic_algorithms(True)  # which is put back after the directory
    mlp(model).c_fc.weight.data.zero_()
    with pytest.raises(FileNotFoundError):
        keeper.put_back()
    assert not torch.are_deterministic_algorithms_enabled()
    assert mlp(model).c_fc.weight.any()
