"""One run in one file: safetensors with a header that says what the tensors are.

The header holds the facts of the run; masks, cache contents and token ids go along as
tensors. Weights do not: a digest of them tells later whether a model still has them.
Files are written under a temporary name and then renamed, and are checked on reading.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recon.errors import UsageError
from recon.facts import Environment, Facts
from recon.files import replacing
from recon.ops import Attention, Unembed
from recon.sites import Site, site

FORMAT = "recon-trace"
VERSION = 1
_TENSORS_OF_A_CALL = ("mask", "keys", "values")
_PLAIN_OF_A_CALL = (
    "kernel",
    "heads",
    "scaling",
    "divisors",
    "hides_later",
    "fills_later",
    "dropout",
    "past",
    "backends",
)


@dataclass(frozen=True, eq=False)
class Saved:
    """What a file holds: captured tensors, facts, and what a trace says of itself.

    ``keep`` are the rows that got logits: with the weights of a model and the ids among
    the facts it makes the ops again. ``weights`` is the
    digest of each weight.
    """

    tensors: Mapping[Site, Tensor]
    facts: Facts
    about: Mapping[str, Any]
    keep: int | Tensor
    weights: Mapping[str, str]


# -- writing -------------------------------------------------------------------


def write(
    path: str | Path,
    tensors: Mapping[Site, Tensor],
    facts: Facts,
    about: Mapping[str, Any],
) -> None:
    """Write one run; ``about`` is what the trace says of itself, as plain data.

    Raises UsageError where the file cannot be written; nothing is left half-written.
    """
    pool = _Pool()
    header = {
        "sites": {str(s): pool.add(f"site/{s}", t) for s, t in tensors.items()},
        "given": {str(s): pool.add(f"given/{s}", t) for s, t in facts.given.items()},
        "encoder": {
            str(s): pool.add(f"encoder/{s}", t) for s, t in facts.encoder.items()
        },
        "calls": {str(s): _call(pool, s, call) for s, call in facts.attention.items()},
        "lookups": pool.add_all("ids", facts.ids),
        "keep": _keep(pool, facts),
        "facts": _plain_facts(facts),
        "about": dict(about),
        "weights": {name: digest([t]) for name, t, _ in facts.weights_at_run},
    }
    words = json.dumps(header)
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "digest": digest(pool.tensors[name] for name in sorted(pool.tensors)),
        "header": words,
        "header_digest": header_digest(words, pool.tensors),
    }
    write_atomically(Path(path), pool.tensors, metadata)


class _Pool:
    """Tensors by name; one that is already there under another name is not added."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[tuple[Any, ...], str] = {}

    def add(self, name: str, tensor: Tensor) -> str:
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if key not in self._names:
            self._names[key] = name
            # safetensors refuses views that share memory: each is stored by itself.
            self.tensors[name] = (
                tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            )
        return self._names[key]

    def add_all(self, kind: str, tensors: Mapping[Site, Tensor]) -> dict[str, str]:
        """Add tensors by site; return the name under which each is stored."""
        return {str(s): self.add(f"{kind}/{s}", t) for s, t in tensors.items()}


def _call(pool: _Pool, place: Site, call: Attention) -> dict[str, Any]:
    held = {name: getattr(call, name) for name in _TENSORS_OF_A_CALL}
    plain = {name: getattr(call, name) for name in _PLAIN_OF_A_CALL}
    named = {
        name: pool.add(f"{place}/{name}", tensor)
        for name, tensor in held.items()
        if tensor is not None
    }
    rng = [pool.add(f"{place}/rng/{i}", state) for i, state in enumerate(call.rng)]
    return {"plain": plain, "tensors": named, "rng": rng}


def _keep(pool: _Pool, facts: Facts) -> dict[str, Any]:
    for maker in facts.makers.values():
        if isinstance(maker, Unembed) and isinstance(maker.keep, Tensor):
            return {"tensor": pool.add("keep", maker.keep)}
        if isinstance(maker, Unembed):
            return {"rows": maker.keep}
    return {"rows": 0}


