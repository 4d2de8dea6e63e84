"""Files that are replaced whole or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

# What a kill may leave; safetensors writes under a name made of the one it is given.
UNFINISHED = re.compile(r"\.recon-[0-9a-f]{16}\.part(\..*)?")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield an empty file to write in the block; then it takes the path's place.

    It is on the disk, not only in a cache, before it gets its name. Where the block
    raises, nothing is left of it. Raises OSError.
    """
    draft = path.with_name(f".recon-{token_hex(8)}.part")
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        # Some writers make files that only their owner may read; ours follow the umask.
        mode = draft.stat().st_mode
        yield draft
        draft.chmod(mode)
        sync(draft)
        draft.replace(path)
    except BaseException:
        # What went wrong is to be told, not that its rest could not be removed.
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
    with suppress(PermissionError):  # of a folder whose names one may not list
        sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_text(path: Path, text: str) -> None:
    """Write text as UTF-8; else as ``replace_bytes``."""
    replace_bytes(path, text.encode("utf-8"))


def replace_bytes(path: Path, content: bytes) -> None:
    """Replace a file by one with this content; raises OSError, leaving nothing.

    A device or a pipe, /dev/stderr for one, is written to, never replaced.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    with replacing(path) as draft:
        draft.write_bytes(content)
