"""TransformerLens: all that its bridge caches of a model.

The bridge replaces modules of the model it is given and switches it to eager attention,
so it gets a copy.
"""

from copy import deepcopy
from pathlib import Path

import torch
from transformer_lens import ActivationCache
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer

import recon

# The bridge wants a tokenizer, though token ids are all that it is given here.
TOKENIZER = Path(recon.__file__).parent / "data" / "gpt2-topics"


def bridge(model):
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    return TransformerBridge.boot_transformers(
        "gpt2", hf_model=deepcopy(model), tokenizer=tokenizer
    )


def cached(bridged, input_ids):
    with torch.no_grad():
        _, cache = bridged.run_with_cache(input_ids)
    assert isinstance(cache, ActivationCache)
    return cache


def capture(model, input_ids):
    """The weights as they are."""
    return cached(bridge(model), input_ids)


def capture_processed(model, input_ids):
    """LayerNorms folded, what writes to the stream centred, values' bias moved."""
    bridged = bridge(model)
    bridged.enable_compatibility_mode(disable_warnings=True)
    return cached(bridged, input_ids)


def capture_split(model, input_ids):
    """As above, with the hooks that are off by default: inputs and results by head."""
    bridged = bridge(model)
    bridged.enable_compatibility_mode(disable_warnings=True)
    bridged.set_use_attn_result(True)
    bridged.set_use_split_qkv_input(True)
    bridged.set_use_hook_mlp_in(True)
    return cached(bridged, input_ids)
