"""Key-value caches, in each form that versions of transformers have given them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

Entry: TypeAlias = tuple[Tensor, Tensor]

# What versions call a cache that is handed on; from 5.24 on it is the last of these.
NAMES = ("past_key_values", "past_key_value", "cache")


def among(named: Mapping[str, Any]) -> Any:
    """Return the cache among arguments or outputs by name; None if there is none."""
    for name in NAMES:
        cache = named.get(name)
        if cache is not None:
            return cache
    return None


def halves(cache: Any) -> tuple[Any, Any]:
    """Return the caches of self- and of cross-attention; None where there is none."""
    if hasattr(cache, "self_attention_cache"):
        return cache.self_attention_cache, cache.cross_attention_cache
    return cache, None


def entries(cache: Any) -> Iterator[Entry]:
    """Yield keys and values, B H S d each, of every layer that holds some.

    Up to version 4.51 GPT-2 has tuples of pairs, then a cache with a list of keys and
    one of values, from 4.54 one with an object for each layer.
    """
    if isinstance(cache, tuple | list):
        yield from ((one[0], one[1]) for one in cache if one is not None)
    elif hasattr(cache, "layers"):
        yield from ((one.keys, one.values) for one in cache.layers)
    else:
        yield from zip(cache.key_cache, cache.value_cache, strict=True)


def length(cache: Any) -> int:
    """Return how many tokens a cache holds."""
    if isinstance(cache, tuple | list):
        return next((keys.shape[-2] for keys, _ in entries(cache)), 0)
    return int(cache.get_seq_length())


def copied(cache: Any) -> Any:
    """Copy a cache; ``deepcopy`` alone refuses tensors with an autograd graph."""
    tensors = (
        tensor
        for half in halves(cache)
        if half is not None
        for entry in entries(half)
        # A layer that has seen nothing yet has no tensors.
        for tensor in filter(torch.is_tensor, entry)
    )
    return copy.deepcopy(cache, {id(t): t.detach().clone() for t in tensors})
