"""nnsight: saved envoys, in the order in which they run, and its own cache.

It leaves a ``forward`` of its own on every module that it wraps, so it gets a copy.
"""

from copy import deepcopy

import nnsight
import torch
from nnsight import NNsight


def capture(model, input_ids):
    """Inputs and outputs of the modules of every block, saved one by one."""
    wrapped = NNsight(deepcopy(model))
    with torch.no_grad(), wrapped.trace(input_ids):
        kept = nnsight.save({})
        for number, block in enumerate(wrapped.transformer.h):
            path = f"transformer.h[{number}]"
            kept[f"{path}.input"] = block.input
            kept[f"{path}.ln_1.output"] = block.ln_1.output
            kept[f"{path}.attn.c_attn.output"] = block.attn.c_attn.output
            kept[f"{path}.attn.c_proj.input"] = block.attn.c_proj.input
            kept[f"{path}.attn.output[0]"] = block.attn.output[0]
            kept[f"{path}.ln_2.input"] = block.ln_2.input
            kept[f"{path}.mlp.act.output"] = block.mlp.act.output
            kept[f"{path}.mlp.output"] = block.mlp.output
            kept[f"{path}.output"] = block.output
        kept["transformer.ln_f.output"] = wrapped.transformer.ln_f.output
        kept["lm_head.output"] = wrapped.lm_head.output
    return kept


def capture_cached(model, input_ids):
    """All that ``tracer.cache()`` keeps, by the path that it gives."""
    wrapped = NNsight(deepcopy(model))
    with torch.no_grad(), wrapped.trace(input_ids) as tracer:
        cache = tracer.cache()
    outputs = {path: cache[path].output for path in cache.keys()}  # noqa: SIM118
    return {
        path: value[0] if isinstance(value, tuple) else value
        for path, value in outputs.items()
        if isinstance(value, torch.Tensor | tuple)
    }


def capture_first_row(model, input_ids):
    """As code for transformers 4 has it, where a block returned a tuple."""
    wrapped = NNsight(deepcopy(model))
    with torch.no_grad(), wrapped.trace(input_ids):
        kept = nnsight.save({})
        for number, block in enumerate(wrapped.transformer.h):
            kept[f"transformer.h[{number}].output[0]"] = block.output[0]
    return kept
