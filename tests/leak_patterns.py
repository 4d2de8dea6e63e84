"""Code that captures activations: seven ways to leak, and twenty that do not.

Each is called as ``pattern(model, ids)``, and again with a pass that raises half way.
"""

import gc
import weakref
from contextlib import ExitStack, contextmanager
from functools import partial

import torch

import recon
from recon.gpt2 import InterruptionError

GROWING = []
ERRORS = []
UNDETACHED = []
DROPPED = []


def middle(model):
    return model.transformer.h[1]


# -- wrong -----------------------------------------------------------------------------


def list_that_grows(model, ids):
    def keep(module, args, output):
        GROWING.append(output.detach())

    with middle(model).register_forward_hook(keep), torch.no_grad():
        model(ids)
    return GROWING[-1]


def closure_cycle(model, ids):
    kept = {}

    def keep(module, args, output):
        kept["out"] = output
        kept["again"] = keep

    with middle(model).register_forward_hook(keep), torch.no_grad():
        model(ids)
    return kept["out"]


def tensor_on_a_module(model, ids):
    def keep(module, args, output):
        module.last = output

    with middle(model).register_forward_hook(keep), torch.no_grad():
        model(ids)
    return middle(model).last


def graph_of_an_undetached_capture(model, ids):
    kept = []
    with middle(model).register_forward_hook(lambda m, a, output: kept.append(output)):
        model(ids)
    UNDETACHED.append(kept[0].mean())
    return kept


def handle_dropped(model, ids):
    kept = []

    def keep(module, args, output):
        kept[:] = [output]

    middle(model).register_forward_hook(keep)
    with torch.no_grad():
        model(ids)
    return kept[0]


def hooks_after_an_exception(model, ids):
    kept = {}

    def keep(module, args, output):
        kept["out"] = output

    handle = model.transformer.h[0].register_forward_hook(keep)
    with torch.no_grad():
        model(ids)
    handle.remove()
    return kept


def traceback_kept(model, ids):
    try:
        with torch.no_grad():
            return model(ids, output_hidden_states=True).hidden_states
    except InterruptionError as error:
        ERRORS.append(error)


# name: the pattern, the kind of holder, and what its path must name
WRONG = {
    "list that grows": (list_that_grows, "global", "leak_patterns.GROWING["),
    "closure cycle": (closure_cycle, "cycle", "kept['out']"),
    "tensor on a module": (tensor_on_a_module, "module", "model.transformer.h[1].last"),
    "graph of an undetached capture": (
        graph_of_an_undetached_capture,
        "graph",
        "leak_patterns.UNDETACHED[",
    ),
    "handle dropped": (
        handle_dropped,
        "hook",
        "model.transformer.h[1]._forward_hooks[",
    ),
    "hooks after an exception": (
        hooks_after_an_exception,
        "hook",
        "model.transformer.h[0]._forward_hooks[",
    ),
    "traceback": (traceback_kept, "traceback", "InterruptionError's traceback"),
}


def forget():
    """Empty the lists that the wrong ones fill."""
    for one in (GROWING, ERRORS, UNDETACHED, DROPPED):
        one.clear()


# -- right -----------------------------------------------------------------------------


def with_block(model, ids):
    kept = {}

    def keep(module, args, output):
        kept["out"] = output.detach()

    with middle(model).register_forward_hook(keep):
        model(ids)
    return kept


def try_finally(model, ids):
    kept = []
    handle = middle(model).register_forward_hook(lambda m, a, out: kept.append(out))
    try:
        with torch.no_grad():
            model(ids)
    finally:
        handle.remove()
    return kept


def exit_stack(model, ids):
    kept = {}

    def keep(name, module, args, output):
        kept[name] = output[0] if isinstance(output, tuple) else output

    with ExitStack() as hooks, torch.no_grad():
        for name, module in model.named_modules():
            hooks.enter_context(module.register_forward_hook(partial(keep, name)))
        model(ids)
    return kept


def keyword_hooks(model, ids):
    kept = []

    def keep(module, args, kwargs, output):
        kept.append((args, kwargs, output))

    attention = middle(model).attn
    with attention.register_forward_hook(keep, with_kwargs=True), torch.no_grad():
        model(ids)
    return kept


