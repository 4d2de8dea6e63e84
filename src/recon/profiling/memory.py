"""What capture keeps, site by site, and what a pass takes while it runs.

Bytes are those of storages (``storages.StorageLog``). The resident size of the process
is shown, but proves nothing: freed memory mostly stays with the process.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path

from recon.profiling.storages import StorageLog, storage_of


@dataclass(frozen=True)
class SiteBytes:
    """What keeping one tensor takes.

    ``held`` are the bytes of its storage, unless an earlier site has it already
    (``shared_with``); ``needed`` the bytes of its own elements that no earlier site
    has. A slice of something large holds more than it needs.
    """

    site: str
    held: int
    needed: int
    shared_with: str = ""


@dataclass(frozen=True)
class Allocator:
    """The figures of CUDA's caching allocator, in bytes."""

    allocated: int
    peak: int
    reserved: int


@dataclass(frozen=True)
class Memory:
    """Bytes of a captured pass.

    ``held`` counts every storage that the pass made and that is alive when its output
    is dropped and its captures are not; ``sites`` says which captures those are.
    ``peak_bare`` and ``peak`` are the most that was alive at a time in a bare and in a
    captured pass, ``graph`` what autograd adds to a bare pass whose output is kept.
    """

    sites: tuple[SiteBytes, ...]
    held: int
    peak_bare: int
    peak: int
    graph: int
    allocator: Allocator | None = None
    allocator_reason: str = ""

    @property
    def needed(self) -> int:
        """The fewest bytes that hold every captured element once."""
        return sum(one.needed for one in self.sites)

    @property
    def elsewhere(self) -> int:
        """Bytes held besides the captures: caches, masks, a graph."""
        return self.held - sum(one.held for one in self.sites)

    @property
    def ratio(self) -> float:
        """Held over needed; 1.0 is exact."""
        return self.held / self.needed if self.needed else float("nan")

    @property
    def extra_peak(self) -> int:
        """Bytes that capture adds to the peak of a pass."""
        return self.peak - self.peak_bare


def measure(
    bare: Callable[[], object],
    captured: Callable[[], tuple[object, Mapping[str, Tensor]]],
    device: torch.device,
) -> Memory:
    """Run a pass bare and captured, and count.

    ``bare`` returns the model's output. ``captured`` returns what keeps the captures
    alive, and the captures by name.
    """
    gc.collect()
    peak_bare, _, _ = _counted(bare)
    peak, held, kept = _counted(captured)
    with torch.enable_grad():
        _, with_graph, output = _counted(bare)
    del output
    with torch.no_grad():
        _, without, output = _counted(bare)
    del output
    allocator, reason = cuda_figures(captured, device)
    _, tensors = kept
    return Memory(
        by_site(tensors),
        held,
        peak_bare,
        peak,
        with_graph - without,
        allocator,
        reason,
    )


def _counted(run: Callable[[], Any]) -> tuple[int, int, Any]:
    """Run once; return the peak, what is alive at the end, and what was returned."""
    log = StorageLog()
    with log:
        returned = run()
    return log.peak_bytes, log.live_bytes, returned


def cuda_figures(
    run: Callable[[], object], device: torch.device
) -> tuple[Allocator | None, str]:
    """Run once more and return the allocator's own figures, or why there are none."""
    if device.type != "cuda":
        return None, f"the model is on {device.type}: there is no CUDA allocator"
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    kept = run()
    torch.cuda.synchronize(device)
    found = Allocator(
        torch.cuda.memory_allocated(device) - before,
        torch.cuda.max_memory_allocated(device) - before,
        torch.cuda.memory_reserved(device),
    )
    del kept
    return found, ""


def by_site(tensors: Mapping[str, Tensor]) -> tuple[SiteBytes, ...]:
    """Say what each tensor holds and needs; views of one storage are counted once."""
    owner: dict[int, str] = {}
    covered: dict[int, Tensor] = {}
    found = []
    for name, tensor in tensors.items():
        storage = storage_of(tensor)
        key, size = id(storage), 0 if storage is None else storage.nbytes()
        first = owner.setdefault(key, name)
        seen = covered.setdefault(key, torch.zeros(size, dtype=torch.bool))
        needed = _newly_covered(seen, tensor)
        own = first == name
        found.append(SiteBytes(name, size if own else 0, needed, "" if own else first))
    return tuple(found)


def _newly_covered(seen: Tensor, tensor: Tensor) -> int:
    """Mark the bytes of a storage that a tensor's elements take; count the new ones."""
    width = tensor.element_size()
    if not seen.numel() or not tensor.numel():
        return 0
    before = int(seen.sum())
    # One row for each element that fits into the storage, one column for each byte.
    rows = seen[: seen.numel() // width * width].view(-1, width)
    strides = [stride * width for stride in tensor.stride()]
    offset = tensor.storage_offset() * width
    rows.as_strided((*tensor.shape, width), (*strides, 1), offset).fill_(True)
    return int(seen.sum()) - before


def named_tensors(value: Any) -> dict[str, Tensor]:
    """Return the tensors of nested containers by where they are in them."""
    leaves, _ = tree_flatten_with_path(value)
    return {
        (keystr(path) or "the returned tensor").lstrip("."): leaf
        for path, leaf in leaves
        if isinstance(leaf, Tensor)
    }


def resident() -> int | None:
    """Return the bytes of the process in main memory, where Linux tells."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * 4096
