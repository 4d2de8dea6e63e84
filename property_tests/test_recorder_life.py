"""A recorder's life in any order of events, checked against a plain account of it."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)
from torch import Tensor, nn

import recon
from recon.ops import Lookup
from recon.testing.strategies import VOCABULARY, Recipe

RECORDERS_AT_MOST = 3
HERE = 0  # this thread; others count from 1


@dataclass
class Pass:
    """What should be known of one forward pass."""

    run: int
    ids: Tensor
    thread: int
    complete: bool
    weights_edited: bool = False
    noticed: bool = False  # that its thread has ended


@dataclass(eq=False)
class Account:
    """A recorder, and what it should hold."""

    recorder: recon.Recorder
    keep: str
    on: bool = False
    begun: int = 0
    kept: list[Pass] = field(default_factory=list)

    def add(self, ids: Tensor, thread: int, complete: bool) -> None:
        if self.keep == "last":
            # A thread that is not this one is a new one, and has ended since.
            gone = [one for one in self.kept if one.noticed and thread != HERE]
            gone += [one for one in self.kept if one.thread == thread]
            self.kept = [one for one in self.kept if one not in gone]
            for one in self.kept:
                one.noticed = one.thread != HERE
        self.kept.append(Pass(self.begun, ids, thread, complete))
        self.begun += 1


class StopError(Exception):
    """Raised by a hook of somebody else's."""


def pass_by(*_: object) -> None:
    """Do nothing, as a hook of somebody else's."""


def kept_alive(trace: recon.Trace) -> Iterator[Tensor]:
    """Yield what a trace captured, and what it noted of the calls."""
    yield from trace.tensors.values()
    for call in trace.facts.attention.values():
        noted = (call.mask, call.keys, call.values, *call.rng)
        yield from (tensor for tensor in noted if tensor is not None)
    for maker in trace.facts.makers.values():
        if isinstance(maker, Lookup):
            yield maker.ids


