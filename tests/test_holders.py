"""Is what holds a tensor named as a person would write it?"""

import gc
import re
from contextvars import ContextVar
from functools import partial

import pytest
import torch
from torch import nn

from recon.profiling.holders import holders
from recon.profiling.storages import StorageLog, live, saved_by_graph, storage_of

KEPT: list = []
VARIABLE: ContextVar = ContextVar("captured", default=())


class Box:
    """Something with attributes."""


class Slotted:
    """Something with slots."""

    __slots__ = ("held",)


def in_dict(tensor):
    KEPT.append({"h.3": [tensor]})


def in_object(tensor):
    KEPT.append(Box())
    KEPT[0].held = (tensor,)


def in_slot(tensor):
    KEPT.append(Slotted())
    KEPT[0].held = tensor


def in_class(tensor):
    Box.shared = tensor


def in_closure(tensor):
    def keep():
        return tensor

    KEPT.append(keep)


def in_default(tensor):
    KEPT.append(partial(print, tensor))


def in_generator(tensor):
    def wait(tensor):
        yield tensor
        yield tensor

    KEPT.append(wait(tensor))
    next(KEPT[0])


def in_array(tensor):
    KEPT.append({"last": tensor.numpy()[3:][1:]})


def in_context(tensor):
    VARIABLE.set([tensor])


def in_traceback(tensor):
    def fail(tensor):
        raise ValueError(len(tensor))

    try:
        fail(tensor)
    except ValueError as error:
        KEPT.append(error.with_traceback(error.__traceback__.tb_next))


def in_traceback_in_closure(tensor):
    def fail(kept):
        def keep():
            return kept

        raise ValueError(keep)

    given = [{"out": tensor}]
    del tensor
    try:
        fail(given.pop())
    except ValueError as error:
        error.args = ()
        KEPT.append(error.with_traceback(error.__traceback__.tb_next))


PATHS = {
    in_dict: "KEPT[0]['h.3'][0]",
    in_object: "KEPT[0].held[0]",
    in_slot: "KEPT[0].held",
    in_class: "Box.shared",
    in_closure: "KEPT[0] -> in_closure.<locals>.keep (test_holders.py) -> tensor",
    in_default: "KEPT[0] -> partial of print[0]",
    in_generator: "KEPT[0] -> suspended in_generator.<locals>.wait",
    in_array: "KEPT[0]['last'] -> a numpy array that shares its memory",
    in_traceback: "KEPT[0] -> ValueError's traceback -> tensor of "
    "in_traceback.<locals>.fail (test_holders.py)",
    in_traceback_in_closure: "KEPT[0] -> ValueError's traceback -> kept of "
    "in_traceback_in_closure.<locals>.fail (test_holders.py)['out']",
}


@pytest.fixture(autouse=True)
def _forget():
    yield
    KEPT.clear()
    Box.shared = None


def only(size):
    """Return the live tensor of this size, which no variable here names."""
    alive = (one for one in gc.get_objects() if type(one) is torch.Tensor)
    return [one for one in alive if one.shape == (size,)]


@pytest.mark.parametrize("hold", PATHS)
def test_the_path_to_a_tensor_is_written_as_python(hold):
    hold(torch.ones(1013))
    (found,) = holders(only(1013))
    written = re.sub(r"(\.py):\d+", r"\1", str(found))
    assert written == f"{__name__}.{PATHS[hold]}"


def test_a_context_variable_is_named():
    in_context(torch.ones(1033))
    (found,) = holders(only(1033))
    VARIABLE.set(())
    assert (found.kind, str(found)) == ("global", "context variable captured[0]")


def test_a_variable_of_a_running_function_is_named_last():
    mine = torch.ones(1019)
    (found,) = holders([mine])
    assert found.kind == "local"
    assert found.path[0].startswith("mine of test_a_variable_of_a_running")
    KEPT.append(mine)
    del mine
    (found,) = holders(only(1019))
    assert found.kind == "global"


def test_a_module_of_the_model_is_named_by_its_path():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU()))
    model[1][0].last = torch.ones(1021)
    (found,) = holders(only(1021), {"model": model})
    assert (found.kind, str(found)) == ("module", "model[1][0].last")


def test_looking_keeps_nothing_alive():
    log = StorageLog()
    with log:
        KEPT.append([torch.ones(1031)])
    holders(only(1031))
    KEPT.clear()
    assert log.live() == []


def test_a_search_of_all_objects_leaves_no_cycle_behind():
    # 2026-11-24: a comprehension's cell held the list of objects, which held the cell.
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        (tensors,) = live(torch.Tensor)
        del tensors
        assert len(gc.get_objects()) <= before + 1
    finally:
        gc.enable()


# -- what is alive ---------------------------------------------------------------------


def test_a_storage_is_counted_once_and_until_its_last_view_is_gone():
    log = StorageLog()
    with log:
        whole = torch.zeros(100)
        view = whole[10:]
        gone = whole + 1
        del gone
    assert (log.live_bytes, log.peak_bytes) == (400, 800)
    del whole
    assert log.live_bytes == 400
    del view
    assert (log.live_bytes, log.live()) == (0, [])


def test_what_an_operation_writes_in_place_is_not_new():
    given = torch.zeros(100)
    log = StorageLog()
    with log:
        given.add_(1)
        given.view(10, 10)
    assert log.live_bytes == 0


def test_what_only_the_graph_holds_is_counted_and_found():
    weight = torch.ones(3, 3, requires_grad=True)
    log = StorageLog()
    with log:
        result = (torch.ones(3, 3) @ weight).sum()
    saved = {id(storage_of(t)) for _, t in saved_by_graph(result)}
    (inner,) = [s for s in log.live() if s.nbytes() == 36]
    assert id(inner) in saved
    result.backward()
    assert not [t for _, t in saved_by_graph(result)]
