"""baukit's TraceDict, which is on no package index: the idiom, in a few lines."""

from collections import OrderedDict
from contextlib import AbstractContextManager

import torch


class Trace:
    """What one hook kept."""

    def __init__(self, module):
        self.output = None
        self._handle = module.register_forward_hook(self._keep)

    def _keep(self, module, args, output):
        self.output = output

    def close(self):
        self._handle.remove()


class TraceDict(OrderedDict, AbstractContextManager):
    """A trace of each layer, by name."""

    def __init__(self, model, layers):
        super().__init__({name: Trace(model.get_submodule(name)) for name in layers})

    def __exit__(self, *error):
        for trace in self.values():
            trace.close()


def capture(model, input_ids):
    parts = ("", ".ln_1", ".attn.c_attn", ".mlp.act", ".mlp")
    blocks = range(model.config.n_layer)
    layers = [f"transformer.h.{number}{part}" for number in blocks for part in parts]
    with torch.no_grad(), TraceDict(model, layers) as traced:
        model(input_ids)
    return traced
