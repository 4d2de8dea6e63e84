"""Level ``replay``: run each op again, on what was captured, and compare the bits.

Exact on the same device and library build: same functional, dtype and shapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from recon.compare import Check, compare
from recon.errors import CaptureError
from recon.facts import Identity
from recon.ops import Fused, Mix, Pattern
from recon.trace import Trace

LEVEL = "replay"


def replay(trace: Trace, identities: Iterable[Identity]) -> Iterator[Check]:
    """Yield one check for each identity, in the given order."""
    with torch.no_grad(), trace.arithmetic():
        for identity in identities:
            yield check(trace, identity)


def check(trace: Trace, identity: Identity) -> Check:
    """Predict one site from its captured inputs; never read the site itself."""
    site = str(identity.site)
    try:
        inputs = [trace[place] for place in identity.inputs]
        found = trace[identity.site]
    except CaptureError as error:
        return Check(site, identity.name, LEVEL, "missing", reason=str(error))
    try:
        expected = identity.op(*inputs, *identity.extra)
    except RuntimeError as error:
        return _cannot(identity, error)
    return compare(
        expected,
        found,
        site=site,
        identity=identity.name,
        level=LEVEL,
        dropout=identity.dropout,
        idle=_idle(identity, [*inputs, *identity.extra]),
    )


def _idle(identity: Identity, inputs: list[Tensor]) -> Tensor | None:
    """Mask the rows of an attention that had no key to attend to."""
    op, first = identity.op, inputs[0] if inputs else None
    if first is None or not isinstance(op, Pattern | Mix | Fused):
        return None
    batch, _, queries, _ = first.shape
    keys = first.shape[3] if isinstance(op, Mix) else inputs[1].shape[2]
    return op.attention.idle_rows(batch, queries, keys, first.device)


def _cannot(identity: Identity, error: RuntimeError) -> Check:
    words = str(error).splitlines()[0]
    inputs = ", ".join(map(str, identity.inputs))
    return Check(
        str(identity.site),
        identity.name,
        LEVEL,
        "unverified",
        reason=f"cannot be recomputed from {inputs}: {words}",
    )
