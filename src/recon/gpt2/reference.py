"""What a GPT-2 itself returns, and what it can be asked."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from recon.errors import UnsupportedError, UsageError
from recon.gpt2 import caches
from recon.gpt2.modules import base
from recon.gpt2.passes import SUPPORTED_ATTENTION
from recon.listed import listed, meant

# What wrappers of a GPT-2's forward take, or pass on to its loss, without naming it.
_WRAPPERS = (
    *("output_hidden_states", "output_attentions", "return_dict"),
    *("past_key_values", "num_items_in_batch"),
)
_MOST_SHOWN = 5


@dataclass(frozen=True, eq=False)
class Reference:
    """What a forward pass returned, by name; None where it returned nothing."""

    hidden_states: tuple[Tensor | None, ...] | None
    last_hidden_state: Tensor | None
    logits: Tensor | None
    attentions: tuple[Tensor | None, ...] | None
    cross_attentions: tuple[Tensor | None, ...] | None
    cache: tuple[tuple[Tensor, Tensor], ...] | None

    @classmethod
    def of(cls, output: Any) -> Reference:
        """Read a ModelOutput; raises UnsupportedError for a plain tuple."""
        if isinstance(output, tuple | Tensor):
            raise UnsupportedError(
                "the model returned a plain tuple; call it with return_dict=True"
            )
        return cls(
            hidden_states=output.get("hidden_states"),
            last_hidden_state=output.get("last_hidden_state"),
            logits=output.get("logits"),
            attentions=output.get("attentions"),
            cross_attentions=output.get("cross_attentions"),
            cache=_cache_contents(caches.among(output)),
        )


def _cache_contents(cache: Any) -> tuple[tuple[Tensor, Tensor], ...] | None:
    if cache is None:
        return None
    return tuple(caches.entries(caches.halves(cache)[0]))


def sparing(model: nn.Module, inputs: Mapping[str, Any]) -> Reference:
    """Run the model, asking for nothing that grows with its depth."""
    asks = {"return_dict": True}
    if caches.among(inputs) is None:
        asks["use_cache"] = False
    return Reference.of(model(**{**asks, **_with_own_cache(inputs)}))


def reference(model: nn.Module, inputs: Mapping[str, Any]) -> Reference:
    """Run the model, asking for hidden states and, where it has any, patterns."""
    asks = {"output_hidden_states": True, "return_dict": True}
    config = base(model).config
    # Version 4 fails to collect the patterns of a cross-attention that rests.
    rests = config.add_cross_attention and inputs.get("encoder_hidden_states") is None
    if config._attn_implementation == "eager" and not rests:
        asks["output_attentions"] = True
    return Reference.of(model(**{**asks, **_with_own_cache(inputs)}))


def _with_own_cache(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a cache among the inputs: the pass writes it, the caller's stays."""
    return {
        name: caches.copied(value)
        if name in caches.NAMES and value is not None
        else value
        for name, value in inputs.items()
    }


@contextmanager
def hooks_of_its_own(model: nn.Module) -> Iterator[None]:
    """Take away, at the end, the capturing hooks that transformers adds meanwhile.

    From version 5 the first request for hidden states leaves a hook on every block
    and attention for good. Who asks on a user's model puts them back.
    """
    modules = list(model.modules())
    before = [set(m._forward_hooks) for m in modules]
    flagged = [m for m in modules if "_output_capturing_hooks_installed" in m.__dict__]
    try:
        yield
    finally:
        for module, known in zip(modules, before, strict=True):
            for key, hook in list(module._forward_hooks.items()):
                if key not in known and is_own_capture(hook):
                    del module._forward_hooks[key]
        for module in modules:
            if module not in flagged:
                module.__dict__.pop("_output_capturing_hooks_installed", None)


def is_own_capture(hook: object) -> bool:
    """Whether a forward hook is one that transformers collects its outputs with."""
    return getattr(hook, "__module__", "") == "transformers.utils.output_capturing"


def hidden_states_problem(model: nn.Module) -> str:
    """Say why hidden states will be missing, if one can know before asking."""
    body = base(model)
    installed = body.__dict__.get("_output_capturing_hooks_installed", False)
    lost = [
        f"h.{i}"
        for i, block in enumerate(body.h)
        if not any(is_own_capture(hook) for hook in block._forward_hooks.values())
    ]
    if not (installed and lost):
        return ""
    return (
        f"transformers' own capturing hooks were cleared from {', '.join(lost[:4])}"
        f"{' ...' if len(lost) > 4 else ''}: hidden_states comes back short or empty, "
        "without an error, until the model is loaded anew"
    )


