"""What sits on a model besides its own code: hooks and overrides, by owner."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module

_KINDS = {
    "forward hook": "_forward_hooks",
    "forward pre-hook": "_forward_pre_hooks",
    "backward hook": "_backward_hooks",
    "backward pre-hook": "_backward_pre_hooks",
}
# Begins the name of a module that is loaded from a file, so that it hides no other.
OF_A_FILE = "_audited_"
_GLOBAL_KINDS = {kind: f"_global{name}" for kind, name in _KINDS.items()}


@dataclass(frozen=True)
class Found:
    """One hook or override: what kind, on which module, and whose it is.

    ``key`` is torch's number of the hook; ``module`` the path of the module, ``*`` for
    a hook on all modules of the process.
    """

    kind: str
    module: str
    owner: str
    key: int = 0

    @property
    def by_transformers(self) -> bool:
        """Whether transformers itself put it there."""
        return self.owner.startswith("transformers.")

    def __str__(self) -> str:
        return f"{self.kind} {self.owner} on {self.module or 'the model'}"


def census(model: nn.Module) -> tuple[Found, ...]:
    """List every hook and instance-level ``forward`` on a model, and global hooks."""
    return tuple(_all(model))


def foreign(found: tuple[Found, ...]) -> tuple[Found, ...]:
    """Leave out what transformers put there itself."""
    return tuple(one for one in found if not one.by_transformers)


def _all(model: nn.Module) -> Iterator[Found]:
    for kind, attribute in _GLOBAL_KINDS.items():
        for key, hook in getattr(torch_module, attribute, {}).items():
            yield Found(f"global {kind}", "*", owner(hook), key)
    for path, module in model.named_modules():
        for kind, attribute in _KINDS.items():
            for key, hook in getattr(module, attribute, {}).items():
                yield Found(kind, path, owner(hook), key)
        if "forward" in module.__dict__:
            forward = module.__dict__["forward"]
            yield Found("forward override", path, _of_another(model, module, forward))


def _of_another(model: nn.Module, module: nn.Module, forward: Any) -> str:
    """Name the function that a module runs; that of another module by its path."""
    bound = getattr(forward, "__self__", module)
    if bound is module or not isinstance(bound, nn.Module):
        return owner(forward)
    paths = (path for path, one in model.named_modules() if one is bound)
    place = next(paths, "a module elsewhere")
    return f"{type(bound).__name__}.{forward.__name__} bound to {place}"


def owner(hook: Any) -> str:
    """Name the function behind a hook, ``package.module.function``.

    What is loaded from a file is named after the file.
    """
    while isinstance(hook, partial):
        hook = hook.func
    hook = getattr(hook, "__func__", hook)
    name = getattr(hook, "__qualname__", type(hook).__qualname__)
    module = getattr(hook, "__module__", None) or type(hook).__module__
    return f"{module.removeprefix(OF_A_FILE)}.{name}"
