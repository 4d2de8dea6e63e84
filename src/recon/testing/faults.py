"""Wrong capture functions, made out of a right one: does a test see the difference?

A fault is either in a tensor that is returned, or in what the call leaves behind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_unflatten

from recon.errors import UsageError

Capture: TypeAlias = Callable[..., Any]
Damage: TypeAlias = Callable[[Tensor], Tensor]


def _element(x: Tensor) -> Tensor:
    """Move the last element by the root mean square of all, or by 1 if that is 0."""
    scale = x.double().square().mean().sqrt()
    damaged = x.clone()
    damaged.view(-1)[-1] += (scale if scale > 0 else scale + 1).to(x.dtype)
    return damaged


def _token_late(x: Tensor) -> Tensor:
    # B T D, or B H T d.
    return x.roll(1, -2)


# Each keeps shape and dtype, so that nothing but the values can tell.
_IN_A_TENSOR: Mapping[str, tuple[str, Damage]] = {
    "element": ("has one element that is off", _element),
    "scale": ("is one percent too large", lambda x: x * 1.01),
    "sign": ("is negated", torch.neg),
    "zeros": ("is all zeros", torch.zeros_like),
    "nan": ("is all NaN", lambda x: torch.full_like(x, float("nan"))),
    "row": (
        "has the first row of the batch in every row",
        lambda x: x[:1].expand_as(x).clone(),
    ),
    "token": ("is one token late", _token_late),
    "half": (
        "went through bfloat16 and back",
        lambda x: x.to(torch.bfloat16).to(x.dtype),
    ),
}


def _swap(tensors: Mapping[int, Tensor], place: int) -> Tensor | None:
    """Return another tensor of the same shape, the next that holds something else."""
    mine = tensors[place]
    others = sorted(tensors, key=lambda n: (n <= place, n))
    alike = (t for n in others if (t := tensors[n]).shape == mine.shape)
    same = (t for t in alike if t.dtype == mine.dtype and _differ(t, mine))
    found = next(same, None)
    return None if found is None else found.clone()


def _differ(one: Tensor, other: Tensor) -> bool:
    return not torch.equal(one, other)


_SWAP = ("swap", "is another tensor of the same shape")
_LEFT_BEHIND: Mapping[str, str] = {
    "hook": "a forward hook is left on the model",
    "mode": "the model is left in another mode: training or evaluation",
    "weight": "a bias of the model is edited",
}
FAULTS = (*_IN_A_TENSOR, _SWAP[0], *_LEFT_BEHIND)


@dataclass(frozen=True, repr=False)
class Faulty:
    """A capture function with one fault; call it as the right one.

    ``fault`` is one of ``FAULTS``, ``pick`` chooses the tensor: modulo how many there
    are in which the fault makes a difference. Where there is none (a batch of one row,
    all rows of which are the first) a call raises UsageError.
    """

    capture: Capture
    fault: str
    pick: int = 0
    __name__: str = field(default="faulty", compare=False)

    def __repr__(self) -> str:
        name = getattr(self.capture, "__qualname__", repr(self.capture))
        return f"Faulty({name}, {self.fault!r}, {self.pick})"

    @property
    def says(self) -> str:
        """What is wrong, in words."""
        if self.fault in _LEFT_BEHIND:
            return _LEFT_BEHIND[self.fault]
        words = dict([_SWAP]) | {n: said for n, (said, _) in _IN_A_TENSOR.items()}
        return f"a tensor {words[self.fault]}"

    def __call__(
        self, model: nn.Module, input_ids: Tensor, /, *args: Any, **inputs: Any
    ) -> Any:
        """Capture, then do what is wrong."""
        captured = self.capture(model, input_ids, *args, **inputs)
        if self.fault == "hook":
            model.register_forward_hook(_does_nothing)
        elif self.fault == "mode":
            model.train(not model.training)
        elif self.fault == "weight":
            _edit_a_bias(model)
        else:
            return self._damaged(captured)
        return captured

    def where(self, captured: Any) -> str:
        """Name the tensor of what was captured that a call damages, as a path."""
        leaves, _ = tree_flatten_with_path(captured)
        place, _ = self._chosen([leaf for _, leaf in leaves])
        return keystr(leaves[place][0])

    def _damaged(self, captured: Any) -> Any:
        leaves, shape = tree_flatten_with_path(captured)
        values = [leaf for _, leaf in leaves]
        place, values[place] = self._chosen(values)
        return tree_unflatten(values, shape)

    def _chosen(self, values: list[Any]) -> tuple[int, Tensor]:
        """Choose what to damage: its place, and what is to stand there."""
        floats = {n: v.detach() for n, v in enumerate(values) if _has_floats(v)}
        made = ((n, self._made(floats, n)) for n in floats)
        fits = [(n, v) for n, v in made if v is not None and _differ(v, floats[n])]
        if not fits:
            raise UsageError(
                f"fault {self.fault!r} makes no difference in any of the {len(floats)} "
                "captured tensors of floats; expected one in which it does"
            )
        return fits[self.pick % len(fits)]

    def _made(self, tensors: Mapping[int, Tensor], place: int) -> Tensor | None:
        if self.fault == _SWAP[0]:
            return _swap(tensors, place)
        mine = tensors[place]
        if self.fault == "token" and mine.ndim < 2:
            return None
        return _IN_A_TENSOR[self.fault][1](mine)


def _has_floats(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 0


def _does_nothing(module: nn.Module, args: Any, output: Any) -> None:
    """Stay on the model, and do nothing."""


def _edit_a_bias(model: nn.Module) -> None:
    bias = next(p for name, p in model.named_parameters() if name.endswith("bias"))
    with torch.no_grad():
        bias.view(-1)[0] += 1


def faulty(
    capture: Capture, *, faults: tuple[str, ...] = FAULTS
) -> st.SearchStrategy[Faulty]:
    """Draw a wrong function made out of ``capture(model, input_ids)``, a right one.

    ``faults`` narrows the choice down. Raises UsageError for an unknown fault.
    """
    unknown = [name for name in faults if name not in FAULTS]
    if unknown or not faults:
        found = repr(unknown[0]) if unknown else "none"
        raise UsageError(f"faults: found {found}, expected of {', '.join(FAULTS)}")
    return st.builds(
        partial(Faulty, capture), st.sampled_from(faults), st.integers(0, 99)
    )
