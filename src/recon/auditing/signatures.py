"""How a function is called: which inputs it takes, needs, or takes by name only."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

Function: TypeAlias = Callable[..., Any]

_GIVEN = ("model", "input_ids")
_POSITIONAL = inspect.Parameter.POSITIONAL_ONLY
_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def accepted(function: Function) -> frozenset[str]:
    """Return the names of the inputs, besides the model, that a function takes."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return frozenset({"input_ids"})
    return frozenset(parameters) & {"attention_mask", "position_ids", "token_type_ids"}


def wanted(function: Function, ids: Tensor) -> dict[str, Tensor]:
    """Return what a function cannot be called without, for a plain batch."""
    usual = {
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": torch.zeros_like(ids),
        "position_ids": torch.arange(ids.shape[1], device=ids.device).expand_as(ids),
    }
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}
    needed = [n for n, p in parameters.items() if p.default is inspect.Parameter.empty]
    return {name: usual[name] for name in needed if name in usual}


def by_name(function: Function) -> tuple[str, ...]:
    """Return which of model and ids go by name: both if they have one, in any order."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return ()
    kinds = {name: parameters[name].kind for name in _GIVEN if name in parameters}
    if kinds.keys() == set(_GIVEN) and kinds["model"] is not _POSITIONAL:
        return tuple(n for n, kind in kinds.items() if kind is not _POSITIONAL)
    return tuple(
        n for n, kind in kinds.items() if kind is inspect.Parameter.KEYWORD_ONLY
    )
