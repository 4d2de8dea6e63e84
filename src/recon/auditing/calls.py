"""Run a capture function in several situations, and keep all that happened."""

from __future__ import annotations

import inspect
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from recon import deadline, gpt2
from recon.auditing.alone import alone
from recon.auditing.flow import Cut, gradients_stop
from recon.auditing.registering import Registered, registrations
from recon.auditing.returned import Returned, take_apart
from recon.auditing.signatures import Function, accepted, by_name, wanted
from recon.auditing.situations import Situation, counted
from recon.deadline import USUAL, NeverEndsError, within
from recon.errors import ReconError
from recon.recorder import (
    Edit,
    GradientRecorder,
    Onward,
    Options,
    Recorder,
    of_gradients,
)
from recon.trace import Trace
from recon.verification import told_as_the_models_own
from recon.watch import Change, Keeper, State, changes

_SEED = 20_26
_OUR_FILES = (__file__, deadline.__file__)
# The time of a call, unless one is given: at least the usual one, and that of as many
# passes, which patching every head of every block one by one takes.
_PASSES = 1000


@dataclass(frozen=True, eq=False)
class Call:
    """What one call returned, what the model did meanwhile, and what was left behind.

    ``passes`` are copies made as the model ran, ``aliases`` the same tensors by
    reference, so that later edits show; ``clean`` is the model's own run on these
    inputs without the code, ``unmasked`` that without the mask, if there is one, and
    ``counted`` that with positions counted from where the text of each row begins, if
    there is padding before it and no positions are given; ``partial`` are copies of
    passes that did not run to their end.
    ``hooks`` counts the hooks that the code registered, ``cleaned`` those that it took
    off again, and ``managed`` holds the numbers of those that a context manager made;
    ``broken`` says why hidden states would be missing afterwards, ``cut`` up to where
    no gradient of each pass reaches, ``edits`` what each was made to go on with in
    place of what it had; ``ended`` is False if its time was up. ``backward`` holds, for
    each backward pass that the code ran, the number of each of the ``passes`` that it
    went through and the gradients that reached it.
    """

    situation: Situation
    returned: Returned
    passes: tuple[Trace, ...]
    aliases: tuple[Trace, ...]
    clean: Trace | None
    unmasked: Trace | None
    changes: tuple[Change, ...]
    hooks: int
    versions: Mapping[str, int]
    error: str = ""
    traceback: str = ""
    broken: str = ""
    caught: bool = False
    cleaned: int = 0
    managed: frozenset[int] = frozenset()
    cut: tuple[Cut | None, ...] = ()
    counted: Trace | None = None
    edits: tuple[tuple[Edit, ...], ...] = ()
    ended: bool = True
    backward: tuple[Mapping[int, Trace], ...] = ()
    partial: tuple[Trace, ...] = ()


@dataclass(frozen=True, eq=False)
class _Run:
    """What is known when the function has returned or raised."""

    returned: Returned
    before: State
    after: State
    registered: Registered
    caught: bool
    error: str
    traceback: str
    ended: bool
    edited: tuple[Change, ...]

    @property
    def made(self) -> set[int]:
        """The numbers of the hooks that the code itself made."""
        return self.registered.keys - {
            one.key for one in self.after.found if one.by_transformers
        }


class _Handed:
    """The tensors that a function is given, and copies of them."""

    def __init__(self, given: Mapping[str, Tensor]) -> None:
        self._given = given
        self._copies = {name: tensor.clone() for name, tensor in given.items()}

    def changes(self) -> Iterator[Change]:
        """Yield what the function edited in place."""
        for name, was in self._copies.items():
            now = self._given[name]
            if not torch.equal(was, now):
                alike = was.shape == now.shape
                count = int((was != now).sum()) if alike else was.numel()
                words = f"{count} of {was.numel()} values are others"
                yield Change("inputs-changed", name, words)


