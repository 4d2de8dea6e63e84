"""Run, rebuild, compare: the story of the project on one screen.

``verify`` runs a model once as it is and once with capture, rebuilds its hidden states
from the captures, and checks every local identity.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn, TypeAlias

import torch
from torch import Tensor, nn

from recon import gpt2
from recon.census import census, foreign
from recon.compare import Check, compare
from recon.errors import ReconciliationError, ReconError, UnsupportedError, UsageError
from recon.facts import Environment
from recon.gpt2 import Reference
from recon.ledger import reconstruct, require_whole
from recon.recorder import Options, Recorder, never_ran
from recon.replay import replay
from recon.sites import Site
from recon.trace import Trace

Level: TypeAlias = Literal["ledger", "replay"]
LEVELS: tuple[Level, ...] = ("ledger", "replay")


@dataclass(frozen=True)
class Report:
    """What a verification found: the checks, shallowest first, and what to know.

    It cannot be used as a truth value: call ``check()``, which raises, or read
    ``verdict``. No check at all is a failure.
    """

    environment: Environment
    levels: tuple[str, ...]
    shape: tuple[int, ...]
    depth: int
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()
    last_state: str = ""
    seconds: float | None = None
    bare_seconds: float | None = None

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that do not hold, shallowest first."""
        return tuple(check for check in self.checks if not check.passed)

    @property
    def verdict(self) -> Literal["reconciled", "diverged"]:
        """``reconciled`` if there are checks and all of them hold."""
        return "reconciled" if self.checks and not self.failures else "diverged"

    def check(self) -> Report:
        """Return the report; raise ReconciliationError, naming every failing site."""
        if not self.checks:
            raise ReconciliationError((), ["no check was made"])
        if self.failures:
            raise ReconciliationError(self.failures)
        return self

    def __bool__(self) -> NoReturn:
        raise TypeError(
            "a report is neither true nor false: call report.check(), or read "
            "report.verdict"
        )


def verify(
    model: nn.Module,
    input_ids: Tensor | None = None,
    *,
    levels: Sequence[Level] = LEVELS,
    **inputs: Any,
) -> Report:
    """Prove that what recon captures of a run is what the model computed.

    Runs ``model(input_ids, **inputs)`` twice, bare and captured, from the same random
    state, without gradients; the model, its hooks, the generators and a cache passed
    in are left as they were. ``input_ids`` is B T; ``inputs`` are the model's own.

    Raises UnsupportedError for a model or option that recon does not check,
    UsageError for inputs that the model cannot take.
    """
    _require_levels(levels)
    if input_ids is not None:
        inputs = {"input_ids": input_ids, **inputs}
    gpt2.require_inputs(model, inputs)
    notes = list(_circumstances(model))
    recorder = Recorder(gpt2.plan(model), Options())
    with (
        torch.no_grad(),
        _same_randomness(model) as rewind,
        gpt2.hooks_of_its_own(model),
    ):
        bare, bare_seconds = _timed(lambda: _run(model, inputs))
        rewind()
        begun = time.perf_counter()
        with recorder:
            captured = _run(model, inputs)
        trace = recorder.traces[-1]
        require_verifiable(trace)
        checks = [*_undisturbed(bare, captured), *_checks(trace, bare, levels)]
        seconds = time.perf_counter() - begun
    return replace(
        _report(trace, bare, levels, checks, notes),
        seconds=seconds,
        bare_seconds=bare_seconds,
    )


def verify_trace(
    trace: Trace,
    output: Any = None,
    *,
    levels: Sequence[Level] = LEVELS,
) -> Report:
    """Check one recorded pass by itself; a decoding step of ``generate`` for one.

    ``output`` is what the model returned in that pass. Without it the rebuilt stream is
    compared with the captured inputs of the blocks.

    Raises UsageError for a trace that is incomplete, altered or older than the weights.
    """
    _require_levels(levels)
    require_verifiable(trace)
    returned = None if output is None else Reference.of(output)
    with torch.no_grad():
        checks = list(_checks(trace, returned, levels))
    notes = [] if returned is None else list(_aliases(trace, returned))
    return _report(trace, returned, levels, checks, notes)


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
            f"{edited[0]} was edited in place after run {trace.run}: the trace can no "
            "longer be verified against the weights; run the model again"
        )


