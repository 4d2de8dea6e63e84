"""Run a model over prompts and store what is captured, one prompt a pass.

Prompts are never padded into one batch: another length or another row changes bits of
the same prompt, and stored captures should be those that anyone gets again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from recon.capturing import capture
from recon.errors import UsageError
from recon.inputs import encoded
from recon.models import Loaded
from recon.prompts import Prompts, Words
from recon.recorder import Recorder
from recon.saving import digest
from recon.storage.captures import Captures, load_captures
from recon.storage.index import Run, Source
from recon.storage.shards import Captured
from recon.storage.writer import SHARD_BYTES, Mode, Writer
from recon.trace import Trace

Tell: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True)
class Storing:
    """How captures are stored.

    ``mode``: ``resume`` begins, or goes on where a killed run stopped; ``accumulate``
    adds other prompts to what is there; ``overwrite`` replaces it. ``crop`` cuts
    prompts to the model's context, which are refused otherwise; ``field`` is what the
    prompts were called in their file.
    """

    mode: Mode = "resume"
    crop: bool = False
    field: str | None = None
    shard_bytes: int = SHARD_BYTES


def collect(
    loaded: Loaded,
    prompts: Prompts,
    folder: str | Path,
    *,
    sites: str | Iterable[str],
    dtype: torch.dtype | None = None,
    storing: Storing = Storing(),
    tell: Tell | None = None,
) -> Captures:
    """Capture ``sites`` on every prompt into ``folder``, and return all it holds.

    ``dtype`` converts the floats that are stored. ``tell`` is called with how many
    prompts are done, and of how many. In memory is one prompt, and at most a shard.

    Raises UsageError, what was captured until then being stored, for a prompt that
    cannot be run; and for a directory of other captures, or one that cannot be written.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise UsageError(f"dtype={dtype}: expected a floating-point dtype")
    folder = Path(folder)
    passes = _Passes(loaded, capture(loaded.model, sites=sites), storing.crop, dtype)
    writer = Writer(
        folder,
        _run_of(passes),
        _source(loaded, prompts, storing),
        mode=storing.mode,
        shard_bytes=storing.shard_bytes,
    )
    with writer:
        if not writer.complete:
            _fill(writer, passes, prompts, tell)
    return load_captures(folder)


def _fill(writer: Writer, passes: _Passes, prompts: Prompts, tell: Tell | None) -> None:
    try:
        for where, words in prompts.read(writer.done):
            writer.add(passes.captured(words, where))
            if tell is not None:
                tell(writer.done, prompts.total)
    except UsageError:
        writer.flush()
        raise
    writer.finish()


@dataclass(frozen=True, eq=False)
class _Passes:
    """One pass after another of one model, and what to store of each."""

    loaded: Loaded
    recorder: Recorder
    crop: bool
    dtype: torch.dtype | None

    def captured(self, words: Words, where: str) -> Captured:
        """Run one prompt, and return copies of what was captured."""
        every = self._ids(words, where)
        ids = every[:, : self.loaded.model.config.n_positions]
        trace = self.trace(ids)
        return Captured(
            ids=ids.cpu(),
            tensors={place: self._stored(trace[place]) for place in trace.sites},
            text=words if isinstance(words, str) else None,
            found=every.shape[1],
        )

    def trace(self, ids: Tensor) -> Trace:
        """Run the model on ids, 1 T, as anyone would: no mask, its own positions."""
        with torch.no_grad(), self.recorder:
            self.loaded.model(ids.to(self.loaded.model.device))
        return self.recorder.trace

    def _stored(self, tensor: Tensor) -> Tensor:
        # A view would keep all of the tensor that it shows a part of.
        dtype = self.dtype if tensor.is_floating_point() else None
        plain = tensor.to("cpu", dtype or tensor.dtype)
        return plain.clone(memory_format=torch.contiguous_format)

    def _ids(self, words: Words, where: str) -> Tensor:
        """Return token ids, 1 T; raises UsageError for those that cannot be run."""
        config = self.loaded.model.config
        ids = encoded(self.loaded, words, where)
        if not 0 <= min(ids) <= max(ids) < config.vocab_size:
            raise UsageError(
                f"{where}: token ids from {min(ids)} to {max(ids)}; expected 0 to "
                f"{config.vocab_size - 1}"
            )
        if len(ids) > config.n_positions and not self.crop:
            raise UsageError(
                f"{where}: {len(ids)} tokens, and the model's context has "
                f"{config.n_positions}; shorten it, or cut such prompts with --crop"
            )
        return torch.tensor([ids])


# -- what the index says -------------------------------------------------------


def _source(loaded: Loaded, prompts: Prompts, storing: Storing) -> Source:
    return Source(
        # Names of files may hold what UTF-8 cannot.
        name=prompts.name.encode("utf-8", "backslashreplace").decode(),
        digest=prompts.digest,
        prompts=prompts.total,
        field=storing.field,
        crop=loaded.model.config.n_positions if storing.crop else None,
    )


def _run_of(passes: _Passes) -> Run:
    """Run one token, to see which sites there are, how they are had, and on what."""
    model = passes.loaded.model
    # Of all ids the least likely to be the padding, of which transformers warns.
    trace = passes.trace(torch.tensor([[model.config.vocab_size - 1]]))
    about = trace.facts.environment
    return Run(
        model=passes.loaded.name,
        revision=getattr(model.config, "_commit_hash", None),
        architecture=about.architecture,
        weights=digest(weight for _, weight in sorted(model.named_parameters())),
        torch=about.torch,
        transformers=about.transformers,
        device=about.device,
        attention=about.attention,
        training=about.training,
        run_dtype=_name(about.dtype),
        dtype=None if passes.dtype is None else _name(passes.dtype),
        sites={str(place): str(trace.origin(place)) for place in trace.sites},
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
