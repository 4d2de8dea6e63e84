"""Live tensor memory, counted in storages: a tensor and its views share one."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Iterator
from itertools import compress
from typing import Any

from torch import Tensor, UntypedStorage, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class StorageLog(TorchDispatchMode):
    """Counts the storages that operations of this thread make while it is on.

    A weak reference to each tells, to the byte, when torch lets it go; those that only
    an autograd graph keeps are counted, too. What a kernel needs for itself and frees
    before it returns is not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self._live: dict[int, tuple[weakref.ref[UntypedStorage], int]] = {}
        self.live_bytes = 0
        self.peak_bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run the operation, and note the storages that it made."""
        result = func(*args, **(kwargs or {}))
        given: set[int] | None = None
        for tensor in tensors_in(result):
            storage = storage_of(tensor)
            if storage is None or id(storage) in self._live:
                continue
            if given is None:
                given = {id(storage_of(t)) for t in tensors_in((args, kwargs))}
            if id(storage) not in given:
                self._born(storage)
        return result

    def _born(self, storage: UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()

        def died(_: object) -> None:
            if self._live.pop(key, None) is not None:
                self.live_bytes -= size

        self._live[key] = weakref.ref(storage, died), size
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def live(self) -> list[UntypedStorage]:
        """Return the storages that were made and are still alive."""
        found = (reference() for reference, _ in list(self._live.values()))
        return [storage for storage in found if storage is not None]

    def restart(self) -> None:
        """Let the peak begin at what is alive now."""
        self.peak_bytes = self.live_bytes


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested containers."""
    return (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def storage_of(tensor: Tensor) -> UntypedStorage | None:
    """Return a tensor's storage, always the same object; None if it has none."""
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        # Sparse tensors and wrappers.
        return None


def live_tensors() -> list[Tensor]:
    """Return every tensor of the process that Python can see."""
    return live(Tensor)[0]


def live(*kinds: type) -> list[list[Any]]:
    """Return every object of the process that Python can see, for each of some kinds.

    In one search, and by classes: there are far fewer of these than of objects.
    """
    objects = gc.get_objects()
    # isinstance would ask lazy proxies for their class, which may import or raise;
    # ids, since a class may be of a kind that cannot be hashed.
    keys = list(map(id, map(type, objects)))
    classes = dict(zip(keys, map(type, objects), strict=True))
    found = []
    # No comprehension reads objects: its cell is one of them, and would make a cycle.
    for kind in kinds:
        wanted = {key for key, one in classes.items() if issubclass(one, kind)}
        found.append(list(compress(objects, map(wanted.__contains__, keys))))
    return found


def weights(modules: Iterable[nn.Module]) -> Iterator[Tensor]:
    """Yield the parameters and buffers that modules hold themselves."""
    for module in modules:
        for table in (module._parameters, module._buffers):
            yield from (tensor for tensor in table.values() if tensor is not None)


def saved_by_graph(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that the graph behind one keeps for backward, by node's name.

    Python's collector does not see these: they are held from C++.
    """
    nodes, seen = [tensor.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [before for before, _ in node.next_functions]
        for name in dir(node):
            if name.startswith("_saved_"):
                yield from ((node.name(), t) for t in _saved(node, name))


def _saved(node: Any, name: str) -> list[Tensor]:
    try:
        return list(tensors_in(getattr(node, name)))
    except RuntimeError:
        # Freed by backward.
        return []