class RecorderLife(RuleBasedStateMachine):
    accounts = Bundle("accounts")
    ids = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(0, 99))
    errors = st.sampled_from([StopError, KeyboardInterrupt])

    @initialize(
        target=accounts,
        attention=st.sampled_from(["eager", "sdpa"]),
        train=st.booleans(),
        keep=st.sampled_from(["last", "all"]),
    )
    def load(self, attention: str, train: bool, keep: str):
        options = {"n_layer": 2, "n_head": 2, "n_embd": 4}
        self.model = Recipe(options, attention=attention, train=train).build()
        self.every: list[Account] = []
        # By module and kind, the numbers of the hooks that others put there, in order.
        self.foreign: dict[tuple[str, str], list[int]] = defaultdict(list)
        self.handles: list[tuple[str, str, object]] = []
        self.threads = HERE
        self.running = [path for path, _ in self._that_run()]
        # Most lives should have something to record.
        self.every.append(Account(recon.capture(self.model, keep=keep), keep))
        self.enter(self.every[0])
        return self.every[0]

    def _that_run(self) -> Iterator[tuple[str, nn.Module]]:
        ran: list[nn.Module] = []
        modules = dict(self.model.named_modules())
        handles = [
            m.register_forward_hook(lambda m, *_: ran.append(m))
            for m in modules.values()
        ]
        self.model(torch.tensor([[1]]))
        for handle in handles:
            handle.remove()
        yield from ((path, m) for path, m in modules.items() if m in ran)

    # -- recorders -------------------------------------------------------------

    @rule(target=accounts, keep=st.sampled_from(["last", "all"]))
    def make(self, keep: str):
        if len(self.every) == RECORDERS_AT_MOST:
            return multiple()
        self.every.append(Account(recon.capture(self.model, keep=keep), keep))
        return self.every[-1]

    @rule(account=accounts)
    def enter(self, account: Account):
        if account.on:
            with pytest.raises(recon.UsageError, match="on already"):
                account.recorder.__enter__()
        else:
            assert account.recorder.__enter__() is account.recorder
            account.on = True

    @rule(account=accounts, error=st.none() | errors)
    def leave(self, account: Account, error: type[BaseException] | None):
        account.recorder.__exit__(error, error and error(), None)
        account.on = False

    @rule(account=accounts)
    def clear(self, account: Account):
        account.recorder.clear()
        account.kept.clear()
        assert account.recorder.nbytes == 0

    # -- the model -------------------------------------------------------------

    @rule(shape=ids)
    def run(self, shape: tuple[int, int, int]):
        ids = self._ids(shape)
        with torch.no_grad():
            self.model(ids)
        self._ran(ids)

    @rule(shape=ids)
    def run_in_another_thread(self, shape: tuple[int, int, int]):
        ids = self._ids(shape)
        thread = threading.Thread(target=self.model, args=(ids,))
        thread.start()
        thread.join()
        self.threads += 1
        self._ran(ids, thread=self.threads)

    @rule(shape=ids, data=st.data(), error=errors, before=st.booleans())
    def run_that_is_cut_short(
        self, shape, data: st.DataObject, error: type[BaseException], before: bool
    ):
        path = data.draw(st.sampled_from(self.running), label="raises in")
        ids = self._ids(shape)

        def raises(*_: object) -> None:
            raise error

        with self._hooked(path, raises, before=before), pytest.raises(error):
            self.model(ids)
        # After the root's own hooks there is nothing left that could go wrong.
        self._ran(ids, complete=path == "" and not before)

    @rule(shape=ids, new=st.integers(1, 3))
    def generate(self, shape: tuple[int, int, int], new: int):
        ids = self._ids(shape)
        out = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            pad_token_id=0,
            eos_token_id=None,
        )
        steps = [ids, *(out[:, i : i + 1] for i in range(ids.shape[1], out.shape[1]))]
        for step in steps[:new]:
            self._ran(step)

    @rule(shape=ids)
    def verify(self, shape: tuple[int, int, int]):
        ids = self._ids(shape)
        assert recon.verify(self.model, ids).verdict == "reconciled"
        self._ran(ids)
        self._ran(ids)

    @rule(layer=st.integers(0, 1))
    def call_a_block_by_itself(self, layer: int):
        self.model.transformer.h[layer](torch.ones(1, 2, 4))

    @rule(train=st.booleans())
    def set_mode(self, train: bool):
        self.model.train(train)

    @rule(data=st.data())
    def edit_a_weight_in_place(self, data: st.DataObject):
        names = sorted(dict(self.model.named_parameters()))
        name = data.draw(st.sampled_from(names), label="weight")
        with torch.no_grad():
            self.model.get_parameter(name).mul_(1.5)
        for account in self.every:
            for one in account.kept:
                one.weights_edited = True

    # -- hooks of others -------------------------------------------------------

    @rule(data=st.data(), before=st.booleans())
    def add_a_hook(self, data: st.DataObject, before: bool):
        path = data.draw(st.sampled_from(self.running), label="module")
        handle = self._register(path, pass_by, before)
        kind = "_forward_pre_hooks" if before else "_forward_hooks"
        self.foreign[path, kind].append(handle.id)
        self.handles.append((path, kind, handle))

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def remove_a_hook(self, data: st.DataObject):
        place = data.draw(st.integers(0, len(self.handles) - 1), label="hook")
        path, kind, handle = self.handles.pop(place)
        handle.remove()
        self.foreign[path, kind].remove(handle.id)

    # -- what must hold --------------------------------------------------------

    @rule(account=accounts)
    def read_the_last_pass(self, account: Account):
        mine = [one for one in account.kept if one.thread == HERE]
        if not mine:
            with pytest.raises(recon.CaptureError):
                account.recorder.trace  # noqa: B018 - reading it is what raises
            return
        assert account.recorder.trace.run == mine[-1].run
        self._check(account.recorder.trace, mine[-1])

    @invariant()
    def hooks_of_others_are_left_alone(self):
        nobody_on = not any(account.on for account in self.every)
        for path, module in self.model.named_modules():
            for kind in ("_forward_pre_hooks", "_forward_hooks"):
                expected = self.foreign.get((path, kind), [])
                found = list(getattr(module, kind))
                assert [key for key in found if key in expected] == expected
                if nobody_on:
                    assert found == expected, f"{kind} left on {path!r}"
                    assert not getattr(module, f"{kind}_with_kwargs")
            if nobody_on:
                assert not module._forward_hooks_always_called

    @invariant()
    def each_recorder_holds_its_passes(self):
        for account in self.every:
            traces = account.recorder.traces
            assert [t.run for t in traces] == [one.run for one in account.kept]
            assert [t.complete for t in traces] == [p.complete for p in account.kept]
            threads = {
                (t.thread, p.thread) for t, p in zip(traces, account.kept, strict=True)
            }
            assert len(dict(threads)) == len(threads) == len({p for _, p in threads})
            storages = {
                tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
                for trace in traces
                for tensor in kept_alive(trace)
            }
            # A pass cut short knows less of what it holds than it holds.
            least = sum(storages.values())
            assert account.recorder.nbytes >= least
            if all(trace.complete for trace in traces):
                assert account.recorder.nbytes == least

    def teardown(self):
        for account in getattr(self, "every", []):
            account.recorder.__exit__(None, None, None)
            account.on = False
            for trace, one in zip(account.recorder.traces, account.kept, strict=True):
                self._check(trace, one)
        if hasattr(self, "every"):
            self.hooks_of_others_are_left_alone()

    def _check(self, trace: recon.Trace, one: Pass) -> None:
        """Verify a trace; all of its tensors have to come from its own pass."""
        assert trace.run == one.run
        if not one.complete:
            assert trace.failure not in (None, "still running")
            with pytest.raises(recon.UsageError, match="did not finish"):
                recon.verify_trace(trace)
            return
        if one.weights_edited:
            with pytest.raises(recon.UsageError, match="edited or converted"):
                recon.verify_trace(trace)
            return
        assert torch.equal(trace.facts.makers[recon.site("wte")].ids, one.ids)
        report = recon.verify_trace(trace)
        assert [c.describe() for c in report.checks if c.verdict != "exact"] == []

    # -- helpers ---------------------------------------------------------------

    def _ran(self, ids: Tensor, *, complete: bool = True, thread: int = HERE) -> None:
        for account in self.every:
            if account.on:
                account.add(ids, thread, complete)

    @staticmethod
    def _ids(shape: tuple[int, int, int]) -> Tensor:
        batch, tokens, seed = shape
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(VOCABULARY, (batch, tokens), generator=generator)

    def _register(self, path: str, hook: Callable, before: bool):
        module = self.model.get_submodule(path)
        if before:
            return module.register_forward_pre_hook(hook)
        return module.register_forward_hook(hook)

    @contextmanager
    def _hooked(self, path: str, hook: Callable, *, before: bool) -> Iterator[None]:
        handle = self._register(path, hook, before)
        try:
            yield
        finally:
            handle.remove()


TestRecorderLife = RecorderLife.TestCase


# 2026-11: torch calls no hook after KeyboardInterrupt, so the pass stayed under way.
def test_an_interrupted_pass_is_over_and_can_be_cleared():
    model = Recipe({"n_layer": 1, "n_head": 1, "n_embd": 4}).build()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    model.transformer.ln_f.register_forward_hook(interrupt)
    with recon.capture(model) as recorder:
        with pytest.raises(KeyboardInterrupt):
            model(torch.tensor([[1]]))
        assert recorder.traces[0].failure == "interrupted"
        recorder.clear()
        assert recorder.nbytes == 0
