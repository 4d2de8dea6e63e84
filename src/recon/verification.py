"""Run, rebuild, compare: the story of the project on one screen.

``verify`` runs a model once as it is and once with capture, rebuilds its hidden states
from the captures, and checks every local identity.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from recon import gpt2
from recon.census import census, foreign
from recon.checks import DEFAULT, Level, Levels, trace_checks, undisturbed
from recon.errors import CaptureError, ReconError, UnsupportedError, UsageError
from recon.gpt2 import Reference
from recon.ledger import require_whole
from recon.plan import Plan
from recon.recorder import Options, Recorder
from recon.results import Report, report
from recon.rounding import Form
from recon.streaming import CheckingRecorder
from recon.trace import Trace


def verify(
    model: nn.Module,
    input_ids: Tensor | None = None,
    *,
    levels: Sequence[Level] = DEFAULT,
    bound: Form = "deterministic",
    stream: bool = False,
    **inputs: Any,
) -> Report:
    """Prove that what recon captures of a run is what the model computed.

    Runs ``model(input_ids, **inputs)`` twice, bare and captured, from the same random
    state, without gradients; the model, its hooks, the generators and a cache passed
    in are left as they were. ``input_ids`` is B T; ``inputs`` are the model's own.
    With ``stream`` each block is checked as soon as it has run and then let go: extra
    memory is that of one block, and the states are compared with what the blocks
    received, since asking for hidden states would keep them all.

    Raises UnsupportedError for a model or option that recon does not check,
    UsageError for inputs that the model cannot take.
    """
    gpt2.require_names(model, inputs, ("levels", "bound", "stream"))
    wanted = Levels(tuple(levels), bound)
    if input_ids is not None:
        inputs = {"input_ids": input_ids, **inputs}
    gpt2.require_inputs(model, inputs)
    notes = [*wanted.notes, *_circumstances(model)]
    plan = gpt2.plan(model)
    recorder = CheckingRecorder(plan, Options(), wanted) if stream else None
    keeping = recorder or Recorder(plan, Options())
    run = gpt2.sparing if stream else gpt2.reference
    with (
        torch.no_grad(),
        _same_randomness(model) as rewind,
        gpt2.hooks_of_its_own(model),
    ):
        bare, bare_seconds = _timed(lambda: _run(run, model, inputs))
        rewind()
        begun = time.perf_counter()
        with keeping:
            captured = _run(run, model, inputs)
        trace = keeping.traces[-1]
        require_verifiable(trace)
        checks = list(undisturbed(bare, captured))
        if recorder is not None:
            checks += recorder.reports[-1].checks
        else:
            checks += trace_checks(trace, bare, wanted)
        seconds = time.perf_counter() - begun
    found = report(trace, levels, checks, notes)
    return replace(found, seconds=seconds, bare_seconds=bare_seconds)


def record(model: nn.Module, input_ids: Tensor | None = None, **inputs: Any) -> Trace:
    """Run the model once, captured, and return the trace; the model stays as it was.

    The generators move on as in any run. Raises as ``verify`` does.
    """
    if input_ids is not None:
        inputs = {"input_ids": input_ids, **inputs}
    gpt2.require_inputs(model, inputs)
    recorder = Recorder(gpt2.plan(model), Options())
    with torch.no_grad(), recorder:
        _run(gpt2.sparing, model, inputs)
    return recorder.trace


def record_and_return(
    model: nn.Module, plan: Plan, inputs: Mapping[str, Any]
) -> tuple[Trace, Reference]:
    """Run the model once, hooked as ``plan`` says; return the trace and what it gave.

    Hidden states are asked for. The generators are left as they were; hooks that
    transformers adds meanwhile stay (see ``gpt2.hooks_of_its_own``). Raises as
    ``verify`` does.
    """
    gpt2.require_inputs(model, inputs)
    recorder = Recorder(plan, Options())
    with torch.no_grad(), _same_randomness(model), recorder:
        returned = _run(gpt2.reference, model, inputs)
    return recorder.trace, returned


def warm_up(model: nn.Module, input_ids: Tensor | None = None, **inputs: Any) -> None:
    """Run the model once and forget it: the first pass of a process is a slow one.

    Leaves hooks and generators as ``verify`` does, and raises what it raises.
    """
    if input_ids is not None:
        inputs = {"input_ids": input_ids, **inputs}
    gpt2.require_inputs(model, inputs)
    with torch.no_grad(), _same_randomness(model), gpt2.hooks_of_its_own(model):
        _run(gpt2.sparing, model, inputs)


def verify_trace(
    trace: Trace,
    output: Any = None,
    *,
    levels: Sequence[Level] = DEFAULT,
    bound: Form = "deterministic",
) -> Report:
    """Check one recorded pass by itself; a decoding step of ``generate`` for one.

    ``output`` is what the model returned in that pass. Without it the rebuilt stream is
    compared with the captured inputs of the blocks.

    Raises UsageError for a trace that is incomplete, altered or older than the weights.
    """
    wanted = Levels(tuple(levels), bound)
    require_verifiable(trace)
    returned = None if output is None else Reference.of(output)
    with torch.no_grad():
        checks = trace_checks(trace, returned, wanted)
    aliases = [] if returned is None else _aliases(trace, returned)
    return report(trace, levels, checks, [*wanted.notes, *aliases])


def require_verifiable(trace: Trace) -> None:
    """Raise for a trace that cannot be verified, and say why."""
    require_whole(trace)
    if trace.wanted is not None:
        raise UsageError(
            "the trace holds only the sites asked for with sites=; verifying needs all"
        )
    if trace.facts.unsupported:
        raise UnsupportedError(
            "recon does not check " + ", ".join(trace.facts.unsupported)
        )
    if edited := trace.facts.edited_weights():
        raise UsageError(
            f"{edited[0]} was edited or converted after run {trace.run}: the trace can "
            "no longer be verified against the weights; run the model again"
        )


# -- running -------------------------------------------------------------------


@contextmanager
def told_as_the_models_own() -> Iterator[None]:
    """Turn what a model raises by itself into a UsageError of one line."""
    try:
        yield
    except (ReconError, KeyboardInterrupt):
        raise
    except Exception as error:
        words = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if _of_a_hook(error):
            raise CaptureError(f"a hook of recon's raised {words}") from error
        raise UsageError(f"the model itself raised {words}") from error


def _of_a_hook(error: BaseException) -> bool:
    """Whether an error comes out of a hook of recon's, which the model called."""
    frames = traceback.walk_tb(error.__traceback__)
    homes = [str(frame.f_globals.get("__name__")) for frame, _ in frames]
    ours = [home.startswith("recon.") for home in homes]
    called = ours.index(False) if False in ours else len(ours)
    return any(ours[called:])


