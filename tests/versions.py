"""What the installed transformers does with a GPT-2, asked of a tiny one.

Tests that are about such a thing skip where it is not; recon itself holds everywhere.
"""

import inspect
from importlib.util import find_spec

import torch
from transformers import GPT2Config, GPT2LMHeadModel

_SIZES = {"vocab_size": 5, "n_positions": 4, "n_embd": 4, "n_head": 1, "n_layer": 1}


def _tiny():
    config = GPT2Config(**_SIZES, bos_token_id=0, eos_token_id=0)
    config._attn_implementation = "eager"
    return GPT2LMHeadModel(config).eval()


def _returned(module, model):
    seen = []
    with module.register_forward_hook(lambda m, a, out: seen.append(out)):
        model(torch.zeros(1, 2, dtype=torch.long))
    return seen[0]


with torch.random.fork_rng([]), torch.no_grad():
    _model = _tiny()
    _block = _model.transformer.h[0]
    # Hidden states are collected with forward hooks, and the last may be untied.
    HOOKED = find_spec("transformers.utils.output_capturing") is not None
    # Eager attention returns its pattern whether it was asked for or not.
    SHOWS_PATTERNS = isinstance(_returned(_block.attn, _model)[-1], torch.Tensor)
    BLOCK_IS_TENSOR = isinstance(_returned(_block, _model), torch.Tensor)
    _arguments = inspect.signature(_model.forward).parameters
    KEEPS_LOGITS = "logits_to_keep" in _arguments
    # What a cache is handed over as; from 5.24 on the older name is a warning.
    CACHE = "cache" if "cache" in _arguments else "past_key_values"
    SCALING = hasattr(_block.attn, "scaling")
    _cache = _model(torch.zeros(1, 2, dtype=torch.long), use_cache=True)
    CACHE_OBJECTS = hasattr(_cache.past_key_values, "layers")