def pre_hook(model, ids):
    kept = []
    with (
        middle(model).register_forward_pre_hook(lambda m, args: kept.extend(args)),
        torch.no_grad(),
    ):
        model(ids)
    return kept


def with_gradients_and_backward(model, ids):
    kept = []
    with middle(model).register_forward_hook(lambda m, a, out: kept.append(out)):
        loss = model(ids).logits.mean()
    return torch.autograd.grad(loss, kept)


def graph_returned(model, ids):
    kept = []
    with middle(model).register_forward_hook(lambda m, a, out: kept.append(out)):
        out = model(ids)
    return kept, out


def hidden_states(model, ids):
    with torch.no_grad():
        return model(ids, output_hidden_states=True).hidden_states


def inference_mode(model, ids):
    kept = []
    with (
        middle(model).register_forward_hook(lambda m, a, out: kept.append(out)),
        torch.inference_mode(),
    ):
        model(ids)
    return kept


class Catcher:
    """An object whose method is the hook."""

    def __init__(self):
        self.kept = []

    def keep(self, module, args, output):
        self.kept.append(output)


def object_with_a_method(model, ids):
    catcher = Catcher()
    with middle(model).register_forward_hook(catcher.keep), torch.no_grad():
        model(ids)
    return catcher


def weak_object(model, ids):
    catcher = Catcher()
    mine = weakref.ref(catcher)

    def keep(module, args, output):
        mine().keep(module, args, output)

    with middle(model).register_forward_hook(keep), torch.no_grad():
        model(ids)
    return catcher.kept


def global_list_emptied(model, ids):
    DROPPED.clear()
    try:
        with (
            middle(model).register_forward_hook(lambda m, a, out: DROPPED.append(out)),
            torch.no_grad(),
        ):
            model(ids)
        return list(DROPPED)
    finally:
        DROPPED.clear()


@contextmanager
def caught(module, kept):
    handle = module.register_forward_hook(lambda m, a, out: kept.append(out))
    try:
        yield
    finally:
        handle.remove()


def generator_based(model, ids):
    kept = []
    with caught(middle(model), kept), torch.no_grad():
        model(ids)
    return kept


def attribute_taken_back(model, ids):
    def keep(module, args, output):
        module.last = output

    block = middle(model)
    try:
        with block.register_forward_hook(keep), torch.no_grad():
            model(ids)
        return block.last
    finally:
        block.__dict__.pop("last", None)


def error_handled(model, ids):
    try:
        with torch.no_grad():
            return model(ids, output_hidden_states=True).hidden_states
    except InterruptionError as error:
        return str(error)


def numpy_copies(model, ids):
    kept = []

    def keep(module, args, output):
        kept.append(output.detach().numpy().copy())

    with middle(model).register_forward_hook(keep):
        model(ids)
    return kept


def collected_at_the_end(model, ids):
    kept = closure_cycle(model, ids)
    gc.collect()
    return kept


def key_value_cache(model, ids):
    with torch.no_grad():
        return model(ids, use_cache=True).past_key_values


def recon_capture(model, ids):
    with recon.capture(model) as recorder, torch.no_grad():
        model(ids)
    return recorder.trace


def recon_capture_of_some_sites(model, ids):
    with recon.capture(model, sites="h.*.attn.q", clone=True) as recorder:
        model(ids)
    return recorder.trace["h.0.attn.q"]


def recon_capture_that_checks(model, ids):
    with recon.capture(model, check="sketch") as recorder, torch.no_grad():
        model(ids)
    return recorder.reports


RIGHT = (
    with_block,
    try_finally,
    exit_stack,
    keyword_hooks,
    pre_hook,
    with_gradients_and_backward,
    graph_returned,
    hidden_states,
    inference_mode,
    object_with_a_method,
    weak_object,
    global_list_emptied,
    generator_based,
    attribute_taken_back,
    error_handled,
    numpy_copies,
    key_value_cache,
    recon_capture,
    recon_capture_of_some_sites,
    recon_capture_that_checks,
)
