"""What is not as it was, between two looks at a model and the process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from recon.census import Found
from recon.watch.code import hides_another
from recon.watch.process import RANDOM, same
from recon.watch.state import State
from recon.watch.weights import Held


@dataclass(frozen=True)
class Change:
    """One thing that is not as it was: the rule that it breaks, where, and in words.

    ``key`` is torch's number of a hook, where it is one.
    """

    rule: str
    place: str
    words: str
    key: int = -1


def changes(before: State, after: State) -> Iterator[Change]:
    """Yield everything that is not as it was."""
    yield from _hook_changes(
        tuple(_on_kept(before, after)), tuple(_not_moved(before, after))
    )
    yield from _module_changes(before, after)
    for one in _weight_changes(before.weights, after.weights):
        owner = one.place.rpartition(".")[0]
        kept = before.modules.get(owner) is after.modules.get(owner)
        if kept or one.place in before.weights.keys() & after.weights.keys():
            yield one  # else its module went or came, which is told
    for key in sorted({*before.config, *after.config}):
        was, now = before.config.get(key), after.config.get(key)
        if was != now:
            yield Change("config-changed", key, f"was {was!r}, is {now!r}")
    yield from _process_changes(before.process, after.process)
    for name, was in before.code.items():
        if after.code.get(name, was) is not was:
            yield Change("forward-replaced", name, "is another function")
    for name in after.code.keys() - before.code.keys():
        if hides_another(name):
            yield Change("forward-replaced", name, "hides a function")
    for thread in sorted(after.threads - before.threads, key=lambda one: one.name):
        if thread.is_alive():
            yield Change("global-state-changed", "threads", f"{thread.name} still runs")


def _process_changes(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> Iterator[Change]:
    for name, was in before.items():
        now = after[name]
        if name in RANDOM:
            if not same(was, now):
                yield Change("random-state-changed", name, "")
        elif isinstance(was, dict):
            yield from _process_changes(
                {f"{name} {key}": one for key, one in was.items()},
                {f"{name} {key}": now[key] for key in was},
            )
        elif not same(was, now):
            words = f"was {_short(was)}, is {_short(now)}"
            yield Change("global-state-changed", name, words)


def _short(value: Any) -> str:
    """Return the name of a function or of an Enum's member, or the words of a value."""
    return str(getattr(value, "__qualname__", getattr(value, "name", value)))


def _on_kept(before: State, after: State) -> Iterator[Found]:
    """Yield the hooks before, but for those on modules that are gone themselves."""
    for one in before.found:
        was, now = before.modules.get(one.module), after.modules.get(one.module)
        if was is now:
            yield one


def _not_moved(before: State, after: State) -> Iterator[Found]:
    """Yield the hooks after, but for those that a module took along elsewhere."""
    there = {(one.kind, one.key) for one in before.found if one.key}
    for one in after.found:
        was, now = before.modules.get(one.module), after.modules.get(one.module)
        if was is now or (one.kind, one.key) not in there:
            yield one


def _hook_changes(
    before: tuple[Found, ...], after: tuple[Found, ...]
) -> Iterator[Change]:
    for one in after:
        if one not in before and not one.by_transformers:
            override = one.kind == "forward override"
            shared = one.kind.startswith("global")
            rule = "forward-replaced" if override else "hooks-left"
            rule = "global-state-changed" if shared else rule
            yield Change(rule, one.module, str(one), one.key)
    for one in before:
        if one not in after:
            override = one.kind == "forward override"
            rule = "forward-replaced" if override else "hooks-removed"
            yield Change(rule, one.module, f"{one} is gone")
    kept = [one for one in before if one in after]
    again = [one for one in after if one in before]
    if kept != again and sorted(map(str, kept)) == sorted(map(str, again)):
        moved = next(a for a, b in zip(kept, again, strict=True) if a != b)
        yield Change("hooks-removed", moved.module, f"{moved} runs in another order")


def _module_changes(before: State, after: State) -> Iterator[Change]:
    for path in sorted({*before.modules, *after.modules}):
        was, now = before.modules.get(path), after.modules.get(path)
        if was is not now:
            words = f"was {_kind(was)}, is {_kind(now)}"
            yield Change("forward-replaced", path, words)
            continue
        for key in sorted({*before.plain[path], *after.plain[path]}):
            old, new = before.plain[path].get(key), after.plain[path].get(key)
            if old != new and not (old != old and new != new):
                rule = "mode-changed" if key == "training" else "config-changed"
                yield Change(rule, path, f"{key} was {old!r}, is {new!r}")
        for key in sorted(after.holding[path] - before.holding[path]):
            yield Change("tensor-left", path, f"{key} holds tensors")


def _weight_changes(
    before: Mapping[str, Held], after: Mapping[str, Held]
) -> Iterator[Change]:
    for name in sorted({*before, *after}):
        was, now = before.get(name), after.get(name)
        if was is None or now is None:
            words = "is new" if was is None else "is gone"
            yield Change("weights-changed", name, words)
        elif was.checksum != now.checksum or was.shape != now.shape:
            yield Change("weights-changed", name, _other_values(was, now))
        elif was.tensor is not now.tensor:
            yield Change("weights-changed", name, "is another tensor of equal values")
        elif was.wants_grad != now.wants_grad:
            words = f"requires_grad was {was.wants_grad}, is {now.wants_grad}"
            yield Change("requires-grad-changed", name, words)
        elif was.gradient is not now.gradient:
            yield Change("requires-grad-changed", name, "holds another gradient")
        if was is not None and now is not None and was.hooks != now.hooks:
            more = len(now.hooks - was.hooks)
            rule = "hooks-left" if more else "hooks-removed"
            words = f"{more} hooks on the tensor" if more else "a hook on the tensor"
            yield Change(rule, name, words)


def _other_values(was: Held, now: Held) -> str:
    """Say how a parameter differs: in dtype, in shape or in what it holds."""
    if was.dtype != now.dtype:
        return f"was {was.dtype}, is {now.dtype}".replace("torch.", "")
    if was.shape != now.shape:
        return f"was of shape {tuple(was.shape)}, is of {tuple(now.shape)}"
    return "holds other values"


def _kind(module: nn.Module | None) -> str:
    return "nothing" if module is None else type(module).__name__
