"""The gradients that reach the tensors of a pass when someone's code goes backward.

Hooks on the tensors see them; they change nothing, and are taken off again. Backward
passes are told apart by the number that autograd's engine gives to each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.utils.hooks import RemovableHandle

from recon.plan import Tap
from recon.recorder.listening import Hook, fires_again, look
from recon.recorder.recording import Recorder
from recon.sites import Site
from recon.trace import Trace

# A Jacobian takes a backward pass for each of its rows; the first ones tell enough.
_MOST = 16

Gradients: TypeAlias = Mapping[Site, Tensor]


@dataclass
class _Seen:
    """What the hooks saw: by backward pass, then by run of the forward pass."""

    arrived: dict[int, dict[int, dict[Site, Tensor]]] = field(default_factory=dict)
    handles: list[RemovableHandle] = field(default_factory=list)
    # A module that runs twice in a pass makes a site anew: the last one counts.
    latest: dict[tuple[int, Site], int] = field(default_factory=dict)

    def watch(self, run: int, place: Site, tensor: Tensor) -> None:
        """Hook a tensor of a pass, if a gradient may reach it."""
        if not tensor.requires_grad or _transformed(tensor):
            return
        number = self.latest[run, place] = self.latest.get((run, place), -1) + 1

        def arrive(gradient: Tensor | None) -> None:
            if self.latest[run, place] == number:
                self._take(run, place, gradient)

        self.handles.append(_hooked(tensor, arrive))

    def _take(self, run: int, place: Site, gradient: Tensor | None) -> None:
        if gradient is None or gradient.is_sparse or _transformed(gradient):
            return
        task = torch._C._current_graph_task_id()
        if task in self.arrived or len(self.arrived) < _MOST:
            of_run = self.arrived.setdefault(task, {}).setdefault(run, {})
            of_run[place] = gradient.detach().clone()

    def release(self) -> None:
        """Take the hooks off, so that no tensor of theirs keeps anything alive."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()


class GradientRecorder(Recorder):
    """Records passes with their graph, and the gradients that go back through them."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._seen = _Seen()

    def _hook(self, place: int, tap: Tap) -> Hook:
        listen, threads, seen = super()._hook(place, tap), self._threads, self._seen

        def listen_and_watch(
            module: nn.Module,
            args: tuple[Any, ...],
            kwargs: dict[str, Any],
            output: Any,
        ) -> None:
            one = threads.current
            if one is not None and torch.is_grad_enabled() and not is_compiling():
                again = fires_again(tap, one, place)
                for site, port in tap.again if again else tap.reads:
                    tensor = look(port, args, kwargs, output)
                    if tensor is not None:
                        seen.watch(one.run, site, tensor)
            listen(module, args, kwargs, output)

        return listen_and_watch

    def gradients(self, run: int) -> dict[int, Gradients]:
        """Return what reached a pass, by the number of the backward pass, from 0."""
        present = self._plan.present
        return {
            number: {s: present(s, t) for s, t in sorted(of_runs[run].items())}
            for number, of_runs in enumerate(self._seen.arrived.values())
            if run in of_runs
        }

    def clear(self) -> None:
        """Drop passes and hooks; what was seen of gradients stays."""
        self._seen.release()
        super().clear()


def of_gradients(trace: Trace, gradients: Gradients) -> Trace:
    """Return a trace that holds gradients in place of what the pass computed."""
    return Trace(trace.run, gradients, trace.facts, thread=trace.thread)


def _hooked(tensor: Tensor, arrive: Callable[[Tensor | None], None]) -> RemovableHandle:
    """Hook the gradient of a tensor, or of what it is but another name of.

    A module with a full backward hook sees its arguments through a node of its own,
    which only what goes through the module comes back to: of the input of ln_2 that
    would be less than the whole gradient.
    """
    node = tensor.grad_fn
    behind, number = None, 0
    if node is not None and node.name() == "BackwardHookFunctionBackward":
        behind, number = node.next_functions[tensor.output_nr]
    handle: RemovableHandle = (
        tensor.register_hook(arrive)
        if behind is None
        else behind.register_prehook(lambda several: arrive(several[number]))
    )
    return handle


def _transformed(tensor: Tensor) -> bool:
    """Whether a transformation of torch.func or vmap stands behind a tensor."""
    functorch = torch._C._functorch
    return functorch.is_functorch_wrapped_tensor(
        tensor
    ) or functorch.is_legacy_batchedtensor(tensor)
