"""Whether a module computes as its class is known to: a subclass may do otherwise."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType
from typing import Any

from torch import nn

from recon.gpt2.modules import Parts

# What a call runs besides forward, and how it finds what forward names.
_CALL = ("forward", "__call__", "_call_impl", "__getattr__", "__getattribute__")
_LIBRARIES = ("torch.", "transformers.")


def known(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a module is of one of some kinds, and computes as that kind does.

    A ``forward`` that was put on the instance is no matter of the class: like a hook it
    may wrap what is there, and reports name it.
    """
    return any(isinstance(module, kind) and not own(module, kind) for kind in kinds)


def own(module: nn.Module, kind: Any) -> str:
    """Name what a module's class has of its own, of what the kind's forward uses.

    Also where the kind itself was given another forward.
    """
    theirs, ours = _innermost(type(module)), _innermost(kind)
    if theirs is not ours or _home(ours) != kind.__module__:
        return "forward"
    classes = type(module).__mro__
    defined = {name for one in classes[: classes.index(kind)] for name in vars(one)}
    both = (name for name in _used(kind) if name in defined - {"forward"})
    return next(both, "") if defined else ""


def _innermost(kind: type[nn.Module]) -> Any:
    """Return what a class runs in the end, where only its libraries wrapped it.

    transformers gives every subclass of a block a wrapper of the forward it inherits.
    """
    function: Any = kind.forward
    while hasattr(function, "__wrapped__") and _home(function).startswith(_LIBRARIES):
        function = function.__wrapped__
    return function


def _home(function: Any) -> str:
    # Wrappers take the name of the module of what they wrap, and not its globals.
    return str(getattr(function, "__globals__", {}).get("__name__", ""))


def described(path: str, module: nn.Module, *kinds: type[nn.Module]) -> str:
    """Say of a module that is not ``known`` where it stands, and what it is."""
    own_names = (own(module, kind) for kind in kinds if isinstance(module, kind))
    name = next(own_names, "")
    words = f", which has a {name} of its own" if name else ""
    return f"{path or 'the model'} as a {type(module).__name__}{words}"


def strangers(parts: Parts) -> Iterator[str]:
    """Name the modules without weights that recon does not know."""
    for path, module, kinds in parts.frame():
        if not known(module, *kinds):
            yield described(path, module, *kinds)


def of_its_own(model: nn.Module) -> Iterator[str]:
    """Name the modules of a supported model that compute otherwise than GPT-2's do."""
    yield from strangers(Parts.of(model))


@lru_cache
def _used(kind: Any) -> tuple[str, ...]:
    """List the names that a class's forward uses, also by way of its own methods."""
    names = dict.fromkeys(_CALL)
    waiting = ["forward"]
    while waiting:
        member = inspect.getattr_static(kind, waiting.pop())
        new = [name for name in _names(member) if name not in names]
        names |= dict.fromkeys(new)
        # What a class inherits from nn.Module is the same in all of them.
        waiting += [name for name in new if name in vars(kind)]
    return tuple(names)


def _names(member: Any) -> Iterator[str]:
    function = inspect.unwrap(getattr(member, "fget", member))
    waiting = [getattr(getattr(function, "__func__", function), "__code__", None)]
    while waiting:
        code = waiting.pop()
        if isinstance(code, CodeType):
            yield from code.co_names
            waiting += code.co_consts
