"""Did a pass get what the function was given? Its tokens, positions and mask."""

from __future__ import annotations

import torch
from torch import Tensor

from recon.auditing.calls import Call
from recon.auditing.passes import alike
from recon.sites import Site
from recon.trace import Trace

ANOTHER_ORDER = "the rows in another order"


def other_inputs(trace: Trace, call: Call) -> str:
    """Compare the tokens and positions of a pass with those that were given."""
    given = call.situation.inputs["input_ids"]
    ids = trace.facts.ids.get(Site("wte"))
    if ids is None:
        return _other_embeddings(trace, call)
    ids = ids.reshape(-1, ids.shape[-1])
    place = _block_of(given, ids)
    if place is None:
        return f"other tokens, {tuple(ids.shape)} of them"
    if ids.shape == given.shape and not torch.equal(ids, given):
        return ANOTHER_ORDER
    if call.clean is not None and trace.facts.ids.keys() - call.clean.facts.ids.keys():
        return "token types that were not given"
    if _other_mask(trace, call):
        return "another attention mask"
    positions = trace.facts.ids.get(Site("wpe"))
    handed = call.situation.inputs.get("position_ids")
    if positions is not None and handed is not None and ids.shape == given.shape:
        shown = call.situation.inputs.get("attention_mask", torch.ones_like(given))
        same = (positions == handed) | (shown == 0)
        return "" if bool(same.all()) else "other positions"
    clean = None if call.clean is None else call.clean.facts.ids.get(Site("wpe"))
    if positions is None or clean is None or "attention_mask" in call.situation.inputs:
        return ""
    start, stop = place
    wanted = clean[:, start:stop]
    same = (positions[:, : stop - start] == wanted[:1]).all()
    return "" if bool(same) else "other positions"


def _other_embeddings(trace: Trace, call: Call) -> str:
    """Say if what was handed in for the tokens' embeddings is another site."""
    given, clean = trace.facts.given.get(Site("wte")), call.clean
    if given is None or clean is None or alike(given, clean[Site("wte")]):
        return ""
    places = (s for s, known in clean.tensors.items() if alike(given, known))
    place = next(places, None)
    if place is not None:
        return f"{place} for the tokens' embeddings"
    known = clean[Site("wte")]
    if given.shape != known.shape:
        return "embeddings of other tokens"
    factor = float((given * known).sum() / (known * known).sum())
    if alike(given, factor * known):
        return f"{factor:.6g} times the tokens' embeddings"
    return "embeddings that are not the tokens'"


def _other_mask(trace: Trace, call: Call) -> bool:
    """Whether every block of a pass hid other keys than the model by itself does.

    Keys that all hold one token, such as that for padding, may well be hidden; no token
    may see later ones.
    """
    clean, given = call.clean, call.situation.inputs["input_ids"]
    if clean is None or trace.facts.shape != clean.facts.shape:
        return False
    for place, usual in clean.facts.attention.items():
        ours = trace.facts.attention.get(place)
        if ours is None or ours.past or usual.past:
            return False
        sizes = (*given.shape, given.shape[1], given.device)
        allowed, seen = usual.mask_parts(*sizes)[0], ours.mask_parts(*sizes)[0]
        if bool((seen & ~allowed).triu(1).any()):
            continue
        keys = (allowed & ~seen).any(1).any(1)
        if not bool(keys.any()) or any(
            torch.equal(keys, given == token) for token in given[keys].unique()
        ):
            return False
    return bool(clean.facts.attention)


def _block_of(given: Tensor, ids: Tensor) -> tuple[int, int] | None:
    """Return which tokens of some rows of ``given``, each at most once, ``ids`` are."""
    length = ids.shape[1]
    for start in range(given.shape[1] - length + 1):
        piece = given[:, start : start + length]
        rows = [(piece == row).all(1).nonzero().flatten().tolist() for row in ids]
        places = [found[0] for found in rows if found]
        if len(places) == len(rows) and len(set(places)) == len(places):
            return start, start + length
    return None
