"""What the hook of a tap does: it keeps what it sees, and computes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from recon.errors import BudgetError
from recon.plan import Port, Tap
from recon.recorder.options import Options, rows
from recon.recorder.passes import Pass, Threads, tensors_in
from recon.sites import Site

Hook: TypeAlias = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]


def raw_listener(threads: Threads, place: int, tap: Tap) -> Hook:
    """Keep first argument and output as they are, and do nothing else.

    A model calls this some hundred times in a pass, so each step counts.
    """
    note = tap.note
    with_input = any(port == "input" for _, port in tap.reads)

    def listen(
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
    ) -> None:
        one = threads.current
        if one is not None:
            before = None
            if with_input:
                before = args[0] if args else _first(args, kwargs)
            said = None if note is None else note(module, args, kwargs, output)
            one.take((place, before, output, said))

    return listen


def keeping_listener(threads: Threads, place: int, tap: Tap, keeper: Keeper) -> Hook:
    """Keep what the tap reads, as the keeper's options say."""
    note = tap.note
    keepers = {s: keeper.of(s, port) for s, port in (*tap.reads, *tap.again)}

    def listen(
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
    ) -> None:
        one = threads.current
        if one is None or not one.running:
            return
        kept = []
        for seen, port in tap.again if fires_again(tap, one, place) else tap.reads:
            tensor = look(port, args, kwargs, output)
            kept.append(None if tensor is None else keepers[seen](one, tensor))
        said = None if note is None else note(module, args, kwargs, output)
        keeper.charge_noted(tap.path, one, said)
        one.calls.append((place, tuple(kept), None, said))

    return listen


def fires_again(tap: Tap, one: Pass, place: int) -> bool:
    """Whether a tap that fires now sees what its second firing means."""
    return bool(tap.again) and (tap.spared(one.start) or one.has_called(place))


@dataclass(frozen=True, eq=False)
class Keeper:
    """Turns tensors of the run into those to keep, within a budget.

    ``passes`` are all that the recorder holds: the budget is of all of them.
    """

    options: Options
    passes: Callable[[], Iterable[Pass]]

    def of(self, seen: Site, port: Port) -> Callable[[Pass, Tensor], Tensor]:
        """Return what makes the tensor to keep of one seen at a site."""
        options = self.options
        if options.by_reference:
            return lambda one, t: t if options.grad else t.detach()
        whole = options.positions is None or seen.part == "cross.kv"
        axis = 2 if port == "weights" else 1

        def keep(one: Pass, tensor: Tensor) -> Tensor:
            kept = tensor if options.grad else tensor.detach()
            if not whole:
                chosen = rows(options.positions, kept.shape[axis], seen)
                one.positions = tuple(chosen)
                numbers = torch.tensor(chosen, device=kept.device)
                kept = kept.index_select(axis, numbers)
            if options.dtype is not None or options.device is not None:
                kept = kept.to(device=options.device, dtype=options.dtype or kept.dtype)
            if options.clone and kept.data_ptr() == tensor.data_ptr():
                kept = kept.clone()
            self._charge(seen, one, kept)
            return kept

        return keep

    def charge_noted(self, path: str, one: Pass, said: Any) -> None:
        """Count what a note keeps alive: masks, the contents of caches."""
        if self.options.budget is not None:
            for tensor in tensors_in(said):
                self._charge(path, one, tensor)

    def _charge(self, seen: Site | str, one: Pass, tensor: Tensor) -> None:
        budget, storage = self.options.budget, tensor.untyped_storage()
        if budget is None or storage.data_ptr() in one.charged:
            return
        held = sum(sum(other.charged.values()) for other in self.passes())
        if held + storage.nbytes() > budget:
            raise BudgetError(str(seen), held, storage.nbytes(), budget)
        one.charged[storage.data_ptr()] = storage.nbytes()


def look(
    port: Port, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> Tensor | None:
    """Return the tensor at a port: the output proper is a tuple's first element.

    Attention's weights are the last; some versions of transformers return keys and
    values in between.
    """
    if port == "input":
        value = _first(args, kwargs)
    else:
        several = output if isinstance(output, tuple) else (output,)
        value = several[0] if port == "output" else (None, *several[1:])[-1]
    return value if isinstance(value, Tensor) else None


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else next(iter(kwargs.values()), None)