def require_names(
    model: nn.Module, inputs: Mapping[str, Any], options: Collection[str] = ()
) -> None:
    """Raise UsageError for an input that the model's forward does not name.

    A forward with ``**kwargs`` would take any and do nothing with it. ``options`` are
    the other keywords of the function that was called, which may have been meant.
    """
    if not isinstance(inputs, Mapping):
        raise UsageError(
            f"inputs: expected a mapping of names to tensors, such as "
            f"{{'input_ids': ...}}, found {type(inputs).__name__}"
        )
    known = _named(model)
    for name in inputs:
        if name not in known:
            hint = meant(name, [*options, *known])
            hint = hint or f"; it takes {listed(known, _MOST_SHOWN)}"
            kind = type(model).__name__
            raise UsageError(f"{name}: no input of {kind} has such a name{hint}")


def _named(model: nn.Module) -> tuple[str, ...]:
    """Name the keywords of a model's forward, those of its base classes included."""
    base(model)
    kinds: tuple[Any, ...] = type(model).__mro__
    own = [
        one for one in kinds[: kinds.index(PreTrainedModel)] if "forward" in vars(one)
    ]
    found = [
        one.name
        for forward in (*(kind.forward for kind in own), model.forward)
        for one in inspect.signature(forward).parameters.values()
        if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD) and one.name != "self"
    ]
    return tuple(dict.fromkeys([*found, *_WRAPPERS]))


def require_inputs(model: nn.Module, inputs: Mapping[str, Any]) -> None:
    """Raise UsageError for inputs that this model cannot take, in one line.

    Raises UnsupportedError for a kernel of attention that recon does not check.
    """
    require_names(model, inputs)
    config = base(model).config
    if config._attn_implementation not in SUPPORTED_ATTENTION:
        raise UnsupportedError(
            f"recon does not check attention implementation "
            f"{config._attn_implementation!r}; expected one of "
            f"{', '.join(SUPPORTED_ATTENTION)}"
        )
    if any(weight.is_meta for weight in model.parameters()):
        raise UsageError("the model's weights are on device 'meta': nothing to run")
    given = _tokens(model, inputs)
    past = caches.among(inputs)
    seen = caches.length(past) if past is not None else 0
    if inputs.get("position_ids") is not None:
        _require_range("position", inputs["position_ids"], config.n_positions)
    elif seen + given.shape[1] > config.n_positions:
        raise UsageError(
            f"the prompt has {seen + given.shape[1]} tokens, but the context of this "
            f"model is {config.n_positions}; shorten it"
        )
    if (
        inputs.get("encoder_hidden_states") is not None
        and not config.add_cross_attention
    ):
        raise UsageError(
            "encoder_hidden_states given, but the model has no cross-attention"
        )


def _tokens(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """Return the ids or embeddings among the inputs, once they are known to be fit."""
    ids, embeddings = inputs.get("input_ids"), inputs.get("inputs_embeds")
    if (ids is None) == (embeddings is None):
        raise UsageError("give either input_ids or inputs_embeds")
    name, given = (
        ("input_ids", ids) if ids is not None else ("inputs_embeds", embeddings)
    )
    wanted = 2 if ids is not None else 3
    if not isinstance(given, Tensor) or given.ndim != wanted:
        shape = (
            tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        )
        axes = "(batch, tokens)" if wanted == 2 else "(batch, tokens, width)"
        raise UsageError(f"{name}: expected a tensor of shape {axes}, found {shape}")
    if not given.shape[0] or not given.shape[1]:
        raise UsageError(f"{name} is empty, shape {tuple(given.shape)}: nothing to run")
    if ids is not None:
        _require_range("token id", ids, base(model).config.vocab_size)
    return given


def _require_range(what: str, ids: Tensor, size: int) -> None:
    if ids.is_floating_point() or ids.is_complex():
        kind = str(ids.dtype).removeprefix("torch.")
        raise UsageError(f"expected {what}s that are integers, found {kind}")
    outside = ids[(ids < 0) | (ids >= size)]
    if outside.numel():
        raise UsageError(
            f"{what} {int(outside[0])} is out of range: this model has 0 to {size - 1}"
        )
