"""What to hook in a GPT-2, and what each hook notes of its call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from recon.errors import UnsupportedError
from recon.facts import Facts
from recon.gpt2.modules import HEADED, Parts
from recon.gpt2.passes import (
    End,
    facts,
    looked,
    received,
)
from recon.gpt2.start import Start
from recon.gpt2.weights import Slots
from recon.ops import rng_state, split_heads
from recon.plan import Passage, Plan, Read, Tap
from recon.sites import Site


def plan(model: nn.Module) -> Plan:
    """Say how to hook a GPT-2: seven hooks a block show all of its sites.

    Each tensor is read where it is consumed if that costs no further hook: ``ln_1`` is
    the input of c_attn, ``z`` that of c_proj. Raises UnsupportedError for a model
    that is no GPT2LMHeadModel or GPT2Model.
    """
    parts = Parts.of(model)
    names = _positional(parts)
    slots = Slots([module for _, _, module in parts.makers()])
    dropouts = [module for _, module in parts.dropouts()]
    inside = [(module, module.attn_dropout) for _, _, module in parts.attentions()]

    def begin(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Start:
        given = dict(zip(names, args, strict=False)) | kwargs
        return Start.of(given)

    def end() -> End:
        kernel = parts.model.config._attn_implementation
        return End(
            weights=slots.read(),
            # The mode is asked here, because most passes need no more.
            dropout=[_probability(one) if one.training else 0.0 for one in dropouts],
            attention=[
                _inside(module, dropout, kernel)
                if module.training or dropout.training
                else 0.0
                for module, dropout in inside
            ],
            kernel=kernel,
            training=parts.model.training,
        )

    def finish(
        start: Start,
        stop: End | None,
        notes: Mapping[str, list[Any]],
        stage: int | None = None,
    ) -> Facts:
        return facts(parts, start, stop or end(), notes, stage)

    taps = tuple(_taps(parts))
    _require_one_place_each(taps)
    return Plan(parts.model, taps, begin, end, finish, _present(parts))


def passages(model: nn.Module) -> tuple[Passage, ...]:
    """Return every module at which a site can be edited on its way."""
    return tuple(Parts.of(model).passages())


def _require_one_place_each(taps: tuple[Tap, ...]) -> None:
    """Refuse a hooked module that stands in two places: its hook could not tell them.

    Modules that have no hook may be shared.
    """
    paths: dict[nn.Module, str] = {}
    for tap in taps:
        first = paths.setdefault(tap.module, tap.path)
        if first != tap.path:
            raise UnsupportedError(
                f"recon does not check this model: {tap.path} is the same module as "
                f"{first}, and a hook cannot tell which of them it sees"
            )


def _positional(parts: Parts) -> tuple[str, ...]:
    """Name the root's arguments; past a class with ``*args``, its base's."""
    kinds: tuple[Any, ...] = type(parts.model).__mro__
    for kind in kinds:
        known = inspect.signature(kind.forward).parameters.values()
        if all(one.kind is not one.VAR_POSITIONAL for one in known):
            return tuple(one.name for one in known)[1:]
    return ()


def _probability(dropout: Any) -> float:
    """Return how likely a dropout drops now; one that was taken out never does."""
    return getattr(dropout, "p", 0.0) if dropout.training else 0.0


def _inside(attention: Any, dropout: Any, kernel: str) -> float:
    """Return how likely an attention drops a weight now.

    A fused kernel, and from version 5.23 on the eager one, look at the attention's own
    mode, not at that of its dropout, unless the product is upcast.
    """
    calls = attention.reorder_and_upcast_attn or not hasattr(attention, "scaling")
    if kernel == "eager" and calls:
        return _probability(dropout)
    return getattr(dropout, "p", 0.0) if attention.training else 0.0


def _present(parts: Parts) -> Callable[[Site, Tensor], Tensor]:
    heads = parts.body.config.n_head

    def present(place: Site, tensor: Tensor) -> Tensor:
        return split_heads(tensor, heads) if place.part in HEADED else tensor

    return present


def _taps(parts: Parts) -> Iterator[Tap]:
    body, prefix = parts.body, parts.prefix

    def tap(path: str, module: nn.Module, *reads: Read, **more: Any) -> Tap:
        return Tap(f"{prefix}{path}", module, reads, **more)

    twice: tuple[Read, ...] = ((Site("token_type"), "output"),)
    yield tap(
        "wte",
        body.wte,
        (Site("wte"), "output"),
        again=twice,
        spared=lambda start: start.embedded,
        note=_ids,
        required=False,
    )
    yield tap("wpe", body.wpe, (Site("wpe"), "output"), note=looked)
    yield tap("drop", body.drop, (Site("embed"), "output"), completes=-1)
    for layer, block in parts.blocks():
        yield from _block_taps(tap, layer, block)
    yield tap("ln_f", body.ln_f, (Site("ln_f"), "output"))
    if parts.head is not None:
        yield Tap("lm_head", parts.head, ((Site("logits"), "output"),))


def _block_taps(tap: Callable[..., Tap], layer: int, block: Any) -> Iterator[Tap]:
    def read(part: str, port: str) -> tuple[Site, str]:
        return Site(part, layer), port

    h = f"h.{layer}"
    yield tap(
        h,
        block,
        read("resid_pre", "input"),
        read("resid_post", "output"),
        completes=layer,
    )
    yield tap(
        f"{h}.attn.c_attn",
        block.attn.c_attn,
        read("ln_1", "input"),
        read("attn.qkv", "output"),
        note=_rng_before(block.attn),
    )
    yield from _attention_taps(tap, f"{h}.attn", "attn", layer, block.attn, True)
    if hasattr(block, "crossattention"):
        yield tap(
            f"{h}.ln_cross_attn",
            block.ln_cross_attn,
            read("cross.resid_pre", "input"),
            read("cross.ln", "output"),
            required=False,
        )
        cross = block.crossattention
        yield tap(
            f"{h}.crossattention.q_attn",
            cross.q_attn,
            read("cross.q", "output"),
            note=_rng_before(cross),
            required=False,
        )
        yield tap(
            f"{h}.crossattention.c_attn",
            cross.c_attn,
            read("cross.kv", "output"),
            note=_states,
            required=False,
        )
        yield from _attention_taps(
            tap, f"{h}.crossattention", "cross", layer, cross, False
        )
    yield tap(
        f"{h}.ln_2", block.ln_2, read("resid_mid", "input"), read("ln_2", "output")
    )
    yield tap(
        f"{h}.mlp.act",
        block.mlp.act,
        read("mlp.pre", "input"),
        read("mlp.post", "output"),
    )
    yield tap(
        f"{h}.mlp.dropout",
        block.mlp.dropout,
        read("mlp.out", "input"),
        read("mlp_out", "output"),
    )


def _attention_taps(
    tap: Callable[..., Tap],
    path: str,
    kind: str,
    layer: int,
    module: Any,
    required: bool,
) -> Iterator[Tap]:
    z, out = Site(f"{kind}.z", layer), Site(f"{kind}.out", layer)
    yield tap(
        f"{path}.c_proj",
        module.c_proj,
        (z, "input"),
        (out, "output"),
        required=required,
    )
    yield tap(
        path,
        module,
        (Site(f"{kind}_out", layer), "output"),
        (Site(f"{kind}.pattern", layer), "weights"),
        note=received,
        required=required,
        informs=(Site(f"{kind}.scores", layer), Site(f"{kind}.pattern", layer)),
    )


# -- notes ------------------------------------------------------------------


def _first_argument(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> Tensor | None:
    return args[0] if args else next(iter(kwargs.values()), None)


def _states(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> Tensor | None:
    """Note the encoder's states, without what the encoder made them of."""
    states = _first_argument(module, args, kwargs, output)
    return None if states is None else states.detach()


def _ids(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> Tensor | None:
    """Copy the tokens: decoding loops write the next one into the same tensor."""
    ids = _first_argument(module, args, kwargs, output)
    return None if ids is None else ids.clone()


def _rng_before(attention: Any) -> Callable[..., tuple[Tensor, ...] | None]:
    """Note the generator's state: the fused kernel draws its dropout right after."""

    def note(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> tuple[Tensor, ...] | None:
        if attention.training and getattr(attention.attn_dropout, "p", 0.0) > 0:
            return rng_state(output.device)
        return None

    return note
