"""``recon.audit``: judge a capture function, or captures made elsewhere."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recon import gpt2
from recon.auditing.calls import Call, Caller
from recon.auditing.claims import concern
from recon.auditing.findings import AuditReport
from recon.auditing.given import of_its_own
from recon.auditing.outcome import Outcome
from recon.auditing.returned import take_apart
from recon.auditing.rules import rule
from recon.auditing.signatures import Function, accepted
from recon.auditing.situations import (
    Effort,
    Situation,
    require_effort,
    situations,
)
from recon.auditing.vocabularies import Names
from recon.deadline import require_seconds
from recon.errors import UsageError
from recon.listed import listed
from recon.verification import record

_MOST_SHOWN = 4
Progress = Callable[[str, int, int], None]


def audit(
    function: Function,
    model: nn.Module,
    *,
    inputs: Mapping[str, Tensor] | None = None,
    claims: Mapping[str, str] | None = None,
    names: Names = "auto",
    ignore: Sequence[str] = (),
    effort: Effort = "default",
    strict: bool = False,
    timeout: float | None = None,
    target: str = "",
    model_name: str = "",
    progress: Progress | None = None,
) -> AuditReport:
    """Judge whether the tensors that ``function`` returns are what their names say.

    ``function(model, input_ids)`` returns a mapping of names to tensors, however
    nested; ``attention_mask``, ``position_ids`` and ``token_type_ids`` are passed if it
    takes them. It is called several times, with inputs of recon's choice (first with
    ``inputs``, if given); the model is put back after each call. ``claims`` maps names
    to sites, ``layer_{l}`` to ``h.{l}.resid_post`` for one; ``ignore`` names rules to
    leave out, by code or name; with ``strict`` notes count as findings. A call that
    has not ended after ``timeout`` seconds is stopped; without it, after two minutes,
    or the time of a thousand passes if that is more.

    Raises UnsupportedError for a model that is no GPT-2, UsageError for an unknown rule
    or site, and for claims of which none is about a tensor that it returned. What the
    function raises is a finding.
    """
    begun = time.perf_counter()
    require_seconds(timeout)
    require_effort(effort)
    ignored = {rule(word).code for word in ignore}
    if not callable(function):
        raise UsageError(
            f"{function!r} is a {type(function).__name__}; expected a function of a "
            "model and input_ids (recon audit on the command line takes a file's name)"
        )
    gpt2.plan(model)
    if inputs is not None:
        gpt2.require_inputs(model, inputs)
    planned = list(situations(model, inputs, accepted(function), effort))
    caller = Caller(function, model, timeout)
    outcome = Outcome(caller, model, claims or {}, names)
    own = list(of_its_own(model))
    process = _Generators()
    try:
        caller.require_run(planned[0])
        for number, situation in enumerate(planned):
            if progress is not None:
                progress(situation.name, number, len(planned))
            outcome.run(situation)
            if outcome.hopeless:
                break
    finally:
        process.put_back()
    _require_used(claims or {}, outcome)
    told = [*outcome.findings(), *own]
    found = [one for one in told if one.rule.code not in ignored]
    left_out = len(told) - len(found)
    file, line = _source(function)
    return AuditReport(
        target=target or getattr(function, "__qualname__", repr(function)),
        model=model_name or type(model).__name__,
        environment=outcome.environment(),
        findings=tuple(found),
        tensors=tuple(outcome.tensors),
        runs=tuple(call.situation.name for call in outcome.calls),
        strict=strict,
        ignored=left_out,
        seconds=time.perf_counter() - begun,
        file=file,
        line=line,
    )


def audit_captures(
    tensors: Mapping[str, Any],
    model: nn.Module,
    *,
    inputs: Mapping[str, Tensor],
    claims: Mapping[str, str] | None = None,
    names: Names = "auto",
    ignore: Sequence[str] = (),
    strict: bool = False,
    target: str = "",
    model_name: str = "",
) -> AuditReport:
    """Judge captures that were made elsewhere, against this model's run on ``inputs``.

    Raises as ``audit`` does.
    """
    begun = time.perf_counter()
    ignored = {rule(word).code for word in ignore}
    gpt2.require_inputs(model, inputs)
    situation = Situation("the given inputs", dict(inputs))
    clean = record(model, **inputs)
    returned = take_apart(tensors)
    call = Call(situation, returned, (), (), clean, None, (), 0, {})
    outcome = Outcome(None, model, claims or {}, names)
    outcome.take(call)
    _require_used(claims or {}, outcome)
    if outcome.knows_nothing:
        size = " x ".join(map(str, inputs["input_ids"].shape))
        raise UsageError(
            f"none of {len(outcome.tensors)} captures is anything that the model "
            f"computes on {size} tokens: are these the inputs they were made from?"
        )
    found = [one for one in outcome.findings() if one.rule.code not in ignored]
    return AuditReport(
        target=target or "captures",
        model=model_name or type(model).__name__,
        environment=clean.facts.environment,
        findings=tuple(found),
        tensors=tuple(outcome.tensors),
        runs=(situation.name,),
        strict=strict,
        ignored=len(outcome.findings()) - len(found),
        seconds=time.perf_counter() - begun,
    )


def _require_used(claims: Mapping[str, str], outcome: Outcome) -> None:
    """Refuse claims if all are about names that are not there: none was judged."""
    names = {name for call in outcome.calls for name in call.returned.tensors}
    names |= {one.name for one in outcome.tensors}
    if names and claims and not concern(claims, names):
        raise UsageError(
            f"claim {next(iter(claims))!r}: no tensor has such a name; "
            f"there are {listed(sorted(names), _MOST_SHOWN)}"
        )


class _Generators:
    """The process's generators; an audit gives them back."""

    def __init__(self) -> None:
        self._state = torch.get_rng_state()

    def put_back(self) -> None:
        torch.set_rng_state(self._state)


def _source(function: Function) -> tuple[str, int]:
    try:
        inner = inspect.unwrap(function)
        file = inspect.getsourcefile(inner) or ""
        return file, inspect.getsourcelines(inner)[1]
    except (TypeError, OSError):
        return "", 0
