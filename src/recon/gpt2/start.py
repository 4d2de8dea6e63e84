"""What is known of a pass of a GPT-2 when it begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from recon.ops import sdp_backends
from recon.sites import Site


# Made in every pass: a frozen dataclass takes twice as long.
@dataclass(eq=False, slots=True)
class Start:
    """What is known when the root is called.

    ``embedded`` says that embeddings were handed in: ``embeddings``, if they are kept.
    ``shape`` is that of the tokens, B and T first; empty without any.
    """

    embedded: bool
    embeddings: Tensor | None
    shape: tuple[int, ...]
    logits_to_keep: int | Tensor
    grad: bool
    backends: tuple[bool, ...]

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Start:
        """Keep of the root's arguments, by name, and of torch's modes what counts."""
        embeddings = given.get("inputs_embeds")
        tokens = given.get("input_ids") if embeddings is None else embeddings
        shape = tokens.shape if isinstance(tokens, Tensor) else ()
        return cls(
            embedded=embeddings is not None,
            embeddings=embeddings.detach() if isinstance(embeddings, Tensor) else None,
            shape=shape,
            logits_to_keep=given.get("logits_to_keep", 0),
            grad=torch.is_grad_enabled(),
            backends=sdp_backends(),
        )

    def tokens(self, place: Site | None = None) -> Sequence[int] | None:
        """Return which tokens the rows of a site are of; see ``plan.Start``."""
        if len(self.shape) < 2:
            return None
        everyone = range(self.shape[1])
        keep: Any = self.logits_to_keep
        if place is None or place.part != "logits":
            return everyone
        if isinstance(keep, int):
            return everyone[-keep:] if keep else everyone
        # Callers hand in slices and lists, too.
        where = keep.device if isinstance(keep, Tensor) else None
        numbers = torch.arange(len(everyone), device=where)
        rows: list[int] = numbers[keep].flatten().tolist()
        return rows

    def kept(
        self,
        shown: Callable[[Site, Tensor], Tensor | None],
        noted: Callable[[Tensor], Tensor],
    ) -> Start:
        """Return a start that keeps what these return; see ``plan.Start``."""
        given, keep = self.embeddings, self.logits_to_keep
        return replace(
            self,
            embeddings=None if given is None else shown(Site("wte"), given),
            logits_to_keep=noted(keep) if isinstance(keep, Tensor) else keep,
        )

    def tensors(self) -> Iterator[Tensor]:
        """Yield every tensor that it keeps alive."""
        both = (self.embeddings, self.logits_to_keep)
        yield from (tensor for tensor in both if isinstance(tensor, Tensor))
