"""Puts a model and the process back to how they were."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from recon.watch import code, process
from recon.watch.changes import Change
from recon.watch.state import PLAIN, State, configs
from recon.watch.weights import Held, weights_of

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


class Keeper:
    """Puts a model and the process back to how they were when it was made.

    Holds a copy of all weights. Putting back leaves what transformers added itself.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.state = State.of(model)
        self._pickled = _pickles(model)
        self._values = {
            name: held.tensor.detach().clone()
            for name, held in self.state.weights.items()
        }
        self._tables: dict[str, dict[str, dict[str, Any]]] = {
            path: {
                "hooks": {name: dict(getattr(module, name, {})) for name in _HOOKS},
                "parameters": dict(module._parameters),
                "buffers": dict(module._buffers),
                "modules": dict(module._modules),
                "own": {k: v for k, v in module.__dict__.items() if k == "forward"},
                "names": dict.fromkeys(module.__dict__),
            }
            for path, module in self.state.modules.items()
        }
        self._global = {
            name: dict(getattr(torch_module, name))
            for name in dir(torch_module)
            if name.startswith("_global") and name.endswith("hooks")
        }
        self._configs = [(c, dict(vars(c))) for _, c in configs(model)]

    def unpickled(self) -> Iterator[Change]:
        """Say if the model could be pickled at first, and cannot be now."""
        if self._pickled and not _pickles(self._model):
            yield Change("unpicklable", "the model", "pickle.dumps raises")

    def put_back(self, weights: Mapping[str, Held] | None = None) -> None:
        """Restore everything. ``weights`` are those of now, if they were read."""
        self._code_back()
        weights = weights_of(self._model) if weights is None else weights
        for path, table in self._tables.items():
            self._module_back(self.state.modules[path], path, table)
        for name, hooks in self._global.items():
            _refill(getattr(torch_module, name), hooks)
        for config, values in self._configs:
            config.__dict__.clear()
            config.__dict__.update(values)
        for name, held in self.state.weights.items():
            now = weights.get(name)
            lost = now is None or now.checksum != held.checksum
            held.put_back(self._values[name] if lost else None)
        process.put_back(self.state.process)

    def look(self) -> State:
        """Return the state, once functions of torch that looking needs are put back."""
        seen = self._code_back()
        return replace(State.of(self._model), code=seen)

    def _code_back(self) -> Mapping[str, Any]:
        """Put replaced functions back; return those that there were."""
        seen = code.functions(self.state.modules.values())
        for name, function in self.state.code.items():
            if seen.get(name, function) is not function:
                code.set_function(name, function)
        for name in seen.keys() - self.state.code.keys():
            if not code.of_a_library(seen[name]):
                code.drop_function(name)
        return seen

    def _module_back(
        self, module: nn.Module, path: str, table: Mapping[str, dict[str, Any]]
    ) -> None:
        for name, hooks in table["hooks"].items():
            _refill(getattr(module, name, {}), hooks, keep=_by_transformers)
        _refill(module._parameters, table["parameters"])
        _refill(module._buffers, table["buffers"])
        _refill(module._modules, table["modules"])
        module.__dict__.pop("forward", None)
        module.__dict__.update(table["own"])
        for key in [k for k in module.__dict__ if k not in table["names"]]:
            # A private flag is transformers' own; a private tensor is not, nor the mark
            # of a wrapper, which without its forward would keep it from running again.
            if not (key.startswith("_") and type(module.__dict__[key]) in PLAIN):
                del module.__dict__[key]
        for key, value in self.state.plain[path].items():
            module.__dict__[key] = value


@contextmanager
def hooks_put_back(model: nn.Module) -> Iterator[None]:
    """Put the hooks of a model's modules back as they were, and nothing else."""
    tables = [
        (table, dict(table))
        for module in model.modules()
        for name in _HOOKS
        if (table := getattr(module, name, None)) is not None
    ]
    try:
        yield
    finally:
        for table, kept in tables:
            _refill(table, kept, keep=_by_transformers)


def _refill(
    table: Any, wanted: Mapping[Any, Any], keep: Callable[[Any], bool] | None = None
) -> None:
    """Give a dict its former content and order; entries to ``keep`` come last."""
    kept = {k: v for k, v in table.items() if k not in wanted and keep and keep(v)}
    target = {**wanted, **kept}
    if list(table) == list(target) and all(table[k] is target[k] for k in target):
        return
    table.clear()
    table.update(target)


def _by_transformers(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("transformers.")


class _Light(pickle.Pickler):
    """Pickles everything but the tensors, which always can be."""

    def persistent_id(self, one: Any) -> str | None:
        return "tensor" if isinstance(one, Tensor) else None


def _pickles(model: nn.Module) -> bool:
    try:
        _Light(io.BytesIO()).dump(model)
    except Exception:  # whatever a foreign object's own pickling raises
        return False
    return True
