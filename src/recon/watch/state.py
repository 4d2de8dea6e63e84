"""A model and the process at one moment, without copies of the weights."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from recon.census import Found, census
from recon.watch import code, process
from recon.watch.weights import Held, weights_of

# What a module keeps its weights in.
_OF_TORCH = frozenset({"_parameters", "_buffers", "_modules"})

PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True, eq=False)
class State:
    """A model and the process at one moment, without copies of the weights."""

    found: tuple[Found, ...]
    modules: Mapping[str, nn.Module]
    plain: Mapping[str, dict[str, Any]]
    holding: Mapping[str, set[str]]
    weights: Mapping[str, Held]
    config: dict[str, Any]
    process: dict[str, Any]
    code: Mapping[str, Any]
    threads: frozenset[threading.Thread]

    @classmethod
    def of(cls, model: nn.Module, weights: Mapping[str, Held] | None = None) -> State:
        """Look at a model; reads every weight once, if they are not known."""
        modules = dict(model.named_modules())
        return cls(
            found=census(model),
            modules=modules,
            plain={path: _plain(module) for path, module in modules.items()},
            holding={path: _holding(module) for path, module in modules.items()},
            weights=weights_of(model) if weights is None else weights,
            config=_config(model),
            process=process.read(),
            code=code.functions(modules.values()),
            threads=process.threads(),
        )


def _plain(module: nn.Module) -> dict[str, Any]:
    own = module.__dict__.items()
    return {
        key: value
        for key, value in own
        if isinstance(value, PLAIN) and not key.startswith("_")
    }


def _holding(module: nn.Module) -> set[str]:
    """Return the attributes of a module in which tensors are kept, but its weights."""
    own = module.__dict__.items()
    return {key for key, value in own if key not in _OF_TORCH and _holds(value)}


def _holds(value: Any, depth: int = 3) -> bool:
    if isinstance(value, Tensor):
        return True
    if not depth or not isinstance(value, dict | list | tuple | set | deque):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return any(_holds(one, depth - 1) for one in inner)


def _config(model: nn.Module) -> dict[str, Any]:
    return {
        f"{above}{key}": repr(value)
        for above, config in configs(model)
        for key, value in vars(config).items()
    }


def configs(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield what configures a model and its generation, with what its keys go by."""
    for above, name in (("", "config"), ("generation_config.", "generation_config")):
        config = getattr(model, name, None)
        if config is not None:
            yield above, config
