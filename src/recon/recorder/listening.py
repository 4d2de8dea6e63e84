"""What the hook of a tap does: it keeps what it sees, or what a keeper makes of it.

The note of a tap may copy what later steps write in place. A hook runs inside of
someone's forward pass, so it raises nothing but BudgetError: what goes wrong in it is a
trouble of the pass, whose trace then is incomplete.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor, nn

from recon.errors import BudgetError
from recon.plan import Port, Tap
from recon.recorder.keeping import Keeper
from recon.recorder.passes import Pass
from recon.recorder.threads import Threads

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
            said = None
            if note is not None:
                try:
                    said = note(module, args, kwargs, output)
                except Exception as error:
                    one.fail(tap.path, error)
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
        kept: list[Tensor | None] = []
        said = None
        try:
            for seen, port in tap.again if fires_again(tap, one, place) else tap.reads:
                tensor = look(port, args, kwargs, output)
                kept.append(None if tensor is None else keepers[seen](one, tensor))
            if note is not None:
                said = keeper.noted(tap.path, one, note(module, args, kwargs, output))
        except BudgetError:
            raise
        except Exception as error:
            one.fail(tap.path, error)
        one.calls.append((place, tuple(kept), None, said))

    return listen


def fires_again(tap: Tap, one: Pass, place: int) -> bool:
    """Whether a tap that fires now sees what its second firing means."""
    return bool(tap.again) and (tap.spared(one.start) or one.has_called(place))


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
