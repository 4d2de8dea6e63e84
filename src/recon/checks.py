"""All checks of one pass, by level, each placed where the model computes its site."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from recon import gpt2
from recon.certify import check as certified
from recon.compare import Check, compare
from recon.errors import UsageError
from recon.facts import Identity
from recon.gpt2 import Reference
from recon.ledger import reconstruct
from recon.ops import Linear, Unembed
from recon.recorder import never_ran
from recon.replay import check as replayed
from recon.rounding import Form
from recon.sites import Site
from recon.sketch import Sketcher, sketch
from recon.trace import Trace

Level: TypeAlias = Literal["ledger", "sketch", "replay", "certify"]
LEVELS: tuple[Level, ...] = ("ledger", "sketch", "replay", "certify")
DEFAULT: tuple[Level, ...] = ("ledger", "replay")
Placed: TypeAlias = tuple[tuple[float, ...], Check]

NO_PROOF = (
    "probabilistic bounds: likely, not a proof; they assume independent rounding "
    "errors with mean zero, and a correct run may exceed them"
)

# Projections are made once per model, whoever asks, from any thread.
_SKETCHER = Sketcher()


@dataclass(frozen=True)
class Levels:
    """What to check, and in which form the bounds are."""

    names: tuple[Level, ...] = DEFAULT
    form: Form = "deterministic"

    def __post_init__(self) -> None:
        unknown = [name for name in self.names if name not in LEVELS]
        if unknown or not self.names:
            raise UsageError(
                f"levels={list(self.names)}: expected some of {', '.join(LEVELS)}"
            )
        if self.form not in ("deterministic", "probabilistic"):
            raise UsageError(
                f"bound={self.form!r}: expected deterministic or probabilistic"
            )

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know about verdicts that rest on bounds which are no proof."""
        if self.form == "probabilistic" and "certify" in self.names:
            return (NO_PROOF,)
        return ()


def trace_checks(
    trace: Trace, returned: Reference | None, levels: Levels
) -> list[Check]:
    """Return all checks of one pass, shallowest first."""
    placed: list[Placed] = list(firings(trace))
    if "ledger" in levels.names:
        placed += ledger_checks(trace, returned)
    if set(levels.names) == {"ledger"}:
        return in_order(placed)
    identities = list(gpt2.identities(trace))
    placed += identity_checks(trace, identities, levels)
    if set(levels.names) & {"replay", "certify"}:
        placed += _unpredicted(trace, identities)
        if returned is not None:
            placed += returned_checks(trace, returned)
    return in_order(placed)


def in_order(placed: Iterable[Placed]) -> list[Check]:
    """Sort checks by where the model computes their site, shallowest first."""
    return [check for _, check in sorted(placed, key=lambda pair: pair[0])]


def identity_checks(
    trace: Trace, identities: Iterable[Identity], levels: Levels
) -> Iterator[Placed]:
    """Check local identities at each level asked for."""
    identities = list(identities)
    if "sketch" in levels.names:
        linear = [i for i in identities if isinstance(i.op, Linear | Unembed)]
        places = [identity.site.depth for identity in linear]
        yield from zip(places, sketch(trace, linear, _SKETCHER), strict=True)
    for identity in identities:
        where = identity.site.depth
        if "replay" in levels.names:
            yield where, replayed(trace, identity)
        if "certify" in levels.names:
            yield where, certified(trace, identity, levels.form)


def _unpredicted(trace: Trace, identities: Iterable[Identity]) -> Iterator[Placed]:
    """Name the captured tensors that no identity speaks of: they are not verified."""
    predicted = {identity.site for identity in identities}
    for place in trace.tensors:
        if place not in predicted:
            yield (
                place.depth,
                Check(
                    str(place),
                    "predicted",
                    "capture",
                    "unverified",
                    reason="no identity of this pass says what it must be",
                ),
            )


def firings(trace: Trace) -> Iterator[Placed]:
    """Say which hooked modules ran not once, or more than once."""
    if trace.never_ran:
        yield (
            (-1.0,),
            Check(
                trace.never_ran[0],
                "fired",
                "capture",
                "missing",
                reason=never_ran(trace),
            ),
        )
    for words in trace.repeated:
        yield (
            (-1.0,),
            Check(
                words.split()[0],
                "fired",
                "capture",
                "diverged",
                reason=f"{words} in one pass: which of them was captured is undefined",
            ),
        )


