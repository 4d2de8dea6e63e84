"""What goes on after the hooks of others: another tensor than the module had made?

Hooks of a recorder run in the order in which they were made, before those of code that
comes later. For the time of one pass each module that has such hooks gets one more at
either end of them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from recon.plan import Passage, Plan
from recon.recorder.listening import look
from recon.sites import Site


@dataclass(frozen=True, eq=False)
class Edit:
    """A site that was edited on its way: what there was, and what goes on.

    ``before`` is None where it was edited in place. Where no hook made the one of the
    other, but the module that stands at a path, of what a module inside of it makes,
    ``around`` names its class and path, and ``inner`` that module; ``put`` says that
    it was put there after the recorder had entered.
    """

    place: Site
    before: Tensor | None
    after: Tensor
    around: str = ""
    inner: str = ""
    put: bool = False


@dataclass(eq=False)
class _Pass:
    """One pass under way: what was seen ahead of the hooks, and the hooks to remove."""

    edits: list[Edit] = field(default_factory=list)
    handles: list[RemovableHandle] = field(default_factory=list)
    ahead: dict[tuple[nn.Module, str], tuple[Tensor, int]] = field(default_factory=dict)
    inside: dict[nn.Module, Tensor] = field(default_factory=dict)
    complete: bool = False


class _Mine(threading.local):
    """The passes under way in the current thread, innermost last."""

    def __init__(self) -> None:
        self.stack: list[_Pass] = []


class Onward:
    """Notes the edits at some passages, in every pass between enter and exit."""

    def __init__(self, plan: Plan, passages: Sequence[Passage]) -> None:
        self._plan, self._passages = plan, passages
        self._mine = _Mine()
        self._passes: list[_Pass] = []
        self._hooks: list[RemovableHandle] = []
        self._planned = {one.module: one.gives for one in passages}
        self._known: Mapping[nn.Module, frozenset[int]] = {}

    @property
    def edits(self) -> tuple[tuple[Edit, ...], ...]:
        """The edits of each pass that ran to its end, in the order of the passes."""
        return tuple(tuple(one.edits) for one in self._passes if one.complete)

    def __enter__(self) -> Onward:
        root = self._plan.root
        self._known = {module: _keys(module) for module in root.modules()}
        self._hooks = [
            root.register_forward_pre_hook(self._begin),
            root.register_forward_hook(self._end, always_call=True),
        ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        handles = [*self._hooks, *(h for one in self._passes for h in one.handles)]
        for handle in handles:
            handle.remove()

    def __deepcopy__(self, memo: dict[int, Any]) -> Onward:
        """Return itself: a copy of the model has the hooks, and is not watched."""
        return self

    # -- one pass ------------------------------------------------------------------

    def _begin(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if module is not self._plan.root:
            return
        one = _Pass()
        self._mine.stack.append(one)
        self._passes.append(one)
        for passage in self._passages:
            standing = _standing(module, passage.path)
            if standing is not None:
                one.handles += self._watch(one, passage, standing)

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if module is not self._plan.root or not self._mine.stack:
            return
        one = self._mine.stack.pop()
        one.complete = output is not None
        for handle in one.handles:
            handle.remove()
        one.handles.clear()
        one.ahead.clear()
        one.inside.clear()

    def _watch(
        self, one: _Pass, passage: Passage, module: nn.Module
    ) -> Iterator[RemovableHandle]:
        """Put hooks on a module that code has hooked, wrapped or looked inside of."""
        takes, gives = passage.takes, passage.gives
        if takes is not None and self._hooked(module, module._forward_pre_hooks):
            for first in (True, False):
                hook = partial(self._taken, one, takes, first)
                yield module.register_forward_pre_hook(
                    hook, prepend=first, with_kwargs=True
                )
        inner = dict(self._inner(module, passage.module))
        put = module is not passage.module
        looked = put or any(self._hooked(m, m._forward_hooks) for m in inner.values())
        inner = inner if looked else {}
        # What makes the same site on its way out, as a dropout does: the model may
        # have been given a forward that goes on from there.
        inner |= {} if put else self._last_of(passage)
        for each in inner.values():
            yield each.register_forward_hook(partial(self._made_inside, one))
        if inner:
            around = f"{type(module).__name__} at {passage.path}"
            whole = partial(self._made_around, one, gives, around, inner, put)
            yield module.register_forward_hook(whole, prepend=True)
        if looked or self._hooked(module, module._forward_hooks):
            for first in (True, False):
                given = partial(self._given, one, gives, first)
                yield module.register_forward_hook(given, prepend=first)

    def _inner(
        self, module: nn.Module, usual: nn.Module, path: str = ""
    ) -> Iterator[tuple[str, nn.Module]]:
        """Yield the modules inside of one, but for those that make other sites."""
        for name, child in module.named_children():
            if child is usual or child not in self._planned:
                yield f"{path}{name}", child
                yield from self._inner(child, usual, f"{path}{name}.")

    def _last_of(self, passage: Passage) -> dict[str, nn.Module]:
        """Return the modules inside of a planned one that give the same site as it."""
        return {
            name: each
            for name, each in passage.module.named_modules()
            if each is not passage.module and self._planned.get(each) == passage.gives
        }

    def _hooked(self, module: nn.Module, hooks: Mapping[int, Any]) -> bool:
        return not self._known.get(module, frozenset()).issuperset(hooks)

    # -- one module ----------------------------------------------------------------

    def _taken(
        self,
        one: _Pass,
        place: Site,
        first: bool,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self._compare(one, place, first, (module, "in"), look("input", args, kwargs, 0))

    def _made_inside(
        self, one: _Pass, module: nn.Module, args: tuple[Any, ...], output: Any
    ) -> None:
        made = look("output", (), {}, output)
        if self._runs(one) and made is not None:
            one.inside[module] = made.detach()

    def _made_around(
        self,
        one: _Pass,
        place: Site,
        around: str,
        inner: Mapping[str, nn.Module],
        put: bool,
        module: nn.Module,
        args: tuple[Any, ...],
        output: Any,
    ) -> None:
        """Compare what a module makes with what the modules inside of it had made."""
        seen = look("output", (), {}, output)
        for name, each in inner.items() if self._runs(one) else ():
            made = one.inside.pop(each, None)
            if made is not None and seen is not None and made.shape == seen.shape:
                self._note(one, Edit(place, made, seen, around, name, put))

    def _given(
        self,
        one: _Pass,
        place: Site,
        first: bool,
        module: nn.Module,
        args: tuple[Any, ...],
        output: Any,
    ) -> None:
        seen = look("output", (), {}, output)
        self._compare(one, place, first, (module, "out"), seen)

    def _compare(
        self,
        one: _Pass,
        place: Site,
        first: bool,
        key: tuple[nn.Module, str],
        seen: Tensor | None,
    ) -> None:
        """Keep what is seen ahead of the hooks of others, and compare behind them."""
        if seen is None or not self._runs(one):
            return
        if first:
            one.ahead[key] = seen, _version(seen)
            return
        before, version = one.ahead.pop(key, (seen, _version(seen)))
        if before is not seen:
            self._note(one, Edit(place, before, seen))
        elif version != _version(seen):
            self._note(one, Edit(place, None, seen))

    def _note(self, one: _Pass, edit: Edit) -> None:
        """Keep copies of both sides of an edit, if they are not the same after all."""
        before, after = edit.before, edit.after
        if before is not None:
            if _equal(before, after):
                return
            before = self._copy(edit.place, before)
        after = self._copy(edit.place, after)
        one.edits.append(replace(edit, before=before, after=after))

    def _copy(self, place: Site, tensor: Tensor) -> Tensor:
        return self._plan.present(place, tensor.detach().clone())

    def _runs(self, one: _Pass) -> bool:
        return bool(self._mine.stack) and self._mine.stack[-1] is one


def _keys(module: nn.Module) -> frozenset[int]:
    return frozenset({*module._forward_hooks, *module._forward_pre_hooks})


def _standing(root: nn.Module, path: str) -> nn.Module | None:
    """Return the module that stands at a path now; code may have put another there."""
    try:
        return root.get_submodule(path)
    except AttributeError:
        return None


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same values; NaN equals NaN here."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.data_ptr() == other.data_ptr() and one.stride() == other.stride():
        return True
    return torch.allclose(one, other, rtol=0.0, atol=0.0, equal_nan=True)