def _run(
    ask: Callable[[nn.Module, Mapping[str, Any]], Reference],
    model: nn.Module,
    inputs: Mapping[str, Any],
) -> Reference:
    with told_as_the_models_own():
        return ask(model, inputs)


def _timed(call: Callable[[], Reference]) -> tuple[Reference, float]:
    begun = time.perf_counter()
    result = call()
    return result, time.perf_counter() - begun


class _same_randomness:  # noqa: N801 - a context manager, used like a function
    """Give the generators back at the end; ``rewind`` gives them back in between."""

    def __init__(self, model: nn.Module) -> None:
        kinds = {p.device for p in model.parameters() if p.device.type == "cuda"}
        self._fork = torch.random.fork_rng(sorted(kinds, key=str))
        self._devices = kinds

    def __enter__(self) -> Callable[[], None]:
        self._fork.__enter__()
        cpu = torch.get_rng_state()
        others = {d: torch.cuda.get_rng_state(d) for d in self._devices}

        def rewind() -> None:
            torch.set_rng_state(cpu)
            for device, state in others.items():
                torch.cuda.set_rng_state(state, device)

        return rewind

    def __exit__(self, *raised: Any) -> None:
        self._fork.__exit__(*raised)


def _circumstances(model: nn.Module) -> Iterator[str]:
    """Say what sits on the model that may make it compute something else."""
    if problem := gpt2.hidden_states_problem(model):
        yield problem
    others = foreign(census(model))
    if others:
        shown = "; ".join(str(one) for one in others[:5])
        more = f"; and {len(others) - 5} more" if len(others) > 5 else ""
        words = "hook stays" if len(others) == 1 else "hooks stay"
        yield f"{len(others)} foreign {words} live on the model: {shown}{more}"


# -- what a report says besides its checks ------------------------------------


def _aliases(trace: Trace, returned: Reference) -> Iterator[str]:
    """Say where a capture is the reference itself, so that comparing proves nothing."""
    own = {t.data_ptr(): s for s, t in trace.tensors.items()}
    same = [
        f"hidden_states.{i} is {own[t.data_ptr()]}"
        for i, t in enumerate(returned.hidden_states or ())
        if t is not None and t.data_ptr() in own
    ]
    if same:
        yield (
            f"{len(same)} of the returned states are the captured tensors themselves "
            f"({same[0]}): comparing those proves nothing, so the states are rebuilt "
            "from embeddings and updates"
        )
