"""What is kept of the tensors of a pass: references or copies, within a budget."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from recon.errors import BudgetError
from recon.plan import Port
from recon.recorder.options import Options, resolved
from recon.recorder.passes import Pass, changed, nothing
from recon.sites import Site


@dataclass(eq=False)
class Budget:
    """The bytes that all passes of a recorder keep alive; shared storages count once.

    A running total: what a pass lets go must be given back with ``settle`` or ``drop``.
    """

    limit: int | None
    held: int = 0
    _passes: dict[int, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def charge(self, place: object, one: Pass, tensor: Tensor) -> None:
        """Count a tensor that a pass is about to keep.

        Raises BudgetError if that is too much.
        """
        if self.limit is None:
            return
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        # What has no address, on the meta device for one, takes no memory.
        if not address or address in one.charged:
            return
        with self._lock:
            more = 0 if address in self._passes else size
            if self.held + more > self.limit:
                raise BudgetError(str(place), self.held, more, self.limit)
            self._add(one, address, size)

    def settle(self, one: Pass) -> None:
        """Count anew what a pass keeps alive, after it let something go."""
        if self.limit is None:
            return
        storages = [tensor.untyped_storage() for tensor in one.tensors()]
        with self._lock:
            self._drop(one)
            for storage in storages:
                address = storage.data_ptr()
                if address and address not in one.charged:
                    self._add(one, address, storage.nbytes())

    def drop(self, one: Pass) -> None:
        """Give back all that a pass was charged for."""
        if one.charged:
            with self._lock:
                self._drop(one)

    def _add(self, one: Pass, address: int, size: int) -> None:
        passes = self._passes.get(address, 0)
        self._passes[address] = passes + 1
        one.charged[address] = size
        if not passes:
            self.held += size

    def _drop(self, one: Pass) -> None:
        for address, size in one.charged.items():
            self._passes[address] -= 1
            if not self._passes[address]:
                del self._passes[address]
                self.held -= size
        one.charged.clear()


@dataclass(frozen=True, eq=False)
class Keeper:
    """Turns what a pass shows into what is kept of it; nothing is kept past it.

    A tensor of a site becomes what the options ask for. The facts that identities need
    (masks, the contents of caches, token ids) stay exact: they are copied where
    tensors are, moved where they are, and never converted.
    """

    options: Options
    budget: Budget
    wanted: frozenset[Site] | None

    def begin(self, one: Pass) -> None:
        """Keep what the model's caller handed in.

        Raises BudgetError if that is too much; the pass then keeps nothing of it.
        """
        if self.options.by_reference and self.wanted is None:
            return
        start, one.start = one.start, one.start.kept(nothing, lambda tensor: tensor)
        try:
            one.start = start.kept(
                lambda place, tensor: self._given(one, place, tensor),
                lambda tensor: self._fact("the inputs", one, tensor),
            )
        except BudgetError:
            raise
        except Exception as error:
            one.fail("the model's inputs", error)

    def of(self, seen: Site, port: Port) -> Callable[[Pass, Tensor], Tensor | None]:
        """Return what makes the tensor to keep, if any, of one seen at a site."""
        options = self.options
        if options.by_reference:
            return lambda one, t: t if options.grad else t.detach()
        whole = options.positions is None or seen.part == "cross.kv"
        axis = 2 if port == "weights" else 1

        def keep(one: Pass, tensor: Tensor) -> Tensor | None:
            kept = tensor if options.grad else tensor.detach()
            if not whole:
                chosen = self._rows(one, seen, kept, axis)
                if not chosen:
                    return None
                numbers = torch.tensor(chosen, device=kept.device)
                kept = kept.index_select(axis, numbers)
            if options.dtype is not None or options.device is not None:
                dtype = options.dtype or kept.dtype
                kept = kept.to(device=options.device, dtype=dtype, copy=whole)
            elif options.clone and whole:
                kept = kept.clone()
            self.budget.charge(seen, one, kept)
            return kept

        return keep

    def noted(self, path: str, one: Pass, said: Any) -> Any:
        """Return what is kept of a note: the tensors in it as facts."""
        if said is None or self.options.by_reference:
            return said
        return changed(said, lambda tensor: self._fact(path, one, tensor))

    def _given(self, one: Pass, place: Site, tensor: Tensor) -> Tensor | None:
        if self.wanted is not None and place not in self.wanted:
            return None
        return self.of(place, "output")(one, tensor)

    def _fact(self, path: str, one: Pass, tensor: Tensor) -> Tensor:
        kept = one.copy_of(tensor, self._copied) if self.options.copies else tensor
        self.budget.charge(path, one, kept)
        return kept

    def _copied(self, tensor: Tensor) -> Tensor:
        # The state of a generator has its place on the CPU, and is of bytes.
        if self.options.device is None or tensor.dtype == torch.uint8:
            return tensor.clone()
        return tensor.to(device=self.options.device, copy=True)

    def _rows(self, one: Pass, seen: Site, tensor: Tensor, axis: int) -> list[int]:
        """Return the rows of a tensor that are of the tokens asked for.

        Which those are is noted in the pass. A site need not have a row for each token:
        logits have those that ``logits_to_keep`` names.
        """
        length = tensor.shape[axis] if tensor.ndim > axis else 0
        if one.positions is None:
            tokens = one.start.tokens()
            tokens = range(length) if tokens is None else tokens
            one.positions, one.absent = resolved(self.options.positions, len(tokens))
        tokens = one.start.tokens(seen)
        tokens = range(length) if tokens is None else tokens
        numbers: dict[int, int] = {}
        if len(tokens) == length:
            for row, token in enumerate(tokens):
                numbers.setdefault(token, row)
        there = tuple(p for p in one.positions if p in numbers)
        if there != one.positions:
            one.fewer[seen] = there
        return [numbers[p] for p in there]
