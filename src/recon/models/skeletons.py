"""What a model would be, from its config alone: which sites it has, of which sizes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from recon.models.checkpoints import Kind, require_buildable
from recon.models.seeded import random_config


@dataclass(frozen=True, eq=False)
class Skeleton:
    """A model with the sites of another, and nothing of its size.

    ``sizes`` are the letters of ``recon.sites`` as the other has them; ``inputs`` make
    every site fire that it has.
    """

    model: PreTrainedModel
    sizes: Mapping[str, int]
    inputs: Mapping[str, Tensor]


def skeleton_of(config: GPT2Config, kind: Kind, name: str) -> Skeleton:
    """Build the skeleton of ``name``; raises UsageError if it could not be built."""
    require_buildable(config, kind, name)
    sizes = {
        "D": config.n_embd,
        "H": config.n_head,
        "d": config.n_embd // config.n_head,
        "M": config.n_inner or 4 * config.n_embd,
        "V": config.vocab_size,
    }
    small = _smallest(config)
    with torch.random.fork_rng([]):
        model = kind(small)
    model.train(False)
    return Skeleton(model, sizes, _inputs(small))


def random_skeleton(size: str) -> Skeleton:
    """Build the skeleton of ``random:SIZE``; raises UsageError for another size."""
    return skeleton_of(random_config(size), GPT2LMHeadModel, f"random:{size}")


def _smallest(config: GPT2Config) -> GPT2Config:
    """Return the config with as many blocks and heads, and all else small.

    It is to run, and on the meta device no version does so for every config: some look
    at the values of a mask.
    """
    small = copy.deepcopy(config)
    small.n_embd, small.n_inner = 2 * config.n_head, 3
    small.vocab_size, small.n_positions = 5, 1
    small.pad_token_id = small.bos_token_id = small.eos_token_id = None
    return small


def _inputs(config: GPT2Config) -> dict[str, Tensor]:
    ids = torch.zeros(1, 1, dtype=torch.long)
    inputs = {"input_ids": ids, "token_type_ids": ids}
    if config.add_cross_attention:
        inputs["encoder_hidden_states"] = torch.zeros(1, 1, config.n_embd)
    return inputs
