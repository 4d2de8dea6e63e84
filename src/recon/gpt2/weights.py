"""Which weights a pass ran with, and how to tell that one was edited since."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TypeAlias

from torch import Tensor, nn

# The parameters of a module by name, weight and bias among them.
Held: TypeAlias = Mapping[str, Tensor | None]
# A weight by name, and how often it was edited and where it lay when the pass ended.
Counted: TypeAlias = tuple[str, Tensor, tuple[int, int] | None]

_version = attrgetter("_version")


class Slots:
    """Where the parameters of some modules are kept: read in each pass, so one list."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.names = [tuple(module._parameters) for module in modules]
        self._owners = [m._parameters for m in modules for _ in m._parameters]
        self._flat = [name for names in self.names for name in names]

    def read(self) -> Reading:
        """Return what the slots hold now, by reference, and in which state it is."""
        # map, because each pass does this with cold caches.
        tensors = list(map(dict.get, self._owners, self._flat))
        present = [tensor for tensor in tensors if tensor is not None]
        try:
            versions = list(map(_version, present))
        except RuntimeError:
            return Reading(self.names, tensors, [], [])  # inference tensors
        return Reading(
            self.names, tensors, versions, list(map(Tensor.data_ptr, present))
        )


@dataclass(eq=False, slots=True)
class Reading:
    """Parameters in the order of the slots, with versions and addresses of those there.

    Without versions torch does not count.
    """

    names: list[tuple[str, ...]]
    tensors: Sequence[Tensor | None]
    versions: list[int]
    places: list[int]

    def by_module(self, paths: Iterable[str]) -> Iterator[tuple[Held, list[Counted]]]:
        """Yield the parameters of each module, and those that there are, counted."""
        tensors = iter(self.tensors)
        states = zip(self.versions, self.places, strict=True)
        for path, names in zip(paths, self.names, strict=True):
            held = {name: next(tensors) for name in names}
            yield (
                held,
                [
                    (f"{path}.{name}", tensor, next(states, None))
                    for name, tensor in held.items()
                    if tensor is not None
                ],
            )
