"""Run a model on integer inputs and take its fingerprint."""

from __future__ import annotations

import platform
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from recon import __version__, certify, gpt2
from recon.baseline import fingerprints
from recon.baseline.document import (
    FORMAT,
    SCHEMA_VERSION,
    Asked,
    Baseline,
    Hooks,
    Overhead,
    Setting,
    States,
    Weight,
)
from recon.baseline.document import Site as SiteFields
from recon.baseline.laws import Law, laws
from recon.census import census, foreign
from recon.checks import Levels, trace_checks
from recon.compare import Check
from recon.errors import UsageError
from recon.facts import Environment
from recon.gpt2 import Reference
from recon.plan import Note, Plan, Tap
from recon.profiling.session import profile
from recon.results import Report, report
from recon.sites import Site
from recon.trace import Trace
from recon.verification import record_and_return, require_verifiable

_LEVELS = Levels(("ledger", "certify"))
# The leak watch of a profile is not what is asked for here.
_FEWEST = 4


@dataclass(frozen=True)
class Observed:
    """The fingerprint of a run, and the report on every identity of it."""

    baseline: Baseline
    report: Report


def observe(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    *,
    asked: Asked | None = None,
    source: str = "the given inputs",
    rounds: int = 0,
) -> Observed:
    """Run the model on integer inputs (B T each), and take the fingerprint of the run.

    The model is left as it was. ``asked`` and ``source`` are kept in the file: how the
    model was loaded, and where the inputs came from. With ``rounds`` the time of
    capture is measured, that many times.

    Raises UsageError for inputs that a file cannot hold and for a model in train mode,
    UnsupportedError for a model that recon does not check.
    """
    _require_plain(inputs)
    gpt2.plan(model)
    if model.training:
        raise UsageError(
            "the model is in train mode, in which no two runs agree; call model.eval()"
        )
    before = _hooks(model)
    with gpt2.hooks_of_its_own(model):
        returns: dict[str, set[str]] = defaultdict(set)
        trace, returned = record_and_return(
            model, _watched(gpt2.plan(model), returns), inputs
        )
        require_verifiable(trace)
        own = len(census(model)) - len(foreign(census(model)))
        one = _asked_for_one(model, inputs)
    found = report(
        trace, _LEVELS.names, trace_checks(trace, returned, _LEVELS), _notes(before)
    )
    after = _hooks(model)
    baseline = Baseline(
        format=FORMAT,
        schema_version=SCHEMA_VERSION,
        digest="",
        model=asked or _as_it_is(model),
        environment=_setting(trace.facts.environment, trace.facts.depth),
        source=source,
        inputs={name: tensor.tolist() for name, tensor in inputs.items()},
        hidden_states=_states(trace, returned, found, one, own),
        returns={
            kind: " or ".join(sorted(said)) for kind, said in sorted(returns.items())
        },
        hooks=Hooks(before=before, left=[one for one in after if one not in before]),
        kept_bytes=trace.nbytes,
        overhead=_overhead(model, inputs, rounds) if rounds else None,
        weights=dict(_weights(trace)),
        sites=dict(_sites(trace, found)),
    )
    return Observed(baseline, found)


# -- before the run ------------------------------------------------------------


def _require_plain(inputs: Mapping[str, Any]) -> None:
    for name, given in inputs.items():
        if not isinstance(given, Tensor):
            found = type(given).__name__
        elif given.ndim != 2 or given.is_floating_point() or given.is_complex():
            found = f"{given.dtype} of shape {tuple(given.shape)}"
        else:
            continue
        raise UsageError(
            f"{name}: a baseline holds integer inputs of shape (batch, tokens), found "
            f"{found}"
        )


def _hooks(model: nn.Module) -> list[str]:
    return sorted(str(one) for one in foreign(census(model)))


def _notes(hooks: list[str]) -> list[str]:
    return [f"{one} is live" for one in hooks[:5]]


def _watched(plan: Plan, returns: dict[str, set[str]]) -> Plan:
    """Let every hook of a plan also note what kind of thing its module returns."""
    return replace(plan, taps=tuple(_watching(tap, returns) for tap in plan.taps))