def _broken(model: nn.Module) -> str:
    try:
        return gpt2.hidden_states_problem(model)
    except AttributeError:
        return ""  # the code took the blocks away, which is told by itself


class Caller:
    """Calls one function on one model, and puts everything back after each call.

    A call may take ``timeout`` seconds; None: as long as is fair at the model's pace.
    """

    def __init__(
        self, function: Function, model: nn.Module, timeout: float | None = None
    ) -> None:
        self._function, self._model = function, model
        self._timeout, self._pass = timeout, 0.0
        self._takes = accepted(function)
        self._by_name = by_name(function)
        self._keeper = Keeper(model)
        self._body = False

    @property
    def name(self) -> str:
        """What the function is called; it may say what a bare ``layer_3`` is of."""
        return str(getattr(self._function, "__name__", ""))

    def require_run(self, situation: Situation) -> None:
        """Raise UsageError for a model that cannot run by itself."""
        self._by_itself(situation, situation.inputs)

    def call(self, situation: Situation) -> Call:
        """Run the function once; never raises what the function raises."""
        done = self._once(situation)
        whole = gpt2.base(self._model) is self._model
        again = not done.passes and done.ended and not situation.raises
        if again and not self._body and not whole:
            # The function may run the body alone, without the head.
            self._body = True
            done = self._once(situation)
            self._body = bool(done.passes)
        return done

    def _once(self, situation: Situation) -> Call:
        clean = None if situation.raises else self._clean(situation)
        root = gpt2.base(self._model) if self._body else self._model
        copies = Recorder(gpt2.plan(root), Options(clone=True, keep="all"))
        aliases = GradientRecorder(gpt2.plan(root), Options(keep="all", grad=True))
        onward = Onward(gpt2.plan(root), gpt2.passages(root))
        with self._prepared(situation) as seen:
            with gpt2.hooks_of_its_own(self._model), copies, aliases, onward:
                run = self._run(situation)
                broken = _broken(self._model)
            seen.append(run.after)
            same = _complete(aliases)
            backward = _backward(aliases, same)
            aliases.clear()
            found = [*changes(run.before, run.after), *run.edited]
            found += self._keeper.unpickled()
        versions = {
            name: tensor._version
            for name, tensor in run.returned.tensors.items()
            if not tensor.is_inference()
        }
        return Call(
            situation,
            run.returned,
            _complete(copies),
            tuple(map(_without_graph, same)),
            clean,
            self._unmasked(situation),
            tuple(found),
            len(run.made),
            versions,
            run.error,
            run.traceback,
            broken,
            run.caught,
            len(run.made - {one.key for one in run.after.found}),
            frozenset(run.registered.managed),
            tuple(map(gradients_stop, same)),
            self._counted(situation),
            onward.edits,
            run.ended,
            backward,
            _partial(copies),
        )

    def _run(self, situation: Situation) -> _Run:
        returned, error, told, ended = Returned(), "", "", True
        inputs = {name: given.clone() for name, given in situation.inputs.items()}
        ids = inputs.pop("input_ids")
        more = wanted(self._function, ids) | inputs
        more = {name: given for name, given in more.items() if name in self._takes}
        torch.set_grad_enabled(situation.grad)
        handed = _Handed({"input_ids": ids, **more})
        before, caught = State.of(self._model, self._keeper.state.weights), True
        with registrations() as registered:
            try:
                with alone():
                    call = partial(self._called, ids, more)
                    returned = within(self.seconds, call)
            except NeverEndsError as late:
                ended, error, told = False, str(late), "".join(late.stack.format())
            except KeyboardInterrupt:
                raise
            except BaseException as raised:  # its own: told as a finding
                caught = False
                if not _interrupted(raised):
                    error, told = _words(raised), _told(raised)
        after = self._keeper.look()
        edited = tuple(handed.changes())
        return _Run(
            returned, before, after, registered, caught, error, told, ended, edited
        )

    @property
    def seconds(self) -> float:
        """How long a call may take."""
        return self._timeout or max(USUAL, _PASSES * self._pass)

    def _called(self, ids: Tensor, more: Mapping[str, Tensor]) -> Returned:
        """Call, and look at what it returned, which may run more code of theirs."""
        given = {"model": self._model, "input_ids": ids}
        by_name = {name: given.pop(name) for name in self._by_name}
        value = self._function(*given.values(), **by_name, **more)
        if inspect.iscoroutine(value):
            value.close()
        return take_apart(value)

    def _clean(self, situation: Situation) -> Trace | None:
        """Return what the model computes by itself, from the same random state."""
        try:
            return self._by_itself(situation, situation.inputs)
        except ReconError:
            return None

    @torch.no_grad()
    def _by_itself(self, situation: Situation, inputs: Mapping[str, Tensor]) -> Trace:
        """Run the model as people call it: with a cache, if its config says so."""
        with self._prepared(situation) as seen:
            seen.append(self._keeper.state)  # such a pass edits no weights
            gpt2.require_inputs(self._model, inputs)
            recorder = Recorder(gpt2.plan(self._model), Options())
            begun = time.perf_counter()
            with recorder, told_as_the_models_own():
                self._model(**inputs)
            self._pass = max(self._pass, time.perf_counter() - begun)
            return recorder.trace

    def _unmasked(self, situation: Situation) -> Trace | None:
        if "attention_mask" not in situation.inputs:
            return None
        ids = situation.inputs["input_ids"]
        return self._by_itself(situation, {"input_ids": ids})

    def _counted(self, situation: Situation) -> Trace | None:
        mask = situation.inputs.get("attention_mask")
        if mask is None or "position_ids" in situation.inputs or bool(mask[:, 0].all()):
            return None
        return self._by_itself(
            situation, {**situation.inputs, "position_ids": counted(mask)}
        )

    @contextmanager
    def _prepared(self, situation: Situation) -> Iterator[list[State]]:
        """Put everything back at the end, from the last state that was seen, if any."""
        config = gpt2.base(self._model).config
        cached, config.use_cache = (
            config.use_cache,
            config.use_cache and situation.cache,
        )
        self._model.train(situation.train)
        torch.manual_seed(_SEED + situation.seed)
        seen: list[State] = []
        try:
            with gpt2.interrupted(self._model) if situation.raises else nullcontext():
                yield seen
        finally:
            self._keeper.put_back(seen[-1].weights if seen else None)
            config.use_cache = cached


