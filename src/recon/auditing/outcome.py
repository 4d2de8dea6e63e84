"""The calls of one audit, one after another, and what comes out of them together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from recon import gpt2
from recon.auditing import promises
from recon.auditing.calls import Call, Caller
from recon.auditing.causes import grouped, once
from recon.auditing.certifying import by_each_other
from recon.auditing.claims import Reader
from recon.auditing.content import digest
from recon.auditing.effects import computed_by, effects, finding, storage
from recon.auditing.findings import Finding, Judged
from recon.auditing.judgement import Judgement
from recon.auditing.judging import Judge
from recon.auditing.passes import alike
from recon.auditing.situations import Situation
from recon.auditing.structure import structure
from recon.auditing.vocabularies import Names
from recon.facts import Environment
from recon.verification import record

_EXACT = frozenset({"wrong-site", "wrong-layer"})
# What torch says where a gradient is asked of a graph that was not kept.
_GRADIENT = re.compile(r"requires?_grad|require grad|grad_fn")
_WITH_GRAD = "two prompts"


@dataclass
class Outcome:
    """The calls of one audit, in turn, and what was found so far."""

    caller: Caller | None
    model: nn.Module
    claims: Mapping[str, str]
    names: Names
    calls: list[Call] = field(default_factory=list)
    tensors: list[Judged] = field(default_factory=list)
    wrong: dict[str, str] = field(default_factory=dict)
    hopeless: bool = False
    _wrong_at_first: set[str] = field(default_factory=set)
    _found: list[Finding] = field(default_factory=list)
    _judgements: list[tuple[str, Judgement]] = field(default_factory=list)
    _conventions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _digests: dict[str, int] = field(default_factory=dict)
    _forms: dict[str, str] = field(default_factory=dict)

    def run(self, situation: Situation) -> None:
        """Call the function once and judge what it returned."""
        assert self.caller is not None
        call = self.caller.call(situation)
        if self._lacks_gradient(call):
            # Nothing else than no_grad stops it, if it works with gradients.
            without = call
            call = self.caller.call(replace(situation, name=_WITH_GRAD, grad=True))
            self._found += [] if call.error else [_for_want_of_gradient(without)]
        self.take(call)

    def _lacks_gradient(self, call: Call) -> bool:
        """Whether a call raised where no gradient was kept, for want of one."""
        main = self._main
        if main is None or call.situation.grad or not call.error or not call.ended:
            return False
        return bool(main.backward) or bool(_GRADIENT.search(call.error))

    def take(self, call: Call) -> None:
        """Judge a call that was made."""
        if not call.ended:
            self._stopped(call)
            return
        self._found += [*effects(call, self.calls), *self._written_again(call)]
        if call.situation.raises:
            self.calls.append(call)
            return
        if call.error:
            self._raised(call)
            self.calls.append(call)
            return
        main = self._main is None
        reader, depth = self._reader(call), len(gpt2.base(self.model).h)
        self._found += structure(call, self._main, reader, depth)
        self._judge(call, main)
        if main:
            self._found += storage(call)
            self._digests = _digests(call)
        self.calls.append(call)

    @property
    def _main(self) -> Call | None:
        """The first call that returned something; the one that is told in full."""
        usable = (c for c in self.calls if not c.error and not c.situation.raises)
        return next(usable, None)

    def _raised(self, call: Call) -> None:
        some = any(not c.error for c in self.calls if not c.situation.raises)
        # The second batch decides: what failed twice at the start fails always.
        self.hopeless = not some and len(self.calls) >= 4
        name = "raises-sometimes" if some else "raises"
        run = call.situation
        self._found.append(
            finding(
                name,
                f"{call.error}, with {run.name}",
                run=run.name,
                # It may be that the code is about the cache that it does not get.
                severity=None if run.cache else "note",
                traceback=call.traceback,
            )
        )

    def _stopped(self, call: Call) -> None:
        """Tell of a call whose time was up; what it left behind is no fault of its own.

        Each further call would take as long, but where it was the pass that raised.
        """
        raises = call.situation.raises
        self.hopeless = not raises
        words = f"the code {call.error}, with {call.situation.name}"
        self._found.append(
            finding(
                "never-ends",
                f"{words}: it tries again for ever" if raises else words,
                run=call.situation.name,
                severity="warning" if raises else None,
                traceback=call.traceback,
            )
        )
        self.calls.append(call)

    # -- tensor by tensor ------------------------------------------------------------

    def _reader(self, call: Call) -> Reader | None:
        traces = [*call.passes, *([call.clean] if call.clean else [])]
        if not traces:
            return None
        facts = traces[0].facts
        context = self.caller.name if self.caller is not None else ""
        return Reader(
            facts.depth,
            facts.tied_last,
            self.claims,
            self.names,
            context,
            bool(call.backward),
        )

    def _judge(self, call: Call, main: bool) -> None:
        reader = self._reader(call)
        if reader is None:
            return
        others = list(self._others(call))
        earlier = [(run, trace) for run, one in others for trace in computed_by(one)]
        judge = Judge(call, reader, earlier, self._conventions, others)
        judged = judge.judge()
        if self.caller is None and call.clean is not None:
            judged = by_each_other(judged, call.clean)
        judged = promises.numbered(promises.held_to(call, judged))
        self._conventions = judge.conventions
        if main:
            self._few(call, judged)
        if main:
            self._forms = {one.name: one.form for one in judged if not one.rule}
        for one in _unpacked(call, _padding_counted(call, judged, self._forms)):
            if call.situation.train and one.rule not in _EXACT:
                continue  # dropout makes other numbers of honest formulas
            if main:
                self.tensors.append(_told(one))
                self._wrong_at_first |= {one.name} if one.rule else set()
            elif one.rule == "unexplained" and one.name not in self._wrong_at_first:
                again = self._main is not None and _same_prompt(self._main, call)
                if again:
                    continue  # told as not-repeatable
            if one.rule and self.wrong.get(one.name) in (None, one.rule):
                self.wrong[one.name] = one.rule
                if not one.follows:
                    self._judgements.append((call.situation.name, one))
            elif one.rule == "other-run" or (main and not one.rule):
                self._judgements.append((call.situation.name, one))

    def _few(self, call: Call, judged: Sequence[Judgement]) -> None:
        """Say if many modules were hooked and one tensor came of it."""
        depth = len(gpt2.base(self.model).h)
        numbered = len(judged) == 1 and "{l}" in judged[0].claim.family
        # What overwrites a key is the last block's; another one was chosen.
        site = judged[0].reading.site if numbered and judged[0].reading else None
        numbered = site is not None and site.layer == depth - 1
        passes = max(1, len(call.passes))
        if numbered and depth > 1 and call.hooks >= depth * passes:
            words = (
                f"the code made {call.hooks} hooks and returned one tensor, "
                f"`{judged[0].name}`: keys may overwrite each other"
            )
            self._found.append(
                finding(
                    "wrong-count",
                    words,
                    places=[judged[0].name],
                    run=call.situation.name,
                    severity="warning",
                )
            )

    def _others(self, call: Call) -> Iterator[tuple[str, Call]]:
        """Yield calls whose values may linger."""
        for other in self.calls[-2:]:
            if not _same_prompt(other, call):
                yield f"an earlier call ({other.situation.name})", other

    @property
    def knows_nothing(self) -> bool:
        """Whether no name promises anything, and no tensor is anything known."""
        told = [one for _, one in self._judgements]
        unclaimed = all(one.status == "unclaimed" for one in self.tensors)
        return bool(told) and unclaimed and not any(one.found for one in told)

    # -- all together ------------------------------------------------------------------

    def findings(self) -> list[Finding]:
        """Return what was found: worst first, one finding a cause."""
        judged = grouped(self._judgements)
        return once([*self._found, *self._changed_later(), *judged])

    def _written_again(self, call: Call) -> Iterator[Finding]:
        """Yield the captures of the first call that this one overwrote.

        Looked at after each call: one on the first prompt would write the same values.
        """
        main = self._main
        now = {} if main is None else _digests(main)
        changed = [name for name, found in now.items() if self._digests[name] != found]
        if changed:
            self._digests |= {name: now[name] for name in changed}
            words = (
                f"`{changed[0]}` changed after it was returned: later passes write it"
            )
            run = call.situation.name
            yield finding("overwritten", words, places=changed, run=run)

    def _changed_later(self) -> Iterator[Finding]:
        """Yield captures of the first call that differ when its prompt runs again."""
        main = self._main
        if main is None:
            return
        again = [c for c in self.calls if c is not main and _same_prompt(c, main)]
        for call in again:
            varied = list(self._varied(main, call))
            if varied and not call.error and not call.situation.raises:
                words = (
                    f"`{varied[0]}` is another tensor when the same prompt runs again"
                )
                name = "not-repeatable"
                if _larger(main, call, varied[0]):
                    name, words = "grows", f"`{varied[0]}` grows with each call"
                yield finding(name, words, places=varied, run=call.situation.name)

    def _varied(self, main: Call, again: Call) -> Iterator[str]:
        """Yield names whose tensors differ by more than rounding between two calls."""
        now = _digests(again)
        for name, before in self._digests.items():
            if name in self._wrong_at_first or now.get(name, before) == before:
                continue
            first, second = main.returned.tensors[name], again.returned.tensors[name]
            if not alike(first, second):
                yield name

    def environment(self) -> Environment:
        """Return what the calls ran on."""
        for call in self.calls:
            for trace in (*call.passes, call.clean):
                if trace is not None:
                    return trace.facts.environment
        ids = torch.zeros(
            1, 1, dtype=torch.long, device=next(self.model.parameters()).device
        )
        return record(self.model, ids).facts.environment


def _for_want_of_gradient(call: Call) -> Finding:
    run = call.situation.name
    words = f"the code asks for gradients, which there are none of {run}: {call.error}"
    return finding(
        "raises-sometimes",
        words,
        run=run,
        severity="note",
        traceback=call.traceback,
        mend="Go backward inside of torch.enable_grad(), if callers may hold no_grad.",
    )


def _same_prompt(one: Call, other: Call) -> bool:
    a, b = one.situation.inputs, other.situation.inputs
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def _larger(before: Call, after: Call, name: str) -> bool:
    first, second = before.returned.tensors[name], after.returned.tensors[name]
    return second.numel() > first.numel()


def _unpacked(call: Call, judged: Iterable[Judgement]) -> Iterator[Judgement]:
    """Tell of tensors that were written out to be judged that they were."""
    for one in judged:
        kind = call.returned.packed.get(one.name)
        words = f"{one.sentence}, in {kind}"
        yield one if kind is None else replace(one, sentence=words)


def _padding_counted(
    call: Call, judged: Sequence[Judgement], forms: Mapping[str, str]
) -> Iterator[Judgement]:
    """Tell means over tokens that are, of a padded batch, no mean that recon knows."""
    mask = call.situation.inputs.get("attention_mask")
    padded = mask is not None and not bool(mask.all())
    for one in judged:
        form = forms.get(one.name, "")
        unknown = one.reading is None or one.rule == "unexplained"
        if padded and unknown and form.endswith("over tokens"):
            words = (
                f"`{one.name}` is {form} where nothing is padded, and elsewhere "
                "neither with the padding nor without it"
            )
            yield replace(one, rule="padding-taken", sentence=words)
        else:
            yield one


def _digests(call: Call) -> dict[str, int]:
    tensors = call.returned.tensors.items()
    return {n: digest(t) for n, t in tensors if t.is_floating_point()}


def _told(one: Judgement) -> Judged:
    claim = str(one.reading) if one.reading is not None else ""
    status = "wrong" if one.rule else "right" if claim else "unclaimed"
    return Judged(
        one.name,
        status,  # type: ignore[arg-type]  # one of the three words
        claim,
        one.sentence,
        tuple(one.tensor.shape),
        str(one.tensor.dtype).removeprefix("torch."),
        one.by,
    )