def _watching(tap: Tap, returns: dict[str, set[str]]) -> Tap:
    before: Note | None = tap.note

    def note(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        returns[type(module).__name__].add(_kind(output))
        return None if before is None else before(module, args, kwargs, output)

    return replace(tap, note=note)


def _kind(output: Any) -> str:
    if isinstance(output, tuple | list):
        return f"{type(output).__name__}({', '.join(map(_kind, output))})"
    return "None" if output is None else type(output).__name__


def _asked_for_one(model: nn.Module, inputs: Mapping[str, Any]) -> list[int]:
    """Say which entries ``output_hidden_states=1`` gives: one of them, or all."""
    with torch.no_grad():
        given = gpt2.reference(model, {**inputs, "output_hidden_states": 1})
    return [i for i, state in enumerate(given.hidden_states or ()) if state is not None]


def _as_it_is(model: nn.Module) -> Asked:
    name = getattr(model, "name_or_path", "") or type(model).__name__
    some = next(model.parameters())
    return Asked(
        name=name,
        dtype=None,
        attention=None,
        seed=0,
        device=str(some.device),
    )


# -- what it was like ----------------------------------------------------------


def _overhead(model: nn.Module, inputs: Mapping[str, Any], rounds: int) -> Overhead:
    measured = profile(model, inputs=inputs, rounds=rounds, leak_rounds=_FEWEST)
    found = measured.overhead
    return Overhead(
        ratio=round(found.ratio, 3), low=round(found.low, 3), high=round(found.high, 3)
    )


def _setting(env: Environment, depth: int) -> Setting:
    return Setting(
        recon=__version__,
        python=platform.python_version(),
        torch=env.torch,
        transformers=env.transformers,
        machine=f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        device=env.device,
        threads=env.threads,
        architecture=env.architecture,
        blocks=depth,
        dtype=_dtype(env.dtype),
        autocast=None if env.autocast is None else _dtype(env.autocast),
        attention=env.attention,
    )


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _states(
    trace: Trace, returned: Reference, found: Report, one: list[int], own: int
) -> States:
    states = returned.hidden_states or ()
    return States(
        count=len(states),
        last=_last(trace, states[-1] if states else None),
        one=one,
        hooks=own,
        holds=[c.verdict for c in found.checks if c.identity == "hidden_states"],
    )


def _last(trace: Trace, last: Tensor | None) -> str:
    """Say which site the last hidden state is, by its bits and not by the config."""
    ends = Site("ln_f"), Site("resid_post", trace.facts.depth - 1)
    same = [
        str(place)
        for place in ends
        if last is not None
        and place in trace.tensors
        and torch.equal(trace[place], last)
    ]
    return " and ".join(same) or "unknown"


# -- fingerprints --------------------------------------------------------------


def _weights(trace: Trace) -> Iterator[tuple[str, Weight]]:
    for name, weight, _ in trace.facts.weights_at_run:
        yield (
            name,
            Weight(
                shape=list(weight.shape),
                dtype=_dtype(weight.dtype),
                sha256=fingerprints.content(weight),
                **fingerprints.moments(weight),
                projection=fingerprints.project(weight, name),
            ),
        )


def _sites(trace: Trace, found: Report) -> Iterator[tuple[str, SiteFields]]:
    by_site: dict[str, list[Check]] = defaultdict(list)
    for check in found.checks:
        by_site[check.site].append(check)
    known = {law.site: law for law in laws(trace)}
    for place, tensor in trace.tensors.items():
        law = known.get(place)
        yield str(place), _site(trace, place, tensor, law, by_site[str(place)])


def _site(
    trace: Trace, place: Site, tensor: Tensor, law: Law | None, checks: list[Check]
) -> SiteFields:
    judged = _without_idle_rows(trace, tensor, law)
    gravest = max(checks, key=lambda check: check.severity, default=None)
    return SiteFields(
        shape=list(tensor.shape),
        dtype=_dtype(tensor.dtype),
        sha256=fingerprints.content(tensor),
        **fingerprints.moments(judged),
        low=fingerprints.rounded(float(judged.min())),
        high=fingerprints.rounded(float(judged.max())),
        projection=fingerprints.project(judged, str(place)),
        bound=None if law is None else _bound(trace, law),
        law="" if law is None else law.words,
        inputs=[] if law is None else [str(one) for one in law.inputs],
        weights=[] if law is None else list(law.weights),
        holds="unverified" if gravest is None else gravest.verdict,
    )


def _without_idle_rows(trace: Trace, tensor: Tensor, law: Law | None) -> Tensor:
    """Blank what attention makes of a token that may attend to nothing: anything."""
    idle_of = getattr(None if law is None else law.identity.op, "idle", None)
    if law is None or idle_of is None:
        return tensor
    identity = law.identity
    inputs = [trace[one] for one in identity.inputs] + list(identity.extra)
    return tensor.masked_fill(idle_of(*inputs)[..., None], 0.0)


def _bound(trace: Trace, law: Law) -> float | None:
    """Return the length of the vector of bounds on the elements of one site."""
    each = certify.bounds(trace, law.identity)
    if each is None or not bool(each.isfinite().all()):
        return None
    return float(torch.linalg.vector_norm(each))
