"""``recon.profile``: time and memory of capture, recon's own or anyone's."""

from __future__ import annotations

import gc
import inspect
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from recon import gpt2
from recon.census import census, foreign
from recon.checks import LEVELS, Levels, trace_checks
from recon.errors import ReconError, UsageError
from recon.profiling.hooks import hook_cost, tap_costs
from recon.profiling.leaks import LeakWatch, watch
from recon.profiling.memory import Memory, measure, named_tensors, resident
from recon.profiling.results import AGAIN, BARE, Profile, Release
from recon.profiling.storages import StorageLog
from recon.profiling.timing import Ratio, interleaved
from recon.recorder import Options, Recorder
from recon.trace import Trace
from recon.verification import record
from recon.watch import Keeper, hooks_put_back

Function = Callable[..., Any]
Progress = Callable[[str, int, int], None]

CAPTURE = "capture"
STATES = "output_hidden_states=True"
_STEPS = ("timing", "hooks", "memory", "release", "leaks")
_WARM_UP = 3
_TOKENS = 32


def profile(
    model: nn.Module,
    *,
    target: Function | None = None,
    inputs: Mapping[str, Tensor] | None = None,
    rounds: int = 20,
    leak_rounds: int = 10,
    target_name: str = "",
    model_name: str = "",
    progress: Progress | None = None,
) -> Profile:
    """Measure what capture costs, and watch whether its memory comes back.

    Without ``target`` recon's own recorder is profiled, and each level of checking.
    ``target(model, input_ids)`` is a function that captures, as for ``recon.audit``; it
    is called many times, in every other round of the leak watch with a pass that raises
    half way, and the model is put back at the end. ``inputs`` default to 32 tokens of
    random ids. Times are medians of ``rounds`` interleaved rounds.

    Raises UnsupportedError for a model that is no GPT-2, UsageError for inputs that it
    cannot take and for a target that raises.
    """
    begun = time.perf_counter()
    if rounds < 2 or leak_rounds < 3:
        raise UsageError(
            f"rounds={rounds}, leak_rounds={leak_rounds}: expected at least 2 and 3"
        )
    gpt2.plan(model)
    inputs = inputs if inputs is not None else _some_ids(model)
    gpt2.require_inputs(model, inputs)
    given = dict(inputs)
    name = target_name or getattr(target, "__qualname__", "")
    with _put_back(model, copied=target is not None):
        trace = record(model, **given)
        subject = (
            _Own(model, given)
            if target is None
            else _Foreign(model, given, target, name or repr(target))
        )
        subject.prepare()
        tell = progress or (lambda *_: None)
        tell(_STEPS[0], 0, len(_STEPS))
        times = _times(subject, rounds)
        tell(_STEPS[1], 1, len(_STEPS))
        own = isinstance(subject, _Own)
        hooks, hook = subject.hooks_made(), hook_cost() if own else None
        with torch.no_grad():
            taps = tap_costs(model, subject.bare) if own else ()
        tell(_STEPS[2], 2, len(_STEPS))
        memory = _memory(subject)
        tell(_STEPS[3], 3, len(_STEPS))
        release = _release(subject)
        tell(_STEPS[4], 4, len(_STEPS))
        watched = _watch(subject, leak_rounds)
    return Profile(
        target=subject.name,
        model=model_name or type(model).__name__,
        environment=trace.facts.environment,
        shape=trace.facts.shape,
        depth=trace.facts.depth,
        times=tuple(times),
        hooks=hooks,
        hook=hook,
        taps=taps,
        memory=memory,
        release=release,
        watch=watched,
        notes=tuple(_notes(model, subject)),
        seconds=time.perf_counter() - begun,
    )


def _some_ids(model: nn.Module) -> dict[str, Tensor]:
    config = gpt2.base(model).config
    generator = torch.Generator().manual_seed(0)
    size = (1, min(_TOKENS, int(config.n_positions)))
    ids = torch.randint(config.vocab_size, size, generator=generator)
    return {"input_ids": ids.to(next(model.parameters()).device)}


@contextmanager
def _put_back(model: nn.Module, *, copied: bool) -> Iterator[None]:
    """Leave model and generators as they were; what foreign code did, too."""
    keeper = Keeper(model) if copied else None
    with torch.random.fork_rng([]), gpt2.hooks_of_its_own(model):
        try:
            yield
        finally:
            if keeper is not None:
                keeper.put_back()


# -- what is profiled ----------------------------------------------------------------


@dataclass(eq=False)
class _Own:
    """recon's own recorder."""

    model: nn.Module
    inputs: Mapping[str, Tensor]
    name: str = CAPTURE
    grad: bool = False

    def prepare(self) -> None:
        """Make what the timed calls share."""
        self.recorder = Recorder(gpt2.plan(self.model), Options())

    def bare(self) -> Any:
        """Run the model as a user would."""
        return self.model(**self.inputs)

    def call(self) -> Any:
        """Attach, run, detach; return what keeps the captures."""
        with self.recorder:
            self.bare()
        return self.recorder

    def fresh(self) -> Recorder:
        """Attach, run, detach, with a recorder that nothing else holds."""
        with Recorder(gpt2.plan(self.model), Options()) as recorder:
            self.bare()
        return recorder

    def captures(self) -> tuple[object, Mapping[str, Tensor]]:
        """Return what keeps the captures alive, and these by site."""
        trace = self.fresh().trace
        return trace, {str(site): tensor for site, tensor in trace.tensors.items()}

    def hooks_made(self) -> int:
        """Count the hooks of one call."""
        return _hooks_made(self.fresh)

    def levels(self) -> Iterator[tuple[str, Callable[[], object]]]:
        """Yield capture with each level of checking."""
        for level in LEVELS:
            yield f"{CAPTURE} + {level}", partial(self._checked, level)

    def _checked(self, level: Any) -> object:
        with self.recorder:
            self.bare()
        trace: Trace = self.recorder.trace
        return trace_checks(trace, None, Levels((level,)))


