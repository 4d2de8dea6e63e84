"""Level ``replay``: run each op again, on what was captured, and compare the bits.

Exact on the same device and library build: same functional, dtype and shapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from recon.compare import Check, compare
from recon.errors import CaptureError
from recon.facts import Identity
from recon.ops import Fused, Mix, Pattern
from recon.trace import Trace

LEVEL = "replay"


def replay(trace: Trace, identities: Iterable[Identity]) -> Iterator[Check]:
    """Yield one check for each identity, in the given order."""
    for identity in identities:
        yield check(trace, identity)


@torch.no_grad()
def check(trace: Trace, identity: Identity) -> Check:
    """Predict one site from its captured inputs; never read the site itself."""
    site, op = str(identity.site), identity.op
    try:
        inputs = [trace[place] for place in identity.inputs] + list(identity.extra)
        found = trace.captured(identity.site)
        with trace.arithmetic():
            expected = op(*inputs)
        idle = op.idle(*inputs) if isinstance(op, Pattern | Mix | Fused) else None
    except CaptureError as error:
        return Check(site, identity.name, LEVEL, "missing", reason=str(error))
    except (RuntimeError, ValueError, IndexError) as error:
        return _cannot(identity, error)
    return compare(
        expected,
        found,
        site=site,
        identity=identity.name,
        level=LEVEL,
        dropout=identity.dropout,
        idle=idle,
    )


def _cannot(identity: Identity, error: Exception) -> Check:
    words = str(error).splitlines()[0]
    inputs = ", ".join(map(str, identity.inputs))
    return Check(
        str(identity.site),
        identity.name,
        LEVEL,
        "unverified",
        reason=f"cannot be recomputed from {inputs}: {words}",
    )
