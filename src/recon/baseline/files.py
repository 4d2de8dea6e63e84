"""Baselines on disk: one line a site, signed by a digest of the content."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from recon.baseline.document import FORMAT, SCHEMA_VERSION, Baseline
from recon.errors import UsageError
from recon.files import replace_text


def text(baseline: Baseline) -> str:
    """Return a baseline as it is written: signed, and diffable line by line."""
    plain = baseline.model_dump(mode="json")
    plain["digest"] = digest(plain)
    return _spread(plain)


def digest(plain: dict[str, Any]) -> str:
    """Return the SHA-256 of all but the digest itself, whatever the layout."""
    rest = {name: value for name, value in plain.items() if name != "digest"}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def write(baseline: Baseline, path: Path) -> None:
    """Write a baseline, whole or not at all; raises UsageError where it cannot be."""
    if path.is_dir():
        raise UsageError(f"{path} is a directory; expected a file for the baseline")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no directory {path.parent}")
    try:
        replace_text(path.resolve(), text(baseline))
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error


def read(path: Path) -> Baseline:
    """Read a baseline.

    Raises UsageError, in one line, for a file that is missing, damaged, foreign, empty,
    or of a schema that this recon does not know.
    """
    plain = _parsed(path)
    _require_ours(path, plain)
    if plain.get("digest") != digest(plain):
        _damaged(path, "its content does not match its digest")
    try:
        found = Baseline.model_validate(plain)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        _damaged(path, f"{place}: {first['msg']}")
    if not (found.sites and found.weights and any(found.inputs.values())):
        raise UsageError(
            f"{path} is empty: it holds no site, weight or input, and would pass "
            "anything; record it anew"
        )
    return found


def lines_of(path: Path) -> dict[str, int]:
    """Return the line on which each site and weight stands, for those who point at it.

    Of a file that was laid out anew only what has a line of its own is found.
    """
    found: dict[str, int] = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        name, colon, _ = line.strip().partition('": ')
        if colon and name.startswith('"'):
            found.setdefault(name[1:], number)
    return found


def _parsed(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UsageError(
            f"{path}: no such file; make it with recon baseline record {path}"
        )
    try:
        plain = json.loads(
            path.read_text("utf-8"),
            parse_constant=_no_constant,
            object_pairs_hook=_once,
        )
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        words = str(error).splitlines()[0]
        _damaged(path, f"it is no JSON ({words})")
    if not isinstance(plain, dict):
        raise _foreign(path)
    return plain


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    plain = dict(pairs)
    if len(plain) != len(pairs):
        raise ValueError("a name occurs twice")
    return plain


def _require_ours(path: Path, plain: dict[str, Any]) -> None:
    if plain.get("format") != FORMAT:
        raise _foreign(path)
    version = plain.get("schema_version")
    if version != SCHEMA_VERSION:
        newer = isinstance(version, int) and version > SCHEMA_VERSION
        hint = "upgrade recon" if newer else "record it anew"
        raise UsageError(
            f"{path} has schema version {version}, this recon reads {SCHEMA_VERSION}; "
            f"{hint}"
        )


def _foreign(path: Path) -> UsageError:
    return UsageError(
        f"{path} is JSON, but no baseline recorded by recon; recon baseline record "
        "makes one"
    )


def _damaged(path: Path, why: str) -> NoReturn:
    raise UsageError(
        f"{path} is damaged: {why}; restore it, or record it anew with recon baseline "
        f"record {path}"
    )


def _spread(plain: dict[str, Any]) -> str:
    """Lay a document out: an entry of each table on one line."""
    parts = [f"  {json.dumps(name)}: {_table(value)}" for name, value in plain.items()]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _table(value: Any) -> str:
    if not isinstance(value, dict) or not value:
        return _line(value)
    rows = [f"    {json.dumps(name)}: {_line(entry)}" for name, entry in value.items()]
    return "{\n" + ",\n".join(rows) + "\n  }"


def _line(value: Any) -> str:
    return json.dumps(value, allow_nan=False, ensure_ascii=False)