def _plain_facts(facts: Facts) -> dict[str, Any]:
    environment = asdict(facts.environment)
    for name in ("dtype", "autocast"):
        environment[name] = _dtype_name(environment[name])
    return {
        "environment": environment,
        "dropout": {str(s): p for s, p in facts.dropout.items()},
        **{name: getattr(facts, name) for name in _PLAIN_FACTS},
    }


_PLAIN_FACTS = ("depth", "heads", "width", "tied_last", "shape", "unsupported", "notes")


def _dtype_name(dtype: torch.dtype | None) -> str | None:
    return None if dtype is None else str(dtype).removeprefix("torch.")


def digest(tensors: Iterable[Tensor]) -> str:
    """Return the SHA-256 of dtypes, shapes and bytes."""
    total = hashlib.sha256()
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        total.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
        total.update(plain.flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def header_digest(words: str, names: Iterable[str]) -> str:
    """Return the SHA-256 of the header and of the tensors' names."""
    return hashlib.sha256("\n".join([words, *sorted(names)]).encode()).hexdigest()


def write_atomically(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]
) -> None:
    """Write a safetensors file whole or not at all; what is there is replaced.

    Raises UsageError where it cannot be written.
    """
    try:
        with replacing(path) as draft:
            save_file(tensors, draft, metadata)
    except (OSError, SafetensorError) as error:
        # An OSError would name the draft.
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"{path} cannot be written: {why}") from error


# -- reading -------------------------------------------------------------------


def read(path: str | Path) -> Saved:
    """Read and check one run.

    Raises UsageError for a file that is damaged, foreign, or of a later version.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such file; expected a trace saved by recon")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            _require_ours(path, metadata)
            # Copied, to be aligned as the run's own were: kernels round otherwise.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UsageError(
            f"{path} is damaged or no safetensors file: {error}"
        ) from error
    if metadata.get("digest") != digest(tensors[name] for name in sorted(tensors)):
        raise UsageError(f"{path} is damaged: its tensors do not match their digest")
    words = metadata.get("header", "")
    if metadata.get("header_digest") != header_digest(words, tensors):
        raise UsageError(f"{path} is damaged: its header does not match its digest")
    try:
        return _saved(json.loads(words), tensors)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is damaged: its header lacks {error}") from error


def _require_ours(path: Path, metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise UsageError(f"{path} is a safetensors file, but no trace saved by recon")
    if metadata.get("version") != str(VERSION):
        raise UsageError(
            f"{path} has format version {metadata.get('version')}, this recon reads "
            f"{VERSION}"
        )


def _saved(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Saved:
    def named(kind: str) -> dict[Site, Tensor]:
        return {site(place): tensors[name] for place, name in header[kind].items()}

    keep = header["keep"]
    return Saved(
        tensors=named("sites"),
        facts=_facts(header, tensors, named),
        about=header["about"],
        keep=tensors[keep["tensor"]] if "tensor" in keep else int(keep["rows"]),
        weights=header["weights"],
    )


def _facts(
    header: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    named: Callable[[str], dict[Site, Tensor]],
) -> Facts:
    plain = header["facts"]
    environment = dict(plain["environment"])
    for name in ("dtype", "autocast"):
        word = environment[name]
        environment[name] = None if word is None else getattr(torch, word)
    known = {field.name for field in fields(Environment)}
    return Facts(
        environment=Environment(**{k: v for k, v in environment.items() if k in known}),
        makers={},
        attention={
            site(place): _restored(call, tensors)
            for place, call in header["calls"].items()
        },
        dropout={site(place): p for place, p in plain["dropout"].items()},
        given=named("given"),
        encoder=named("encoder"),
        ids=named("lookups"),
        depth=plain["depth"],
        heads=plain["heads"],
        width=plain["width"],
        tied_last=plain["tied_last"],
        shape=tuple(plain["shape"]),
        unsupported=tuple(plain["unsupported"]),
        notes=tuple(plain["notes"]),
    )


def _restored(call: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Attention:
    plain: dict[str, Any] = dict(call["plain"])
    plain["divisors"] = tuple((value, exact) for value, exact in plain["divisors"])
    plain["backends"] = tuple(plain["backends"])
    plain |= {name: tensors[key] for name, key in call["tensors"].items()}
    return Attention(**plain, rng=tuple(tensors[key] for key in call["rng"]))