@dataclass(eq=False)
class _Foreign:
    """Someone's function that captures."""

    model: nn.Module
    inputs: Mapping[str, Tensor]
    function: Function
    name: str
    grad: bool = True

    def prepare(self) -> None:
        """See whether the function runs the model with gradients, and that it can."""
        with hooks_put_back(self.model), _GradMode() as seen:  # type: ignore[no-untyped-call]  # torch's
            self.call()
        self.grad = seen.grad

    def bare(self) -> Any:
        """Run the model as a user would."""
        return self.model(**self.inputs)

    def call(self) -> Any:
        """Call the function; raises UsageError if it raises."""
        given = {k: v for k, v in self.inputs.items() if k != "input_ids"}
        takes = _parameters(self.function)
        more = {k: v for k, v in given.items() if k in takes}
        try:
            with torch.enable_grad():
                return self.function(self.model, self.inputs["input_ids"], **more)
        except (ReconError, gpt2.InterruptionError):
            raise
        except Exception as error:
            words = " ".join(str(error).split())[:300]
            raise UsageError(
                f"{self.name} raised {type(error).__name__}: {words}"
            ) from error

    fresh = call

    def captures(self) -> tuple[object, Mapping[str, Tensor]]:
        """Return what the function returned, and the tensors in it by name."""
        returned = self.call()
        return returned, named_tensors(returned)

    def hooks_made(self) -> int:
        """Count the hooks of one call."""
        with hooks_put_back(self.model):
            return _hooks_made(self.call)

    def levels(self) -> Iterator[tuple[str, Callable[[], object]]]:
        """Yield nothing: levels check what recon captured."""
        yield from ()


class _GradMode(TorchDispatchMode):
    """Notes whether gradients were on when the model looked its tokens up."""

    grad = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run the operation, and look."""
        if func is torch.ops.aten.embedding.default:
            self.grad = torch.is_grad_enabled()
        return func(*args, **(kwargs or {}))


def _parameters(function: Function) -> frozenset[str]:
    try:
        return frozenset(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return frozenset()


def _hooks_made(run: Callable[[], object]) -> int:
    first = RemovableHandle.next_id
    run()
    return int(RemovableHandle.next_id - first)


# -- measuring -----------------------------------------------------------------------


def _times(subject: _Own | _Foreign, rounds: int) -> list[Ratio]:
    model, bare = subject.model, subject.bare
    variants: dict[str, Callable[[], object]] = {
        BARE: bare,
        AGAIN: bare,
        STATES: lambda: model(**subject.inputs, output_hidden_states=True),
        subject.name: subject.call,
        **dict(subject.levels()),
    }
    around: dict[str, Callable[[], AbstractContextManager[object]]] = {
        STATES: lambda: _states_asked_for(subject),
        # What the call leaves behind would slow the others down.
        subject.name: lambda: hooks_put_back(model),
    }
    if subject.grad:
        no_grad = f"{BARE}, under no_grad"
        variants[no_grad], around[no_grad] = bare, torch.no_grad
    with torch.set_grad_enabled(subject.grad):
        return interleaved(variants, rounds, min(_WARM_UP, rounds), around)


@contextmanager
def _states_asked_for(subject: _Own | _Foreign) -> Iterator[None]:
    """Let transformers put its own hooks on, untimed, and take them off after."""
    with gpt2.hooks_of_its_own(subject.model):
        first = {name: given[:, :1] for name, given in subject.inputs.items()}
        subject.model(**first, output_hidden_states=True)
        yield


def _memory(subject: _Own | _Foreign) -> Memory:
    device = next(subject.model.parameters()).device
    with torch.set_grad_enabled(subject.grad), hooks_put_back(subject.model):
        return measure(subject.bare, subject.captures, device)


def _release(subject: _Own | _Foreign) -> Release:
    """Capture once, let go, and count what is still alive."""
    gc.collect()
    log = StorageLog()
    with torch.set_grad_enabled(subject.grad), log:
        kept = subject.captures()
    captured, full = len(log.live()), resident()
    del kept
    alive, empty = log.live(), resident()
    sizes = None if full is None or empty is None else (full, empty)
    return Release(captured, len(alive), sum(s.nbytes() for s in alive), sizes)


def _watch(subject: _Own | _Foreign, rounds: int) -> LeakWatch:
    """Watch rounds of one call, and one more with a pass that raises half way."""

    def one_round() -> None:
        with torch.set_grad_enabled(subject.grad):
            subject.fresh()
            try:
                with gpt2.interrupted(subject.model):
                    subject.fresh()
            except (gpt2.InterruptionError, UsageError):
                pass

    return watch(one_round, {"model": subject.model}, rounds=rounds)


def _notes(model: nn.Module, subject: _Own | _Foreign) -> Iterator[str]:
    """Say what else a reader of the figures should know."""
    others = foreign(census(model))
    if others:
        yield f"{len(others)} hooks were on the model already, {others[0]} for one"
    if subject.grad:
        yield (
            f"{subject.name} runs the model with gradients on: the bare pass it is "
            "compared with does, too"
        )