def _complete(recorder: Recorder) -> tuple[Trace, ...]:
    """Return the passes that ran to their end; none if blocks were replaced in them."""
    try:
        return tuple(one for one in recorder.traces if one.complete)
    except AttributeError:
        return ()


def _partial(recorder: Recorder) -> tuple[Trace, ...]:
    """Return the passes that code stopped on their way."""
    try:
        return tuple(one for one in recorder.traces if not one.complete)
    except AttributeError:
        return ()


def _backward(
    recorder: GradientRecorder, passes: Sequence[Trace]
) -> tuple[Mapping[int, Trace], ...]:
    """Return the backward passes that reached complete passes, in their order."""
    reached: dict[int, dict[int, Trace]] = {}
    for number, one in enumerate(passes):
        for backward, gradients in recorder.gradients(one.run).items():
            reached.setdefault(backward, {})[number] = of_gradients(one, gradients)
    return tuple(reached[backward] for backward in sorted(reached))


def _without_graph(trace: Trace) -> Trace:
    """Return the tensors by reference, so that the pass's graph can be let go."""
    return replace(trace, tensors={s: t.detach() for s, t in trace.tensors.items()})


def _interrupted(error: BaseException | None) -> bool:
    """Whether an error is, or was raised while handling, the one raised on purpose."""
    while error is not None:
        if isinstance(error, gpt2.InterruptionError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _words(error: BaseException) -> str:
    words = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def _told(error: BaseException) -> str:
    """Return the traceback from the audited function on."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename in _OUR_FILES:
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames))
