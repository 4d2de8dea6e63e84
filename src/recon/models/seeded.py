"""A GPT-2 with seeded random weights, of a published size or of any config."""

from __future__ import annotations

import math
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model, PreTrainedModel
from transformers.activations import ACT2FN

from recon.errors import UsageError

# The published sizes of GPT-2, and one that runs in milliseconds.
RANDOM_SIZES: dict[str, dict[str, int]] = {
    "tiny": {"n_layer": 3, "n_embd": 48, "n_head": 4, "n_positions": 128},
    "gpt2": {"n_layer": 12, "n_embd": 768, "n_head": 12},
    "gpt2-medium": {"n_layer": 24, "n_embd": 1024, "n_head": 16},
    "gpt2-large": {"n_layer": 36, "n_embd": 1280, "n_head": 20},
    "gpt2-xl": {"n_layer": 48, "n_embd": 1600, "n_head": 25},
}
_TINY_VOCABULARY = 3000
# Every activation that a config may name, GPT-2's own first.
ACTIVATIONS = ("gelu_new", *sorted(set(ACT2FN) - {"gelu_new"}))


def random_model(size: str, attention: str | None, seed: int) -> PreTrainedModel:
    """Build one of ``RANDOM_SIZES``; raises UsageError for another."""
    return _built(random_config(size), GPT2LMHeadModel, attention, seed)


def build(
    options: Mapping[str, Any],
    *,
    headed: bool = True,
    attention: str | None = None,
    seed: int = 0,
) -> PreTrainedModel:
    """Build a GPT-2 of ``options`` of its config, with seeded weights, in float32."""
    kind = GPT2LMHeadModel if headed else GPT2Model
    return _built(GPT2Config(**options), kind, attention, seed)


def _built(
    config: GPT2Config, kind: type[PreTrainedModel], attention: str | None, seed: int
) -> PreTrainedModel:
    config._attn_implementation = attention or "sdpa"
    with torch.random.fork_rng([]):
        model = kind(config)
    perturb(model, seed)
    return model


def random_config(size: str) -> GPT2Config:
    """Return the config of one of ``RANDOM_SIZES``; raises UsageError for another."""
    if size not in RANDOM_SIZES:
        known = ", ".join(RANDOM_SIZES)
        near = get_close_matches(size, RANDOM_SIZES, n=1)
        hint = f"; did you mean random:{near[0]}?" if near else ""
        raise UsageError(
            f"random:{size} is unknown; expected random: and one of {known}{hint}"
        )
    options: dict[str, Any] = dict(RANDOM_SIZES[size])
    if size == "tiny":
        options |= {
            "vocab_size": _TINY_VOCABULARY,
            "bos_token_id": 0,
            "eos_token_id": 0,
        }
    return GPT2Config(**options)


def perturb(model: PreTrainedModel, seed: int = 0) -> None:
    """Fill a GPT-2 with seeded weights whose scales are those of a trained one.

    Raw initialisation hides faults: its biases are zero, its LayerNorms the identity,
    and the two gelus agree to 1e-5. Here biases are N(0, 0.2), LayerNorm weights
    N(1, 0.2) and matrices wide enough that scores spread over several units.
    """
    generator = torch.Generator().manual_seed(seed)
    spread = math.sqrt(768 / model.config.n_embd)
    depth = math.sqrt(2 * model.config.n_layer)

    def fill(tensor: Tensor, mean: float, std: float) -> None:
        noise = torch.empty(tensor.shape, dtype=torch.float32)
        noise.normal_(mean, std, generator=generator)
        tensor.copy_(noise)

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".ln_" in name or name.startswith("ln_"):
                mean = 1.0 if name.endswith("weight") else 0.0
                fill(weight, mean, 0.2)
            elif name.endswith("bias"):
                fill(weight, 0.0, 0.2)
            elif name.endswith(("wte.weight", "wpe.weight", "lm_head.weight")):
                fill(weight, 0.0, 0.1)
            elif name.endswith("c_proj.weight"):
                fill(weight, 0.0, 0.3 * spread / depth)
            else:
                fill(weight, 0.0, 0.07 * spread)
