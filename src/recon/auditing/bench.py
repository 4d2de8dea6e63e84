"""What the tensors of one call are compared with, bit by bit and up to rounding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recon import gpt2
from recon.auditing.calls import Call
from recon.auditing.exact import Exact
from recon.auditing.gradients import Gradients
from recon.auditing.identify import Catalogue
from recon.auditing.near import Near, allowance, apart, merged
from recon.auditing.passes import idle_tokens, less
from recon.auditing.quantities import Quantity
from recon.auditing.sides import sides
from recon.certify import check as certified
from recon.ops import Add, Same, split_heads
from recon.sites import Site
from recon.trace import Trace

# No certified bound of an honest computation is as wide as this.
_HOPELESS = 0.05
_WEIGHTED = ("attn.pattern", "attn.z")


@dataclass(frozen=True, eq=False)
class Match:
    """How a tensor agrees with one reading, and on which side of an edit, if beside."""

    exact: Exact | None = None
    gap: float = 0.0
    words: str = ""
    form: str = ""
    side: str = ""


class Bench:
    """One call, and everything that the model computed in it or by itself.

    ``earlier`` are runs whose values may linger, ``others`` calls whose gradients may.
    ``foreign`` says that the captures were made where recon saw no pass.
    """

    def __init__(
        self,
        call: Call,
        earlier: Sequence[tuple[str, Trace]] = (),
        others: Sequence[tuple[str, Call]] = (),
    ) -> None:
        self.call, self.foreign = call, not call.passes
        self.mask = call.situation.inputs.get("attention_mask")
        # What the model computes by itself is an answer, too: code may run it in
        # pieces. The pass of the whole batch comes first: formulas are applied to it.
        given = tuple(call.situation.inputs["input_ids"].shape)
        ours = sorted(call.passes, key=lambda one: one.facts.shape != given)
        passes = [("", one) for one in (*ours, call.clean) if one is not None]
        if passes and passes[0][1].facts.shape != given:
            passes.reverse()
        self.sides = [
            side
            for trace, edits in zip(call.passes, call.edits, strict=False)
            for side in sides(trace, edits)
        ]
        self.catalogue = Catalogue([*passes, *earlier], self.mask, self.sides)
        self.gradients = Gradients(call, others, self.mask)
        # By id, beside the tensor: the id of one that is gone is given out again.
        self._seen: dict[int, tuple[Tensor, Exact | None]] = {}
        self._seen_as_gradient: dict[int, tuple[Tensor, Exact | None]] = {}
        # What formulas make of the sites of a pass, by its id, form and site.
        self.derived: dict[tuple[int, str, Site], list[Quantity]] = {}

    @property
    def depth(self) -> int:
        """The number of blocks; 0 if nothing ran."""
        traces = self.catalogue.current
        return traces[0].facts.depth if traces else 0

    def allowed(self, *tensors: Tensor) -> float:
        """Return how far apart tensors may be by rounding, for the coarsest of them."""
        return max(allowance(one.dtype, foreign=self.foreign) for one in tensors)

    @property
    def padded(self) -> bool:
        """Whether some rows of the batch are padded."""
        return self.mask is not None and not bool(self.mask.all())

    def exact(self, tensor: Tensor, sites: Sequence[Site]) -> Exact | None:
        """Return what a tensor is bit for bit, the given sites preferred."""
        key = id(tensor)
        if key not in self._seen:
            wanted = set(sites)
            found = self.catalogue.exact(
                tensor, lambda one: one.site in wanted and not one.form
            )
            if found is None or not found.layout.honest:
                found = self.gradient(tensor, sites) or found
            self._seen[key] = tensor, found
        return self._seen[key][1]

    def likeliest(self, equal: Sequence[Quantity], place: Site) -> list[Quantity]:
        """Order equal quantities: of a pass of the code, of the site, of no edit."""
        clean = self.call.clean

        def rank(one: Quantity) -> tuple[bool, ...]:
            held = None if clean is None else clean.tensors.get(one.site)
            idle = held is not None and held.data_ptr() == one.tensor.data_ptr()
            return idle, one.site != place, bool(one.side)

        return sorted(equal, key=rank)

    def side_of(self, trace: Trace, place: Site) -> str:
        """Say on which side of an edit a pass was recorded at a site, if beside one."""
        own = (s for s in self.sides if s.own and s.trace is trace and s.place == place)
        return next((side.words for side in own), "")

    def gradient(self, tensor: Tensor, sites: Sequence[Site]) -> Exact | None:
        """Return which gradient a tensor is bit for bit, as ``exact`` does."""
        key = id(tensor)
        if key not in self._seen_as_gradient:
            wanted = set(sites)
            found = (
                self.gradients.exact(tensor, lambda one: one.site in wanted)
                if self.gradients
                else None
            )
            self._seen_as_gradient[key] = tensor, found
        return self._seen_as_gradient[key][1]

    def near(self, tensor: Tensor) -> Near | None:
        """Return what a tensor is up to rounding, or nearest to, gradients included."""
        answer = self.catalogue.near(tensor, (), lambda one: False)
        if self.gradients and (answer is None or answer.how == "nearest"):
            other = self.gradients.near(tensor, (), lambda one: False)
            if other is not None and other.how != "nearest":
                return other
        return answer

    def close(self, tensor: Tensor, made: Quantity, trace: Trace) -> Match | None:
        """Compare up to rounding; a certified bound decides where there is one."""
        if not tensor.is_floating_point():
            return None
        known, _ = merged(made.tensor, made.axes)
        found = self.catalogue.arranged(tensor.detach().cpu())
        if made.form == "by head" and found.shape[1:2] == known.shape[2:3]:
            found = found.transpose(1, 2)
        if found.squeeze().shape != known.squeeze().shape:
            return None
        gap = self._gap(made.site, known, found.reshape(known.shape))
        if not bool(torch.isfinite(found).all()) and made.site.part[-6:] != "scores":
            return None
        allowed = self.allowed(found, known)
        if made.form or self.foreign:
            return Match(gap=gap, form=made.form) if gap <= allowed else None
        if gap > max(_HOPELESS, allowed):
            return None
        proven = _proven(trace, made.site, found.reshape(known.shape))
        if proven is None:
            return Match(gap=gap) if gap <= allowed else None
        return Match(gap=gap, words="within the proven bound") if proven else None

    def _gap(self, place: Site, known: Tensor, found: Tensor) -> float:
        """Return how far a tensor is apart; what sees no key may get any weights."""
        idle = idle_tokens(self.mask) if place.part in _WEIGHTED else None
        if idle is not None:
            known, found = (less(one, place, idle) for one in (known, found))
        return apart(known, found)


def _proven(trace: Trace, place: Site, found: Tensor) -> bool | None:
    """Say whether a tensor is certified at a site; None where nothing is to certify.

    Sums are left out: another order of terms is honest, and strays from the local sum.
    """
    identity = gpt2.identity_of(trace, place)
    held = trace.tensors.get(place)
    if identity is None or held is None or isinstance(identity.op, Add | Same):
        return None
    if held.dtype != found.dtype:
        return None
    if held.ndim == 4 and found.ndim == 3:
        found = split_heads(found, trace.facts.heads)
    again = trace.replace(place, found)
    verdict = certified(again, identity).verdict
    return None if verdict in ("unverified", "missing") else verdict != "diverged"
