"""The facts of one pass of a GPT-2: what each part of it received and held."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, NamedTuple, TypeAlias

import torch
import transformers
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from recon.errors import UnsupportedError
from recon.facts import Environment, Facts
from recon.gpt2 import caches
from recon.gpt2.known import described, known, strangers
from recon.gpt2.modules import HEADED, Parts
from recon.gpt2.start import Start
from recon.gpt2.weights import Counted, Held, Reading, Slots
from recon.ops import (
    Activation,
    Attention,
    LayerNorm,
    Linear,
    Lookup,
    Unembed,
    product_rounding,
)
from recon.sites import Site

SUPPORTED_ATTENTION = ("eager", "sdpa")
_PLAIN_CACHES = {"DynamicLayer", "StaticLayer"}
# Hidden states are collected by hooks, and their last entry may be untied, only
# where this module exists; before, the model's own forward collects them.
_CAPTURED_BY_HOOKS = find_spec("transformers.utils.output_capturing") is not None


class Received(NamedTuple):
    """What an attention was handed: mask, number of queries, cache contents."""

    mask: Tensor | None
    queries: int
    keys: Tensor | None = None
    values: Tensor | None = None
    past: int = 0
    unsupported: str = ""


def received(
    module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> Received:
    """Note what an attention was called with; a hook's arguments."""
    hidden = args[0] if args else kwargs["hidden_states"]
    cross = module.is_cross_attention
    mask = kwargs.get("encoder_attention_mask" if cross else "attention_mask")
    if mask is not None and mask.requires_grad:
        mask = mask.detach()
    queries = hidden.shape[1]
    cache = caches.among(kwargs)
    if kwargs.get("head_mask") is not None:
        return Received(mask, queries, unsupported="head_mask")
    if cache is None:
        return _with_present(output, mask, queries)
    self_cache, cross_cache = caches.halves(cache)
    cache = cross_cache if cross else self_cache
    if cache is None:
        return Received(mask, queries)
    if not hasattr(cache, "layers"):
        pair = list(caches.entries(cache))[module.layer_idx]
        return _with_pair(pair, mask, queries, cross)
    return _with_cache(cache.layers[module.layer_idx], mask, queries, cross)


def _with_present(output: Any, mask: Tensor | None, queries: int) -> Received:
    """Read what up to version 4.51 an attention returns in place of a cache."""
    if type(output) is tuple and len(output) > 1 and isinstance(output[1], tuple):
        return _with_pair(output[1], mask, queries)
    return Received(mask, queries)


def _with_pair(
    pair: caches.Entry, mask: Tensor | None, queries: int, cross: bool = False
) -> Received:
    keys, values = pair
    if keys.requires_grad:
        keys, values = keys.detach(), values.detach()
    return Received(
        mask, queries, keys, values, 0 if cross else keys.shape[2] - queries
    )


def _with_cache(layer: Any, mask: Tensor | None, queries: int, cross: bool) -> Received:
    kind = type(layer).__name__
    if kind not in _PLAIN_CACHES:
        return Received(mask, queries, unsupported=f"a cache of {kind}")
    if kind == "DynamicLayer":
        return _with_pair((layer.keys, layer.values), mask, queries, cross)
    keys, values = layer.keys.detach(), layer.values.detach()
    # Later steps write a static cache in place: what was seen must be copied.
    past = 0 if cross else int(layer.get_seq_length()) - queries
    return Received(mask, queries, keys.clone(), values.clone(), past)


class Looked(NamedTuple):
    """The positions that were looked up, and the dtype that autocast was on for."""

    ids: Tensor
    autocast: torch.dtype | None


