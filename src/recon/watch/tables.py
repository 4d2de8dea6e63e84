"""What modules keep in tables, attributes and hooks for two: copied, and put back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from operator import is_
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

_PLAIN = (bool, int, float, str, type(None))
_TABLES = (dict, list, set, deque)
_CONTAINERS = (*_TABLES, tuple)
_CONFIGS = ("config", "generation_config")
# What every module has: weights, modules and hooks. These, a forward and configs are
# looked at by themselves; whether a module trains is told as an attribute.
_OF_TORCH = frozenset(vars(nn.Module()))
_HOOKS = frozenset(name for name in _OF_TORCH if "_hooks" in name)
_APART = (_OF_TORCH | {"forward", *_CONFIGS}) - {"training"}
# So deep are lists in lists copied, to be compared.
_DEEP = 5


@dataclass(frozen=True, eq=False)
class Table:
    """A dict, list, set or deque, and what was in it."""

    of: Any
    content: Any

    @classmethod
    def copy(cls, of: Any) -> Table:
        """Remember what is in ``of`` now."""
        return cls(of, dict(of) if isinstance(of, dict) else list(of))

    def put_back(self, keep: Callable[[Any], bool] = lambda _: False) -> None:
        """Give it its former content and order; a dict's entries to ``keep`` stay."""
        if _same_objects(self.of, self.content):
            return
        if isinstance(self.of, dict):
            _refill(self.of, self.content, keep)
        else:
            self.of.clear()
            add = self.of.update if isinstance(self.of, set) else self.of.extend
            add(self.content)


def _same_objects(table: Any, content: Any) -> bool:
    """Whether a table holds what it held, in the same order."""
    if len(table) != len(content) or not all(map(is_, table, content)):
        return False
    # Of a dict these were its keys.
    return not isinstance(table, dict) or all(
        map(is_, table.values(), content.values())
    )


def _refill(
    table: dict[Any, Any], wanted: dict[Any, Any], keep: Callable[[Any], bool]
) -> None:
    """Give a dict its former content and order; entries to ``keep`` come last."""
    kept = {k: v for k, v in table.items() if k not in wanted and keep(v)}
    target = {**wanted, **kept}
    for key in [key for key in table if key not in target]:
        del table[key]
    if list(table) != list(target):
        table.clear()
    for key, value in target.items():
        if key not in table or table[key] is not value:
            table[key] = value


def tables(model: nn.Module) -> Iterator[Table]:
    """Yield each table of a model's modules and configs, and torch's for all models."""
    todo: list[Any] = [vars(module) for module in model.modules()]
    todo += [vars(config) for _, config in configs(model)]
    shared = vars(torch_module).items()
    todo += [table for name, table in shared if name.startswith("_global")]
    seen: set[int] = set()
    while todo:
        one = todo.pop()
        if not isinstance(one, _CONTAINERS) or id(one) in seen:
            continue
        seen.add(id(one))
        todo += one.values() if isinstance(one, dict) else one
        if isinstance(one, _TABLES):
            yield Table.copy(one)


def hook_tables(model: nn.Module) -> Iterator[Table]:
    """Yield the tables of hooks of a model's modules."""
    for module in model.modules():
        for name in _HOOKS & vars(module).keys():
            yield Table.copy(vars(module)[name])


def configs(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield what configures a model and its generation, with what its keys go by."""
    for name in _CONFIGS:
        config = getattr(model, name, None)
        if config is not None:
            yield "" if name == "config" else f"{name}.", config


def attributes(module: nn.Module) -> dict[str, Any]:
    """Return a module's own attributes, with copies of the containers in them."""
    own = vars(module).items()
    return {key: _copy(value) for key, value in own if key not in _APART}


def _copy(value: Any, depth: int = _DEEP) -> Any:
    if not depth or not isinstance(value, _CONTAINERS):
        return value
    if isinstance(value, dict):
        return {key: _copy(one, depth - 1) for key, one in value.items()}
    if isinstance(value, set):
        return set(value)
    kind = tuple if isinstance(value, tuple) else list
    return kind(_copy(one, depth - 1) for one in value)


def alike(was: Any, now: Any) -> bool:
    """Whether two copied values are one object, or equal as far as they are plain."""
    if was is now:
        return True
    if isinstance(was, _PLAIN) and isinstance(now, _PLAIN):
        return was == now or (was != was and now != now)
    if type(was) is not type(now) or not isinstance(was, _CONTAINERS):
        return False
    if isinstance(was, dict):
        return was.keys() == now.keys() and all(
            alike(was[key], now[key]) for key in was
        )
    if isinstance(was, set):
        return bool(was == now)
    return len(was) == len(now) and all(map(alike, was, now))


def holds_tensors(value: Any) -> bool:
    """Whether a copied value is a tensor, or holds some."""
    if not isinstance(value, _CONTAINERS):
        return isinstance(value, Tensor)
    inner = value.values() if isinstance(value, dict) else value
    return any(map(holds_tensors, inner))


def each(steps: Iterable[Callable[[], object]]) -> None:
    """Take every step in order, also after one that raises; raise that at the end."""
    raised: list[Exception] = []
    for step in steps:
        try:
            step()
        except Exception as error:  # whatever it is, the others are to be taken
            raised.append(error)
    if raised:
        raise raised[0]
