"""A model and the process at one moment, without copies of the weights."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from recon.census import Found, census
from recon.watch import code, process
from recon.watch.tables import attributes, configs
from recon.watch.weights import Held, weights_of


@dataclass(frozen=True, eq=False)
class State:
    """A model and the process at one moment, without copies of the weights."""

    found: tuple[Found, ...]
    modules: Mapping[str, nn.Module]
    kinds: Mapping[str, type]
    attributes: Mapping[str, Mapping[str, Any]]
    weights: Mapping[str, Held]
    config: Mapping[str, str]
    process: Mapping[str, Any]
    code: Mapping[str, Any]
    threads: frozenset[threading.Thread]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        weights: Mapping[str, Held] | None = None,
        functions: Mapping[str, Any] | None = None,
    ) -> State:
        """Look at a model; reads weights and ``functions``, if they are not known."""
        modules = dict(model.named_modules())
        kinds = {path: type(module) for path, module in modules.items()}
        return cls(
            found=census(model),
            modules=modules,
            kinds=kinds,
            attributes={path: attributes(one) for path, one in modules.items()},
            weights=weights_of(model) if weights is None else weights,
            config=_config(model),
            process=process.read(),
            code=code.functions(kinds.values()) if functions is None else functions,
            threads=process.threads(),
        )


def _config(model: nn.Module) -> dict[str, str]:
    return {
        f"{above}{key}": repr(value)
        for above, config in configs(model)
        for key, value in vars(config).items()
    }
