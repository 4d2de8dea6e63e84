"""Puts a model and the process back to how they were."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from recon.watch import code, process
from recon.watch.changes import Change
from recon.watch.state import State
from recon.watch.tables import each, hook_tables, tables
from recon.watch.weights import Content, Held


class Keeper:
    """Puts a model and the process back to how they were when it was made.

    Holds a copy of all weights, and of gradients where there are some.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.state = State.of(model)
        self._pickled = _pickles(model)
        self._tables = tuple(tables(model))
        # A tied weight is one tensor under two names.
        self._held = {id(held.tensor): held for held in self.state.weights.values()}
        self._values = {
            id(part.tensor): part.tensor.detach().clone()
            for held in self._held.values()
            for part in held.parts()
        }

    def unpickled(self) -> Iterator[Change]:
        """Say if the model could be pickled at first, and cannot be now."""
        if self._pickled and not _pickles(self._model):
            yield Change("unpicklable", "the model", "pickle.dumps raises")

    def put_back(self, weights: Mapping[str, Held] | None = None) -> None:
        """Restore everything. ``weights`` are those of now, if they were read.

        What cannot be restored keeps nothing else from it, and raises at the end.
        """
        each(self._steps(weights or {}))

    def _steps(self, weights: Mapping[str, Held]) -> Iterator[Callable[[], object]]:
        yield self._code_back
        for path, module in self.state.modules.items():
            yield partial(_class_back, module, self.state.kinds[path])
        for table in self._tables:
            yield table.put_back
        known = {
            id(part.tensor): part for held in weights.values() for part in held.parts()
        }
        for held in self._held.values():
            for part in held.parts():
                yield partial(self._values_back, part, known.get(id(part.tensor)))
            yield held.hang_back
        yield partial(process.put_back, self.state.process)

    def look(self) -> State:
        """Return the state, once functions of torch that looking needs are put back."""
        seen = self._code_back()
        return State.of(self._model, functions=seen)

    def _code_back(self) -> Mapping[str, Any]:
        """Put replaced functions back; return those that there were."""
        seen = code.functions(self.state.kinds.values())
        wanted = self.state.code
        new = (n for n in seen.keys() - wanted.keys() if not code.of_a_library(seen[n]))
        changed = (n for n, one in wanted.items() if seen.get(n, one) is not one)
        each(
            [
                *(partial(code.set_function, name, wanted[name]) for name in changed),
                *(partial(code.drop_function, name) for name in new),
            ]
        )
        return seen

    def _values_back(self, part: Content, now: Content | None) -> None:
        """Write the values of a tensor that holds others; reads it if need be."""
        if not part.is_as(Content.of(part.tensor) if now is None else now):
            part.put_back(self._values[id(part.tensor)])


def _class_back(module: nn.Module, kind: type) -> None:
    if type(module) is not kind:
        module.__class__ = kind


@contextmanager
def hooks_put_back(model: nn.Module) -> Iterator[None]:
    """Put the hooks of a model's modules back as they were, and nothing else.

    Those of transformers stay, which it would put on again.
    """
    kept = tuple(hook_tables(model))
    try:
        yield
    finally:
        for table in kept:
            table.put_back(_by_transformers)


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
