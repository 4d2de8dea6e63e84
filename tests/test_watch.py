"""Is every change of a model seen, and put back?"""

import inspect
from functools import partial

import pytest
import torch
from torch import nn

from recon.watch import Keeper, State, changes
from recon.watch.code import is_routine
from recon.watch.weights import weights_of


def swapped_rows(weight):
    weight[[3, 70]] = weight[[70, 3]]


def swapped_columns(weight):
    weight[:, [0, 5]] = weight[:, [5, 0]]


def swapped_elements(weight):
    flat = weight.view(-1)
    flat[[2, 700]] = flat[[700, 2]]


def one_bit(weight):
    weight.view(torch.int32)[90, 7] ^= 1


def turned_over(weight):
    weight.neg_()


EDITS = [swapped_rows, swapped_columns, swapped_elements, one_bit, turned_over]


@pytest.mark.parametrize("shape", [(97, 24), (96, 768)])
@pytest.mark.parametrize("edit", EDITS)
def test_a_change_of_content_changes_the_checksum(edit, shape):
    layer = nn.Module()
    layer.weight = nn.Parameter(torch.randn(shape, generator=torch.manual_seed(0)))
    before = weights_of(layer)["weight"].checksum
    assert weights_of(layer)["weight"].checksum == before
    edit(layer.weight.data)
    assert weights_of(layer)["weight"].checksum != before


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int8, bool])
@pytest.mark.parametrize("count", [1, 7, 9001])
def test_a_checksum_is_taken_in_any_dtype(dtype, count):
    kind = torch.bool if dtype is bool else dtype
    layer = nn.Module()
    layer.register_buffer("kept", torch.ones(count).to(kind))
    before = weights_of(layer)["kept"].checksum
    layer.kept[count - 1] = 0
    assert weights_of(layer)["kept"].checksum != before


def test_a_tied_weight_is_read_once_and_told_under_both_names(model):
    held = weights_of(model)
    assert held["lm_head.weight"] is held["transformer.wte.weight"]
    assert held["lm_head.weight"].tensor is model.lm_head.weight


def test_an_edit_is_seen_and_put_back(model):
    keeper = Keeper(model)
    weight = model.transformer.h[1].mlp.c_fc.weight
    before = weight.detach().clone()
    weight.data[2, 3] += 1
    (change,) = changes(keeper.state, keeper.look())
    assert (change.rule, change.place) == (
        "weights-changed",
        "transformer.h.1.mlp.c_fc.weight",
    )
    keeper.put_back()
    assert torch.equal(weight, before)
    assert not list(changes(keeper.state, keeper.look()))


def test_what_was_seen_need_not_be_read_again(model):
    keeper = Keeper(model)
    model.transformer.wpe.weight.data.zero_()
    seen = keeper.look()
    keeper.put_back(seen.weights)
    assert not list(changes(keeper.state, State.of(model)))


def test_a_parameter_that_was_taken_away_is_put_back(model):
    keeper = Keeper(model)
    before = model.transformer.ln_f.weight.detach().clone()
    model.transformer.ln_f.weight.data.zero_()
    model.transformer.ln_f.weight = nn.Parameter(torch.ones(1))
    keeper.put_back(keeper.look().weights)
    assert torch.equal(model.transformer.ln_f.weight, before)


def test_a_module_that_is_put_elsewhere_takes_its_hooks_along(model):
    mlp = model.transformer.h[0].mlp
    mlp.act.register_forward_hook(lambda *_: None)
    before = State.of(model)
    mlp.act = nn.Sequential(mlp.act)
    moved = {change.rule for change in changes(before, State.of(model))}
    assert moved == {"forward-replaced"}
    mlp.c_fc = nn.Sequential(mlp.c_fc)  # and its weights
    moved = {change.rule for change in changes(before, State.of(model))}
    assert moved == {"forward-replaced"}
    mlp.act[0].register_forward_hook(lambda *_: None)
    added = {change.rule for change in changes(before, State.of(model))}
    assert added == {"forward-replaced", "hooks-left"}


def test_a_function_is_known_by_its_type_as_inspect_knows_it():
    owners = (torch, torch.nn.functional, torch.Tensor, torch.nn.Module, str)
    values = [value for owner in owners for value in vars(owner).values()]
    values += [len, "".join, partial(len), lambda: 0, staticmethod(len), torch, 1]
    told = [is_routine(type(value)) for value in values]
    assert told == [inspect.isroutine(value) for value in values]
    assert any(told)
    assert not all(told)


def test_compiling_elsewhere_is_no_change_and_another_forward_is_one(
    model, monkeypatch
):
    before = State.of(model)
    # torch.compile has modules say when they are made, from its first use on.
    monkeypatch.setattr(nn.Module, "__init__", lambda self: None)
    monkeypatch.setattr(nn.Module, "__setstate__", lambda self, state: None)
    assert not list(changes(before, State.of(model)))
    monkeypatch.setattr(nn.LayerNorm, "forward", lambda self, x: x)
    (change,) = changes(before, State.of(model))
    assert change.rule == "forward-replaced"
