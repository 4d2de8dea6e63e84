"""What is not as it was, between two looks at a model and the process."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from recon.census import Found
from recon.watch.code import hides_another, is_routine, written_by_a_library
from recon.watch.process import RANDOM, SETTINGS, UNKNOWN, Setting, same
from recon.watch.state import State
from recon.watch.tables import alike, holds_tensors
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
    for setting in SETTINGS:
        was, now = before.process[setting.name], after.process[setting.name]
        yield from _setting_changes(setting, was, now)
    for name, was in before.code.items():
        if after.code.get(name, was) is not was:
            yield Change("forward-replaced", name, "is another function")
    for name in after.code.keys() - before.code.keys():
        if hides_another(name):
            yield Change("forward-replaced", name, "hides a function")
    for thread in sorted(after.threads - before.threads, key=lambda one: one.name):
        if thread.is_alive():
            yield Change("global-state-changed", "threads", f"{thread.name} still runs")


def _setting_changes(setting: Setting, was: Any, now: Any) -> Iterator[Change]:
    """Tell of a setting; of one that torch could not tell before or cannot now, not.

    Others tell why: those that it disagrees with.
    """
    if was is UNKNOWN or now is UNKNOWN or same(was, now):
        return
    if isinstance(was, dict):
        for key in sorted({*was, *now}):
            old, new = was.get(key, _ABSENT), now.get(key, _ABSENT)
            if not same(old, new) and not written_by_a_library(key):
                words = _other(old, new, _short, secret=setting.secret)
                yield Change(setting.rule, f"{setting.name} {key}", words)
        return
    words = "" if setting.rule == RANDOM else _other(was, now, _short)
    yield Change(setting.rule, setting.name, words)


_ABSENT = object()


def _other(
    was: Any, now: Any, show: Callable[[Any], str], *, secret: bool = False
) -> str:
    """Say what something was and is, or only that it is another."""
    if was is _ABSENT:
        return "is new"
    if now is _ABSENT:
        return "is gone"
    return "is another" if secret else f"was {show(was)}, is {show(now)}"


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
        kinds = before.kinds.get(path), after.kinds.get(path)
        if was is not now or kinds[0] is not kinds[1]:
            words = ", is ".join(map(_kind, kinds))
            yield Change("forward-replaced", path, f"was {words}")
        if was is now:
            old, new = before.attributes[path], after.attributes[path]
            for key in sorted({*old, *new}):
                yield from _attribute_changes(path, kinds[0], key, old, new)


def _attribute_changes(
    path: str,
    kind: type | None,
    key: str,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
) -> Iterator[Change]:
    """Tell of an attribute of a module, but for the libraries' own marks."""
    was, now = before.get(key, _ABSENT), after.get(key, _ABSENT)
    if alike(was, now):
        return
    if holds_tensors(now):
        if not holds_tensors(was):
            yield Change("tensor-left", path, f"{key} holds tensors")
    elif written_by_a_library(key):
        return
    elif callable(now) and is_routine(type(getattr(kind, key, None))):
        yield Change("forward-replaced", path, f"{key} hides a function")
    else:
        rule = "mode-changed" if key == "training" else "config-changed"
        yield Change(rule, path, f"{key} {_other(was, now, reprlib.repr)}")


def _weight_changes(
    before: Mapping[str, Held], after: Mapping[str, Held]
) -> Iterator[Change]:
    for name in sorted({*before, *after}):
        was, now = before.get(name), after.get(name)
        if was is None or now is None:
            words = "is new" if was is None else "is gone"
            yield Change("weights-changed", name, words)
        elif not was.equals(now):
            yield Change("weights-changed", name, _other_values(was, now))
        elif was.tensor is not now.tensor:
            yield Change("weights-changed", name, "is another tensor of equal values")
        elif was.wants_grad != now.wants_grad:
            words = f"requires_grad was {was.wants_grad}, is {now.wants_grad}"
            yield Change("requires-grad-changed", name, words)
        elif not _one_gradient(was, now):
            yield Change("requires-grad-changed", name, "holds another gradient")
        if was is not None and now is not None and was.hooks != now.hooks:
            more = len(now.hooks - was.hooks)
            rule = "hooks-left" if more else "hooks-removed"
            words = f"{more} hooks on the tensor" if more else "a hook on the tensor"
            yield Change(rule, name, words)


def _one_gradient(was: Held, now: Held) -> bool:
    """Whether a parameter has the gradient that it had, of the same values, or none."""
    if was.gradient is None or now.gradient is None:
        return was.gradient is now.gradient
    return was.gradient.is_as(now.gradient)


def _other_values(was: Held, now: Held) -> str:
    """Say how a parameter differs: in dtype, in shape or in what it holds."""
    if was.dtype != now.dtype:
        return f"was {was.dtype}, is {now.dtype}".replace("torch.", "")
    if was.shape != now.shape:
        return f"was of shape {tuple(was.shape)}, is of {tuple(now.shape)}"
    return "holds other values"


def _kind(kind: type | None) -> str:
    return "nothing" if kind is None else kind.__name__
