"""The situations of an audit: batches, lengths and modes, and a pass that raises."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from recon import gpt2
from recon.errors import UsageError
from recon.listed import listed

Effort: TypeAlias = Literal["quick", "default", "thorough"]

_TOKENS = 11


def require_effort(effort: str) -> None:
    """Raise UsageError for an effort that there is not."""
    known = get_args(Effort)
    if effort not in known:
        raise UsageError(
            f"effort {effort!r}: expected one of {listed(known, len(known))}"
        )


@dataclass(frozen=True, eq=False)
class Situation:
    """One way to call the function: the inputs, and the state of the model.

    ``seed`` tells random states apart: what is drawn differs when a prompt runs again.
    Without ``cache`` the model's config says that a pass returns no cache of keys.
    """

    name: str
    inputs: Mapping[str, Tensor]
    grad: bool = True
    train: bool = False
    raises: bool = False
    cache: bool = True
    seed: int = 0

    @property
    def rows(self) -> int:
        """The size of the batch."""
        return int(self.inputs["input_ids"].shape[0])


def situations(
    model: nn.Module,
    inputs: Mapping[str, Tensor] | None,
    takes: frozenset[str],
    effort: Effort,
) -> Iterator[Situation]:
    """Yield the situations of an audit, the one that is judged in full first.

    ``takes`` are the inputs that the function accepts; ``inputs`` replace the first
    prompts.
    """
    config = gpt2.base(model).config
    longest = int(config.n_positions)
    device = next(model.parameters()).device

    def ids(rows: int, tokens: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        size = (rows, min(tokens, longest))
        made = torch.randint(config.vocab_size, size, generator=generator)
        return made.to(device)

    def plain(rows: int, tokens: int, seed: int) -> dict[str, Tensor]:
        return {"input_ids": ids(rows, tokens, seed)}

    tokens, others = _lengths(config)
    rows = 3 if config.n_layer not in (2, 3) else 5
    first = plain(rows, tokens, 1)
    if inputs is not None:
        yield Situation("the given inputs", dict(inputs))
    yield Situation(f"a batch of {rows}", first)
    yield Situation(f"another batch of {rows}", plain(rows, tokens, 2))
    yield Situation("a pass that raises", plain(1, tokens, 3), raises=True)
    if effort == "quick":
        return
    yield Situation("the first batch again", first, seed=1)
    yield Situation("one prompt", plain(1, others, 4))
    yield Situation("under no_grad", plain(2, tokens, 5), grad=False)
    yield Situation("train mode", plain(2, tokens, 6), train=True)
    if "attention_mask" in takes:
        yield Situation("a batch padded on the right", _padded(first, right=True))
        left = _padded(first, right=False)
        if "position_ids" in takes:
            left |= {"position_ids": counted(left["attention_mask"])}
        yield Situation("a batch padded on the left", left)
    elif "position_ids" in takes:
        later = torch.arange(tokens, device=device).flip(0).expand(rows, -1)
        yield Situation("positions from last to first", first | {"position_ids": later})
    if effort == "thorough":
        yield Situation("one token", plain(2, 1, 7))
        yield Situation("a long prompt", plain(1, min(longest, 96), 8))
        yield Situation("a batch of 7", plain(7, max(1, tokens - 3), 9))
        yield Situation("one prompt again", plain(1, others, 4), seed=1)
        yield Situation("without a cache", plain(2, tokens, 10), cache=False)


def _lengths(config: Any) -> tuple[int, int]:
    """Return two numbers of tokens that no other axis has: a mix-up changes a shape."""
    width = config.n_embd // config.n_head
    taken = {config.n_head, config.n_layer, config.n_layer + 1, width, config.n_embd}
    free = (n for n in range(_TOKENS, config.n_positions + 1) if n not in taken)
    tokens = next(free, min(_TOKENS, config.n_positions))
    return tokens, next(free, tokens)


def _padded(inputs: Mapping[str, Tensor], *, right: bool) -> dict[str, Tensor]:
    ids = inputs["input_ids"].clone()
    mask = torch.ones_like(ids)
    for row, missing in enumerate((0, 2, 4)[: len(ids)]):
        place = slice(ids.shape[1] - missing, None) if right else slice(0, missing)
        mask[row, place] = 0
        ids[row, place] = 0
    return {"input_ids": ids, "attention_mask": mask}


def counted(mask: Tensor) -> Tensor:
    """Return the positions of a text that is padded on the left, as users count."""
    return (mask.cumsum(1) - 1).clamp(min=0)
