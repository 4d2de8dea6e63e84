"""What a file of recon's holds: captures, a saved run, a baseline, or a report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from recon import saving
from recon.describing import reports
from recon.errors import UsageError
from recon.report.json import DOCUMENTS
from recon.storage import index, shards
from recon.storage.captures import Captures, load_captures


@dataclass(frozen=True)
class Description:
    """What a file is, in words, and its facts by name, in the order to show them."""

    path: str
    kind: str
    facts: Mapping[str, str | int | bool | list[str] | None]


def describe(path: str | Path, *, thorough: bool = True) -> Description:
    """Say what is in a file, or in a directory of captures.

    ``thorough`` reads every byte and compares digests. Raises UsageError for a file
    that is damaged, or none that recon writes.
    """
    path = Path(path)
    if path.is_dir():
        return _captures(load_captures(path), thorough)
    if not path.is_file():
        raise UsageError(f"{path}: no such file or directory")
    if path.name == index.NAME:
        return _captures(load_captures(path.parent), thorough)
    if path.suffix.lower() == ".safetensors":
        return _tensors(path)
    return _document(path)


def _captures(captures: Captures, thorough: bool) -> Description:
    if thorough:
        captures.check()
    run = captures.run
    expected = sum(source.prompts for source in captures.sources)
    return Description(
        str(captures.folder),
        "captures",
        {
            "model": run.model,
            "revision": run.revision,
            "architecture": run.architecture,
            "weights": run.weights,
            "run": f"{run.run_dtype}, {run.attention} attention, {run.device}, "
            f"{'train' if run.training else 'eval'} mode",
            "versions": f"torch {run.torch}, transformers {run.transformers}",
            "stored": run.dtype or "as computed",
            "sites": _with_origin(captures),
            "sources": [_source(source) for source in captures.sources],
            "prompts": len(captures),
            "tokens": sum(shard.tokens for shard in captures.shards),
            "shards": len(captures.shards),
            "bytes": sum(shard.bytes for shard in captures.shards),
            "complete": captures.complete,
            "state": "complete"
            if captures.complete
            else f"unfinished: "
            f"{len(captures)} of {expected} prompts; the same command goes on",
            "checked": "every tensor matches its digest" if thorough else None,
        },
    )


def _with_origin(captures: Captures) -> list[str]:
    """Name the sites; of one that no hook saw, say how it was had."""
    origins = captures.run.sites
    return [
        str(s) if origins[str(s)] == "captured" else f"{s} ({origins[str(s)]})"
        for s in captures.sites
    ]


def _source(source: index.Source) -> str:
    words = f"{source.name}: {source.prompts} prompts, sha256 {source.digest[:12]}"
    return words + (f", cropped to {source.crop} tokens" if source.crop else "")


def _tensors(path: Path) -> Description:
    """Describe a saved run, or a shard by itself."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UsageError(
            f"{path} is damaged or no safetensors file: {error}"
        ) from error
    if metadata.get("format") == index.FORMAT:
        return _shard(path, metadata)
    return _run(path, saving.read(path))


def _shard(path: Path, metadata: Mapping[str, str]) -> Description:
    found = index.read(path.parent)
    mine = [entry for entry in found.shards if entry.file == path.name]
    if not mine:
        raise UsageError(
            f"{path} is a shard of captures that {path.parent / index.NAME} does not "
            "name: what a killed run left, and the next one removes"
        )
    shards.OpenShard(path.parent, mine[0]).check()
    return Description(
        str(path),
        "one shard of captures",
        {
            "first prompt": mine[0].first,
            "prompts": mine[0].count,
            "tokens": mine[0].tokens,
            "bytes": mine[0].bytes,
            "sites": list(found.run.sites),
            "checked": "every tensor matches its digest",
        },
    )


def _run(path: Path, saved: saving.Saved) -> Description:
    about, environment = saved.about, saved.facts.environment
    return Description(
        str(path),
        "a saved run",
        {
            "architecture": environment.architecture,
            "blocks": saved.facts.depth,
            "shape": " x ".join(map(str, saved.facts.shape)) + " tokens",
            "run": f"{str(environment.dtype).removeprefix('torch.')}, "
            f"{environment.attention} attention, {environment.device}",
            "versions": f"torch {environment.torch}, transformers "
            f"{environment.transformers}",
            "sites": [str(s) for s in sorted(saved.tensors)],
            "bytes": path.stat().st_size,
            "complete": about.get("failure") is None,
            "failure": about.get("failure"),
            "checked": "its tensors match their digest",
        },
    )


def _document(path: Path) -> Description:
    """Describe a page or XML by its head, and JSON by the schema that it satisfies."""
    try:
        text = path.read_text(encoding="utf-8")
        if known := reports.of_markup(text):
            return Description(str(path), *known)
        plain = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} is no file of recon's: neither safetensors nor JSON; expected "
            "captures, a saved run, a baseline, or a report"
        ) from error
    if known := reports.of_json(plain, path):
        return Description(str(path), *known)
    for command, schema in DOCUMENTS.items():
        try:
            schema.model_validate(plain)
        except ValidationError:
            continue
        return Description(
            str(path),
            f"JSON of recon {command.replace('-', ' ')}",
            dict(_plain_facts(plain)),
        )
    raise UsageError(
        f"{path} is JSON, but none that this recon writes; expected what --json of "
        f"{', '.join(DOCUMENTS)} wrote"
    )


def _plain_facts(
    plain: Mapping[str, object],
) -> Iterable[tuple[str, str | int | bool | list[str] | None]]:
    """Yield what fits in a line as it is; of lists, how many things they hold."""
    for key, value in plain.items():
        if isinstance(value, list):
            short = all(isinstance(one, str) for one in value) and len(value) < 6
            yield key, value if short else len(value)
        elif isinstance(value, dict):
            short = not any(isinstance(one, dict | list) for one in value.values())
            words = ", ".join(f"{name} {one}" for name, one in value.items())
            yield key, words if short else len(value)
        elif value is None or isinstance(value, str | int | bool):
            yield key, value
        else:
            yield key, str(value)