# -- running -------------------------------------------------------------------


def _run(model: nn.Module, inputs: Mapping[str, Any]) -> Reference:
    try:
        return gpt2.reference(model, inputs)
    except (ReconError, KeyboardInterrupt):
        raise
    except Exception as error:
        words = " ".join(str(error).split())[:300]
        raise UsageError(
            f"the model itself raised {type(error).__name__}: {words}"
        ) from error


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
        yield f"{len(others)} foreign hooks on the model stay live: {shown}{more}"


# -- the checks ----------------------------------------------------------------

_Placed: TypeAlias = tuple[tuple[float, ...], Check]


def _checks(
    trace: Trace, returned: Reference | None, levels: Sequence[Level]
) -> list[Check]:
    """Return all checks of one pass, shallowest first."""
    placed: list[_Placed] = list(_firings(trace))
    if "ledger" in levels:
        placed += _ledger(trace, returned)
    if "replay" in levels:
        listed = list(gpt2.identities(trace))
        for identity, check in zip(listed, replay(trace, listed), strict=True):
            placed.append((identity.site.depth, check))
        if returned is not None:
            placed += _returned(trace, returned)
    return [check for _, check in sorted(placed, key=lambda pair: pair[0])]


def _firings(trace: Trace) -> Iterator[_Placed]:
    if trace.never_ran:
        yield (
            (-1.0,),
            Check(
                trace.never_ran[0],
                "fired",
                "capture",
                "missing",
                reason=never_ran(trace),
            ),
        )
    for words in trace.repeated:
        yield (
            (-1.0,),
            Check(
                words.split()[0],
                "fired",
                "capture",
                "diverged",
                reason=f"{words} in one pass: which of them was captured is undefined",
            ),
        )


def _ledger(trace: Trace, returned: Reference | None) -> Iterator[_Placed]:
    """Compare the rebuilt stream with the model's own hidden states, entry by entry."""
    try:
        rebuilt = reconstruct(trace)
    except KeyError as error:
        yield (
            (0.0,),
            Check(
                "hidden_states", "hidden_states", "ledger", "missing", reason=str(error)
            ),
        )
        return
    if returned is None:
        states: Sequence[Tensor | None] = _captured_states(trace)
    elif returned.hidden_states is None:
        yield (
            (0.0,),
            _no_states("not returned: the pass ran without output_hidden_states=True"),
        )
        return
    else:
        states = returned.hidden_states
        if len(states) != len(rebuilt):
            yield (
                (0.0,),
                _no_states(f"has {len(states)} entries, expected {len(rebuilt)}"),
            )
    for index, (expected, found) in enumerate(zip(rebuilt, states, strict=False)):
        name = f"hidden_states.{index}"
        last = index == len(rebuilt) - 1
        depth = (2.0, 0.0, 1e6) if last else (1.0, float(index), 0.0)
        if found is None:
            missing = Check(
                name,
                "hidden_states",
                "ledger",
                "missing",
                reason="is None: output_hidden_states selected other layers",
            )
            yield depth, missing
            continue
        yield (
            depth,
            compare(
                expected, found, site=name, identity="hidden_states", level="ledger"
            ),
        )


def _captured_states(trace: Trace) -> list[Tensor]:
    depth = trace.facts.depth
    last = Site("ln_f") if trace.facts.tied_last else Site("resid_post", depth - 1)
    return [*(trace[Site("resid_pre", i)] for i in range(depth)), trace[last]]


def _no_states(reason: str) -> Check:
    return Check(
        "hidden_states",
        "hidden_states",
        "ledger",
        "missing",
        reason=f"hidden_states {reason}",
    )