def ledger_checks(trace: Trace, returned: Reference | None) -> Iterator[Placed]:
    """Compare the rebuilt stream with the model's own hidden states, entry by entry."""
    states: Sequence[Tensor | None] | None
    states = None if returned is None else returned.hidden_states
    try:
        rebuilt = reconstruct(trace)
        if returned is None:
            states = _captured_states(trace)
    except KeyError as error:
        yield (0.0,), no_states(str(error))
        return
    except RuntimeError as error:
        # Captures of a wrong shape or dtype: their own checks come first, and say so.
        yield (3.0,), no_states(f"cannot be rebuilt: {str(error).splitlines()[0]}")
        return
    if states is None:
        yield (
            (0.0,),
            no_states("not returned: the pass ran without output_hidden_states=True"),
        )
        return
    if len(states) != len(rebuilt):
        yield (
            (0.0,),
            no_states(
                f"hidden_states has {len(states)} entries, expected {len(rebuilt)}"
            ),
        )
    for index, (expected, found) in enumerate(zip(rebuilt, states, strict=False)):
        last = index == len(rebuilt) - 1
        if found is None:
            yield (1.0, float(index), 0.0), _missing_state(index)
            continue
        yield state_check(expected, found, index, last)


def state_check(expected: Tensor, found: Tensor, index: int, last: bool) -> Placed:
    """Compare one rebuilt state with the one that the model has."""
    # After the law of the block's input: where that is wrong, the fault is there.
    depth = (2.0, 0.0, 1e6) if last else (*Site("resid_pre", index).depth, 0.5)
    name = f"hidden_states.{index}"
    check = compare(
        expected, found, site=name, identity="hidden_states", level="ledger"
    )
    return depth, check


def _missing_state(index: int) -> Check:
    return Check(
        f"hidden_states.{index}",
        "hidden_states",
        "ledger",
        "missing",
        reason="is None: output_hidden_states selected other layers",
    )


def _captured_states(trace: Trace) -> list[Tensor]:
    depth = trace.facts.depth
    last = Site("ln_f") if trace.facts.tied_last else Site("resid_post", depth - 1)
    return [*(trace[Site("resid_pre", i)] for i in range(depth)), trace[last]]


def no_states(reason: str) -> Check:
    """Say why there are no hidden states to compare."""
    return Check(
        "hidden_states",
        "hidden_states",
        "ledger",
        "missing",
        reason=reason,
    )


def returned_checks(trace: Trace, returned: Reference) -> Iterator[Placed]:
    """Compare what the model returned besides hidden states with the captures."""
    depth = trace.facts.depth

    def pair(name: str, place: Site, found: Tensor | None) -> Iterator[Placed]:
        if found is None or trace.origin(place) is None:
            return
        yield (
            (*place.depth, 0.5),
            compare(
                trace[place], found, site=str(place), identity=name, level="replay"
            ),
        )

    for layer, found in enumerate(returned.attentions or ()):
        yield from pair("attentions", Site("attn.pattern", layer), found)
    for layer, found in enumerate(returned.cross_attentions or ()):
        yield from pair("cross_attentions", Site("cross.pattern", layer), found)
    if trace.facts.environment.attention == "eager" and returned.attentions is not None:
        present = [found for found in returned.attentions if found is not None]
        if len(present) != depth:
            yield (
                (0.0,),
                Check(
                    "attentions",
                    "attentions",
                    "replay",
                    "missing",
                    reason=f"attentions has {len(present)} entries, expected {depth}",
                ),
            )
    for layer, (keys, values) in enumerate(returned.cache or ()):
        call = trace.facts.attention.get(Site("attn_out", layer))
        if call is not None and call.keys is not None and call.values is not None:
            for part, seen, found in (
                ("k", call.keys, keys),
                ("v", call.values, values),
            ):
                place = Site(f"attn.{part}", layer)
                yield (
                    (*place.depth, 0.5),
                    compare(
                        seen,
                        found,
                        site=str(place),
                        identity="past_key_values",
                        level="replay",
                    ),
                )
    yield from pair("last_hidden_state", Site("ln_f"), returned.last_hidden_state)
    yield from pair("logits", Site("logits"), returned.logits)


def undisturbed(bare: Reference, captured: Reference) -> Iterator[Check]:
    """Check that capture changed no bit of what the model returns.

    One check stands for all: the shallowest that fails, if any does.
    """
    name = "logits" if bare.logits is not None else "last_hidden_state"
    states = zip(bare.hidden_states or (), captured.hidden_states or (), strict=False)
    pairs = [(f"hidden_states.{i}", a, b) for i, (a, b) in enumerate(states)]
    pairs += [(name, getattr(bare, name), getattr(captured, name))]
    shown: Check | None = None
    for site, without, with_capture in pairs:
        if without is None or with_capture is None:
            continue
        check = compare(
            *_where_finite(without, with_capture),
            site=site,
            identity="undisturbed",
            level="capture",
        )
        if shown is None or shown.passed:
            shown = check
    if shown is not None:
        yield shown


def _where_finite(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Put 0 where neither is finite: that is no doing of capture."""
    if one.shape != other.shape:
        return one, other
    either = torch.isfinite(one) | torch.isfinite(other)
    return one.where(either, 0.0), other.where(either, 0.0)
