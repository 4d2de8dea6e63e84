"""Checking a pass while it runs: a stage at a time, keeping one block's tensors."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from recon import gpt2
from recon.checks import (
    Levels,
    Placed,
    firings,
    identity_checks,
    in_order,
    no_states,
    state_check,
)
from recon.compare import Check
from recon.ledger import embeddings, final_norm, updates
from recon.plan import Plan
from recon.recorder import Consumer, Options, Recorder
from recon.results import Report, report
from recon.sites import Site
from recon.trace import Trace


class StageChecker:
    """Takes the stages of one pass and keeps their checks, not their tensors.

    Of the residual stream it holds one state (B T D), to which each block's updates are
    added in the model's order.
    """

    def __init__(self, levels: Levels) -> None:
        self._levels = levels
        self._unsupported: set[str] = set()
        self._stream: Tensor | None = None
        self._placed: list[Placed] = []

    def __call__(self, trace: Trace, stage: int) -> None:
        """Check one stage; called by the recorder while the model runs."""
        self._unsupported.update(trace.facts.unsupported)
        with torch.no_grad():
            if "ledger" in self._levels.names:
                with trace.arithmetic():
                    self._placed += self._ledger(trace, stage)
            listed = gpt2.stage_identities(trace, stage)
            self._placed += identity_checks(trace, listed, self._levels)

    def checks(self, trace: Trace) -> tuple[Check, ...]:
        """Return the checks of a pass, shallowest first.

        What recon does not check, or a pass that did not finish, is *unverified*.
        """
        reasons = [f"recon does not check {what}" for what in sorted(self._unsupported)]
        if not trace.complete:
            reasons.append(f"the pass did not finish ({trace.failure})")
        placed = [*firings(trace), *self._placed]
        placed += [((-2.0,), _not_checked(words)) for words in reasons]
        return tuple(in_order(placed))

    def _ledger(self, trace: Trace, stage: int) -> Iterator[Placed]:
        try:
            yield from self._add(trace, stage)
        except KeyError as error:
            self._stream = None
            yield (1.0, float(stage), 0.0), no_states(str(error))

    def _add(self, trace: Trace, stage: int) -> Iterator[Placed]:
        depth = trace.facts.depth
        if stage < 0:
            for _, term in embeddings(trace):
                self._stream = term if self._stream is None else self._stream + term
            return
        if self._stream is None:
            return
        if stage < depth:
            found = trace[Site("resid_pre", stage)]
            yield state_check(self._stream, found, stage, last=False)
            for _, update in updates(trace, stage):
                self._stream = self._stream + update
        elif trace.facts.tied_last:
            rebuilt = final_norm(trace)(self._stream)
            yield state_check(rebuilt, trace[Site("ln_f")], depth, last=True)
        else:
            found = trace[Site("resid_post", depth - 1)]
            yield state_check(self._stream, found, depth, last=True)


def _not_checked(reason: str) -> Check:
    return Check("model", "supported", "capture", "unverified", reason=reason)


class CheckingRecorder(Recorder):
    """A recorder that checks each pass while it runs, and keeps no tensor of it."""

    def __init__(self, plan: Plan, options: Options, levels: Levels) -> None:
        checkers: dict[int, StageChecker] = {}
        self._checkers, self._levels = checkers, levels

        # No method: a recorder that refers to itself waits for Python's collector.
        def checker(run: int) -> Consumer:
            return checkers.setdefault(run, StageChecker(levels))

        super().__init__(plan, options, checker)

    @property
    def reports(self) -> tuple[Report, ...]:
        """One report for each pass still kept, in the order in which they began."""
        traces = self.traces
        kept = {trace.run: self._checkers[trace.run] for trace in traces}
        for run in self._checkers.keys() - kept.keys():
            del self._checkers[run]
        return tuple(
            report(
                trace,
                self._levels.names,
                kept[trace.run].checks(trace),
                self._levels.notes,
            )
            for trace in traces
        )