def _returned(trace: Trace, returned: Reference) -> Iterator[_Placed]:
    """Compare what the model returned besides hidden states with the captures."""
    depth = trace.facts.depth

    def pair(name: str, place: Site, found: Tensor | None) -> Iterator[_Placed]:
        if found is None or trace.origin(place) is None:
            return
        yield (
            (*place.depth, 0.5),
            compare(
                trace[place], found, site=str(place), identity=name, level="replay"
            ),
        )

    for layer, found in enumerate(returned.attentions or ()):
        yield from pair("attentions", Site("attn.pattern", layer), found)
    for layer, found in enumerate(returned.cross_attentions or ()):
        yield from pair("cross_attentions", Site("cross.pattern", layer), found)
    if trace.facts.environment.attention == "eager" and returned.attentions is not None:
        present = [found for found in returned.attentions if found is not None]
        if len(present) != depth:
            yield (
                (0.0,),
                Check(
                    "attentions",
                    "attentions",
                    "replay",
                    "missing",
                    reason=f"attentions has {len(present)} entries, expected {depth}",
                ),
            )
    for layer, (keys, values) in enumerate(returned.cache or ()):
        call = trace.facts.attention.get(Site("attn_out", layer))
        if call is not None and call.keys is not None and call.values is not None:
            for part, seen, found in (
                ("k", call.keys, keys),
                ("v", call.values, values),
            ):
                place = Site(f"attn.{part}", layer)
                yield (
                    (*place.depth, 0.5),
                    compare(
                        seen,
                        found,
                        site=str(place),
                        identity="past_key_values",
                        level="replay",
                    ),
                )
    yield from pair("last_hidden_state", Site("ln_f"), returned.last_hidden_state)
    yield from pair("logits", Site("logits"), returned.logits)


def _undisturbed(bare: Reference, captured: Reference) -> Iterator[Check]:
    """Check that capture changed no bit of what the model returns."""
    name = "logits" if bare.logits is not None else "last_hidden_state"
    pairs = [(name, getattr(bare, name), getattr(captured, name))]
    states = zip(bare.hidden_states or (), captured.hidden_states or (), strict=False)
    pairs += [(f"hidden_states.{i}", a, b) for i, (a, b) in enumerate(states)]
    worst: Check | None = None
    for site, without, with_capture in pairs:
        if without is None or with_capture is None:
            continue
        check = compare(
            without, with_capture, site=site, identity="undisturbed", level="capture"
        )
        if worst is None or not check.passed:
            worst = check
    if worst is not None:
        yield worst


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


# -- the report ----------------------------------------------------------------


def _report(
    trace: Trace,
    returned: Reference | None,
    levels: Sequence[Level],
    checks: Iterable[Check],
    notes: Iterable[str],
) -> Report:
    return Report(
        environment=trace.facts.environment,
        levels=tuple(levels),
        shape=tuple(trace[Site("embed")].shape[:2]) if "embed" in trace else (),
        depth=trace.facts.depth,
        checks=tuple(checks),
        notes=tuple(dict.fromkeys([*notes, *trace.facts.notes])),
        last_state=_last_state(trace, returned),
    )


def _last_state(trace: Trace, returned: Reference | None) -> str:
    """Say what the last hidden state is, which is where most comparisons go wrong."""
    depth = trace.facts.depth
    last = f"h.{depth - 1}.resid_post"
    if trace.facts.tied_last:
        return (
            f"hidden_states.{depth} is ln_f({last}), after the final LayerNorm: "
            f"{last} itself is in no entry"
        )
    return (
        f"hidden_states.{depth} is {last} itself, before ln_f "
        "(config.tie_last_hidden_states is False)"
    )


def _require_levels(levels: Sequence[str]) -> None:
    unknown = [level for level in levels if level not in LEVELS]
    if unknown or not levels:
        raise UsageError(f"levels={list(levels)}: expected some of {', '.join(LEVELS)}")