def looked(
    module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> Looked:
    """Note the call of the positions' embedding, deep inside the forward pass.

    Positions are copied, as tokens are: loops count them up in place.

    The root's arguments come before a wrapper of its forward may turn autocast on.
    """
    ids = args[0] if args else next(iter(kwargs.values()))
    return Looked(ids.clone(), _autocast(_kind(output)))


def _kind(tensor: Any) -> str:
    # A device is made anew each time it is asked for, so most are not asked.
    if not isinstance(tensor, Tensor) or tensor.is_cpu:
        return "cpu"
    return tensor.device.type


def _autocast(kind: str) -> torch.dtype | None:
    """Return the dtype that autocast is on for."""
    if not _can_autocast(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


@lru_cache
def _can_autocast(kind: str) -> bool:
    # Some devices, meta for one, have no autocast, and raise when asked.
    return torch.amp.is_autocast_available(kind)


# The classes of modules with weights that recon can run again.
_WEIGHTED = (nn.Embedding, nn.LayerNorm, Conv1D, nn.Linear)
Maker: TypeAlias = Lookup | LayerNorm | Linear | Unembed | Activation


# Made in every pass: a frozen dataclass takes twice as long.
@dataclass(eq=False, slots=True)
class End:
    """What is read off the modules when the pass is over, in the plan's order."""

    weights: Reading
    dropout: list[float]
    attention: list[float]
    kernel: str
    training: bool


def facts(
    parts: Parts,
    start: Start,
    end: End,
    notes: Mapping[str, list[Any]],
    stage: int | None = None,
) -> Facts:
    """Put together what the identities of one pass, or of one stage, need to know."""
    config = parts.body.config
    problems = list(strangers(parts))
    if end.kernel not in SUPPORTED_ATTENTION:
        problems.append(f"attention implementation {end.kernel!r}")
    if parts.body.wpe.weight.is_meta:
        problems.append("a model on the meta device, which computes no numbers")
    if isinstance(start.logits_to_keep, Tensor) and start.logits_to_keep.ndim != 1:
        problems.append("a logits_to_keep that is not one-dimensional")
    makers, counted, unmade = _makers(parts, start, end, notes, stage)
    problems += unmade
    attention, unclear = _attention_facts(parts, start, end, notes)
    return Facts(
        environment=_environment(parts, start, end, _autocast_noted(parts, notes)),
        depth=len(parts.layers),
        heads=config.n_head,
        width=config.n_embd,
        tied_last=not _CAPTURED_BY_HOOKS
        or getattr(config, "tie_last_hidden_states", None) is not False,
        shape=tuple(start.shape[:2]),
        makers=makers,
        attention=attention,
        dropout=dict(zip((s for s, _ in parts.dropouts()), end.dropout, strict=True)),
        given={} if start.embeddings is None else {Site("wte"): start.embeddings},
        encoder=_encoder_states(parts, notes),
        ids={s: op.ids for s, op in makers.items() if isinstance(op, Lookup)},
        unsupported=tuple(dict.fromkeys([*problems, *unclear])),
        weights_at_run=tuple(counted),
        notes=tuple(_quirks(parts, end)),
    )


def _makers(
    parts: Parts,
    start: Start,
    end: End,
    notes: Mapping[str, list[Any]],
    stage: int | None,
) -> tuple[dict[Site, Maker], list[Counted], list[str]]:
    """Return the ops that have weights, the weights' versions, and what is unknown."""
    problems: list[str] = []
    makers: dict[Site, Maker] = {}
    counted: list[Counted] = []
    modules = list(parts.makers())
    read = end.weights.by_module(path for path, _, _ in modules)
    for (path, place, module), (held, counted_here) in zip(modules, read, strict=True):
        if stage is not None and place.stage(len(parts.layers)) != stage:
            continue
        try:
            makers |= _maker(parts, path, place, module, held, start, notes)
        except UnsupportedError as error:
            problems.append(str(error))
        counted += counted_here
    return makers, counted, problems


def with_weights(
    model: nn.Module,
    ran: Facts,
    keep: int | Tensor,
) -> Facts:
    """Give the facts of a saved run the weights of the model that it came from."""
    parts = Parts.of(model)
    start = Start(
        embedded=Site("wte") not in ran.ids,
        embeddings=None,
        shape=(),
        logits_to_keep=keep,
        grad=ran.environment.grad,
        backends=(),
    )
    read = Slots([module for _, _, module in parts.makers()]).read()
    environment = ran.environment
    end = End(read, [], [], environment.attention, environment.training)
    notes: dict[str, list[Any]] = {}
    for place in (Site("wte"), Site("token_type"), Site("wpe")):
        path = f"{parts.prefix}{'wpe' if place.part == 'wpe' else 'wte'}"
        notes.setdefault(path, []).extend([ran.ids[place]] if place in ran.ids else [])
    makers, counted, unmade = _makers(parts, start, end, notes, None)
    problems = [*ran.unsupported, *strangers(parts), *unmade]
    return replace(
        ran,
        makers=makers,
        weights_at_run=tuple(counted),
        unsupported=tuple(dict.fromkeys(problems)),
    )


def _autocast_noted(parts: Parts, notes: Mapping[str, list[Any]]) -> torch.dtype | None:
    calls = notes.get(f"{parts.prefix}wpe")
    return calls[0].autocast if calls else None


def _environment(
    parts: Parts, start: Start, end: End, autocast: torch.dtype | None
) -> Environment:
    weight = parts.body.wpe.weight
    return Environment(
        architecture=type(parts.model).__name__,
        torch=torch.__version__,
        transformers=transformers.__version__,
        device=str(weight.device),
        dtype=weight.dtype,
        autocast=autocast,
        attention=end.kernel,
        training=end.training,
        grad=start.grad,
        threads=torch.get_num_threads(),
        product_rounding=product_rounding(weight.dtype, weight.device),
        reduced=weight.is_cuda and _summed_in_half(autocast or weight.dtype),
    )


def _summed_in_half(dtype: torch.dtype) -> bool:
    names = {torch.float16: "fp16", torch.bfloat16: "bf16"}
    if dtype not in names:
        return False
    option = f"allow_{names[dtype]}_reduced_precision_reduction"
    return bool(getattr(torch.backends.cuda.matmul, option))


def _maker(
    parts: Parts,
    path: str,
    place: Site,
    module: Any,
    held: Held,
    start: Start,
    notes: Mapping[str, list[Any]],
) -> dict[Site, Maker]:
    """Return the ops that a module makes; Unsupported for a class we do not know."""
    weight, bias = held.get("weight"), held.get("bias")
    kind = next((one for one in _WEIGHTED if known(module, one)), None)
    if place.part == "mlp.post":
        return {place: Activation(module)}
    if weight is None:
        words = f"{path} as a {type(module).__name__}"
        raise UnsupportedError(f"{words}, whose weight is no parameter of its own")
    if kind is nn.Embedding:
        noted = notes.get(path, [])
        calls = [one.ids if isinstance(one, Looked) else one for one in noted]
        again = [place, Site("token_type")]
        if place.part == "wte" and start.embedded:
            again = again[1:]
        return {s: Lookup(weight, ids) for s, ids in zip(again, calls, strict=False)}
    if kind is nn.LayerNorm:
        return {place: LayerNorm(weight, bias, module.eps)}
    if kind is Conv1D and bias is not None:
        heads = parts.body.config.n_head if place.part in HEADED else 0
        return {place: Linear(weight, bias, heads)}
    if kind is nn.Linear and place.part == "logits":
        return {place: Unembed(weight, bias, start.logits_to_keep)}
    raise UnsupportedError(described(path, module, *_WEIGHTED))


def _encoder_states(parts: Parts, notes: Mapping[str, list[Any]]) -> dict[Site, Tensor]:
    return {
        place: notes[path][0]
        for path, place, _ in parts.makers()
        if place.part == "cross.kv" and notes.get(path)
    }


def _attention_facts(
    parts: Parts, start: Start, end: End, notes: Mapping[str, list[Any]]
) -> tuple[dict[Site, Attention], list[str]]:
    found: dict[Site, Attention] = {}
    problems = []
    for (path, place, module), dropout in zip(
        parts.attentions(), end.attention, strict=True
    ):
        for received in notes.get(path, [])[:1]:
            first = "q_attn" if module.is_cross_attention else "c_attn"
            rng = next(iter(notes.get(f"{path}.{first}", [])), None)
            found[place] = _attention(module, received, end.kernel, dropout, rng, start)
            if received.unsupported:
                problems.append(received.unsupported)
    return found, problems


def _attention(
    module: Any,
    got: Received,
    implementation: str,
    dropout: float,
    rng: tuple[Tensor, ...] | None,
    start: Start,
) -> Attention:
    fused = implementation != "eager"
    upcast = module.reorder_and_upcast_attn and not fused
    causal = not module.is_cross_attention
    hides = fused and causal and got.mask is None and got.queries > 1
    scaling, divisors = _scaling(module, fused, upcast)
    return Attention(
        kernel="sdpa" if fused else "upcast" if upcast else "eager",
        heads=module.num_heads,
        scaling=scaling,
        divisors=divisors,
        mask=got.mask,
        hides_later=hides,
        # Before version 5 eager attention drew the causal triangle itself.
        fills_later=not fused and causal and not hasattr(module, "scaling"),
        dropout=dropout,
        keys=got.keys,
        values=got.values,
        past=got.past,
        rng=rng or (),
        backends=start.backends if fused else (),
    )


def _scaling(
    module: Any, fused: bool, upcast: bool
) -> tuple[float | None, tuple[tuple[float, bool], ...]]:
    """Return how scores are scaled; version 5 has one factor, version 4 had steps."""
    if hasattr(module, "scaling"):
        return module.scaling, ()
    if fused:
        return None, ()
    root, layer = module.head_dim**0.5, float((module.layer_idx or 0) + 1)
    if upcast:
        factor = 1.0 / root if module.scale_attn_weights else 1.0
        return factor / (layer if module.scale_attn_by_inverse_layer_idx else 1.0), ()
    steps = [(root, True)] if module.scale_attn_weights else []
    steps += [(layer, False)] if module.scale_attn_by_inverse_layer_idx else []
    return None, tuple(steps)


def _quirks(parts: Parts, end: End) -> Iterator[str]:
    """Say where the running version does not do what the config asks for."""
    config = parts.body.config
    if end.kernel == "sdpa" and config.reorder_and_upcast_attn:
        yield "sdpa attention ignores reorder_and_upcast_attn"
    first = parts.body.h[0].attn if len(parts.layers) else None
    if end.kernel == "sdpa" and first is not None and not hasattr(first, "scaling"):
        if not config.scale_attn_weights:
            yield "sdpa attention in this transformers ignores scale_attn_weights=False"
        if config.scale_attn_by_inverse_layer_idx:
            yield (
                "sdpa attention in this transformers ignores "
                "scale_attn_by_inverse_layer_idx"
            )
