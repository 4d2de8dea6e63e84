"""The functions that a model is made of, by name: which are another now?"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, MutableMapping
from functools import cache
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, MethodWrapperType
from typing import Any

from torch import Tensor

_WATCHED = ("torch.nn", "transformers")

_LIBRARIES = ("torch", "transformers", "builtins")

_ROUTINES = (BuiltinFunctionType, FunctionType, MethodType, MethodWrapperType)

# How a module is made and keeps its attributes, and not what it computes; torchlens
# adds some, and torch.compile replaces others for good.
_BOOKKEEPING = frozenset({"__setattr__", "__delattr__", "__init__", "__setstate__"})


def functions(of: Iterable[type]) -> dict[str, Any]:
    """Return the functions that modules' classes and files consist of, by name."""
    classes = {kind for module in set(of) for kind in module.__mro__}
    kinds = [kind for kind in classes if kind.__module__.startswith(_WATCHED)]
    kinds.append(Tensor)
    files = {kind.__module__ for kind in kinds if "gpt2" in kind.__module__}
    found: dict[str, Any] = {
        f"{kind.__module__}.{kind.__qualname__}.{name}": value
        for kind in kinds
        for name, value in vars(kind).items()
        if is_routine(type(value)) and name not in _BOOKKEEPING
    }
    for file in (*files, "torch", "torch.nn.functional"):
        for name, value in vars(sys.modules[file]).items():
            if name.startswith("__"):
                continue  # there torch.compile keeps, and drops, what it compiled
            if is_routine(type(value)):
                found[f"{file}.{name}"] = value
            elif isinstance(value, MutableMapping) and not isinstance(value, dict):
                # The functions among which a config chooses.
                found |= {f"{file}.{name}[{key}]": value[key] for key in value}
    return found


def is_routine(kind: type) -> bool:
    """Say of a type what ``inspect.isroutine`` says of its values, in less time."""
    described = hasattr(kind, "__get__") and not hasattr(kind, "__set__")
    return not issubclass(kind, type) and (issubclass(kind, _ROUTINES) or described)


def set_function(name: str, code: Any) -> None:
    """Write a function where its name says."""
    if name.endswith("]"):
        table, _, key = name[:-1].partition("[")
        _owner(table)[key] = code
    else:
        owner, _, attribute = name.rpartition(".")
        setattr(_owner(owner), attribute, code)


def drop_function(name: str) -> None:
    """Take a function away from where its name says."""
    if name.endswith("]"):
        table, _, key = name[:-1].partition("[")
        del _owner(table)[key]
    else:
        owner, _, attribute = name.rpartition(".")
        delattr(_owner(owner), attribute)


def of_a_library(code: Any) -> bool:
    """Whether a function belongs to the libraries, which may load more at any time."""
    return str(getattr(code, "__module__", "")).partition(".")[0] in _LIBRARIES


@cache
def written_by_a_library(name: str) -> bool:
    """Whether torch or transformers themselves write such a private name.

    An attribute of a module, or a variable of the environment: a mark of their own.
    """
    if not name.startswith("_"):
        return False
    plain, whole = name.encode(), re.compile(rb"[.\"']%s\b" % re.escape(name).encode())
    for module, held in list(sys.modules.items()):
        file = getattr(held, "__file__", None) or ""
        if module.startswith(("torch.", "transformers.")) and file.endswith(".py"):
            path = Path(file)
            text = path.read_bytes() if path.is_file() else b""
            if plain in text and whole.search(text):
                return True
    return False


def hides_another(name: str) -> bool:
    """Whether a new function of a class is called in place of an inherited one."""
    owner, _, attribute = name.rpartition(".")
    kind = None if "[" in name else _owner(owner)
    return isinstance(kind, type) and any(
        attribute in vars(above) for above in kind.__mro__[1:]
    )


def _owner(path: str) -> Any:
    """Return a module by its dotted path, or a class in one."""
    if path in sys.modules:
        return sys.modules[path]
    outer, _, name = path.rpartition(".")
    return getattr(_owner(outer), name)
