"""Take apart what a capture function returned: names and tensors, whatever the nest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

# No capture nests deeper.
_DEPTH = 12
# A sparse tensor that would be larger is not written out.
_MOST_DENSE = 2**30


@dataclass
class Returned:
    """The tensors of one call by name, and what else was among them.

    ``lists`` gives the length of each list of tensors by its name, ``nests`` that of
    every list; ``empty`` names what
    held nothing, ``live`` objects that later passes change, ``odd`` what is no tensor,
    ``unseen`` the tensors among those. What is sparse or nested is written out, and
    ``packed`` says what it was.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    lists: dict[str, int] = field(default_factory=dict)
    nests: dict[str, int] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)
    live: dict[str, str] = field(default_factory=dict)
    odd: dict[str, str] = field(default_factory=dict)
    unseen: set[str] = field(default_factory=set)
    packed: dict[str, str] = field(default_factory=dict)


def take_apart(value: Any) -> Returned:
    """Flatten nested mappings, lists, arrays and objects with ``items()``.

    The parts of a nest are joined by dots: ``{"h": [a, b]}`` gives ``h.0`` and ``h.1``.
    """
    found = Returned()
    _visit(found, "", value, ())
    return found


def _visit(found: Returned, name: str, value: Any, within: tuple[int, ...]) -> None:
    """Look at a value in containers, which are told by their ids."""
    if id(value) in within:
        return  # it holds itself
    try:
        _look(found, name, value, (*within, id(value)))
    except Exception as error:  # an object of theirs raises whatever it likes
        kind, what = type(value).__name__, type(error).__name__
        found.odd[name] = f"an object of class {kind}, which raises {what} if looked at"


def _look(found: Returned, name: str, value: Any, within: tuple[int, ...]) -> None:
    if isinstance(value, Tensor):
        if value.is_nested:
            _rows(found, name, value, within)
        elif kind := _unusual(value):
            found.odd[name] = kind
            found.unseen.add(name)
        elif value.layout is not torch.strided:
            found.packed[name] = "a sparse tensor"
            _look(found, name, value.to_dense(), within)
        elif value.numel() == 0 or value.is_meta:
            found.empty.append(name)
        else:
            found.tensors[name] = value
    elif isinstance(value, np.ndarray | np.generic):
        _array(found, name, np.asarray(value))
    elif value is None:
        found.empty.append(name)
    elif len(within) > _DEPTH:
        found.odd[name] = "nested too deeply"
    elif _is_cache(value):
        found.live[name] = type(value).__name__
    elif (pairs := _pairs(value)) is not None:
        if not pairs:
            found.empty.append(name)
        for key, inner in pairs:
            _visit(found, _join(name, key), inner, within)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        _sequence(found, name, value, within)
    elif not isinstance(value, str | int | float | bool | bytes | torch.dtype):
        _object(found, name, value, within)


def _unusual(tensor: Tensor) -> str:
    """Say why the values of a tensor cannot be looked at one by one, if so."""
    if tensor.layout is not torch.strided and tensor.numel() > _MOST_DENSE:
        return "a sparse tensor, too large to be written out"
    if tensor.is_quantized:
        return "a quantized tensor"
    return "a complex tensor" if tensor.is_complex() else ""


def _rows(found: Returned, name: str, nested: Tensor, within: tuple[int, ...]) -> None:
    """Look at the rows of a nested tensor, as at a list of them."""
    rows = list(nested.unbind())
    _look(found, name, rows, within)
    found.packed |= {_join(name, n): "a nested tensor" for n in range(len(rows))}


def _sequence(
    found: Returned, name: str, value: Sequence[Any], within: tuple[int, ...]
) -> None:
    if not value:
        found.empty.append(name)
    fields: Sequence[str] | None = getattr(value, "_fields", None)  # a named tuple's
    if not fields:
        found.nests[name] = len(value)
    if name and not fields and _all_tensors(value):
        found.lists[name] = len(value)
    for key, inner in zip(fields or range(len(value)), value, strict=True):
        _visit(found, _join(name, key), inner, within)


def _all_tensors(values: Sequence[Any]) -> bool:
    return all(isinstance(one, Tensor | np.ndarray) for one in values)


def _array(found: Returned, name: str, value: np.ndarray[Any, Any]) -> None:
    if value.dtype == object:
        found.odd[name] = "an array of objects"
    elif value.size == 0:
        found.empty.append(name)
    elif value.dtype.kind in "fiub":
        found.tensors[name] = torch.from_numpy(np.ascontiguousarray(value))
    else:
        found.odd[name] = f"an array of {value.dtype}"
        found.unseen.add(name)


def _object(found: Returned, name: str, value: Any, within: tuple[int, ...]) -> None:
    """Look into saved-value proxies (``.value``) and plain objects with fields."""
    inner = getattr(value, "value", None)
    if isinstance(inner, Tensor):
        _look(found, name, inner, within)
        return
    fields = {
        key: one
        for key, one in _fields(value)
        if not key.startswith("_") and isinstance(one, Tensor | list | tuple | dict)
    }
    if not fields:
        found.odd[name] = f"an object of class {type(value).__name__}"
    for key, one in fields.items():
        _visit(found, _join(name, key), one, within)


def _fields(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what an object has for attributes, also where its class has slots."""
    yield from getattr(value, "__dict__", {}).items()
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for key in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, key):
                yield key, getattr(value, key)


def _pairs(value: Any) -> list[tuple[Any, Any]] | None:
    if isinstance(value, Mapping):
        return list(value.items())
    items = getattr(value, "items", None)
    if callable(items) and not isinstance(value, type):
        try:
            return [(key, inner) for key, inner in items()]
        except (TypeError, ValueError):
            return None
    return None


def _is_cache(value: Any) -> bool:
    """Whether this is a key-value cache of transformers, which each pass extends."""
    return hasattr(value, "get_seq_length") and hasattr(value, "update")


def _join(name: str, key: Any) -> str:
    return f"{name}.{key}" if name else str(key)


def unstacked(
    name: str, tensor: Tensor, sizes: Sequence[int], axis: int = 0
) -> Iterator[tuple[str, Tensor]]:
    """Yield the layers of a tensor that stacks them along an axis."""
    if tensor.ndim >= 2 and tensor.shape[axis] in sizes:
        for number, one in enumerate(tensor.unbind(axis)):
            yield f"{name}.{number}", one
