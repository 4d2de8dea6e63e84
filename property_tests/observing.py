"""What the laws compare, read off without recon's own comparisons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import recon
from recon import Trace


def bits(tensor: Tensor) -> bytes:
    """Return a tensor's bits; unlike ``==`` they tell -0 from 0, and know NaN."""
    flat = tensor.detach().contiguous().flatten()
    return bytes(flat.view(torch.uint8).tolist()) if flat.numel() else b""


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors agree in shape, dtype and every bit."""
    return a.shape == b.shape and a.dtype == b.dtype and bits(a) == bits(b)


def record(model: nn.Module, inputs: Mapping[str, Any]) -> tuple[Trace, Any]:
    """Run once with all sites captured, from random state 0; return what came out."""
    with torch.no_grad(), recon.capture(model) as recorder:
        torch.manual_seed(0)
        output = model(**inputs, output_hidden_states=True)
    return recorder.trace, output


def tensors_of(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor in a model's output, with its path."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from tensors_of(f"{name}.{key}", item)
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            yield from tensors_of(f"{name}.{place}", item)
    elif hasattr(value, "self_attention_cache"):
        yield from tensors_of(f"{name}.self", value.self_attention_cache)
        yield from tensors_of(f"{name}.cross", value.cross_attention_cache)
    elif hasattr(value, "layers"):
        for place, layer in enumerate(value.layers):
            yield from tensors_of(f"{name}.{place}", (layer.keys, layer.values))


def hooks_of(model: nn.Module) -> dict[str, Any]:
    """Return every hook on every module, in order, with torch's notes about it."""
    return {
        f"{path}.{name}": tuple(held.items())
        for path, module in model.named_modules()
        for name, held in vars(module).items()
        if "_hooks" in name and isinstance(held, Mapping) and held
    }


def state_of(model: nn.Module) -> dict[str, Any]:
    """Return all that a capture could leave behind, as values that compare equal."""
    modules = dict(model.named_modules())
    return {
        "hooks": hooks_of(model),
        "mode": {path: module.training for path, module in modules.items()},
        "attributes": {path: sorted(vars(module)) for path, module in modules.items()},
        "weights": {
            name: (bits(weight), weight._version, weight.requires_grad, weight.grad)
            for name, weight in [*model.named_parameters(), *model.named_buffers()]
        },
        "config": repr(model.config),
        # Not Python's own generator: beartype draws from it while these tests run.
        "random": bits(torch.get_rng_state()),
        "torch": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    }
