"""pyvene: collecting interventions on every block, by component and by module path.

It takes gradients from all parameters of the model that it is given, and every forward
hook, whosever it is; so it gets a copy.
"""

from copy import deepcopy

import pyvene
import torch
from pyvene.models.gpt2.modelings_intervenable_gpt2 import gpt2_type_to_module_mapping

# attention_weight reads attn_dropout, which transformers 5 never calls.
COMPONENTS = [
    name
    for name in gpt2_type_to_module_mapping
    if name != "attention_weight" and not name.startswith("head_")
]
PATHS = ("mlp.output", "attn.c_proj.input", "ln_2.output", "output")


def collected(model, settings, input_ids, units):
    with torch.no_grad():
        wrapped = pyvene.IntervenableModel(settings, model=deepcopy(model))
        (_, found), _ = wrapped({"input_ids": input_ids}, unit_locations=units)
    return dict(zip(wrapped.sorted_keys, found, strict=True))


def capture(model, input_ids):
    """All components, at every position: more than one needs max_number_of_units."""
    tokens = input_ids.shape[1]
    settings = [
        {
            "layer": layer,
            "component": name,
            "unit": "pos",
            "max_number_of_units": tokens,
            "intervention_type": pyvene.CollectIntervention,
        }
        for layer in range(model.config.n_layer)
        for name in COMPONENTS
    ]
    settings = pyvene.IntervenableConfig(settings)
    return collected(model, settings, input_ids, {"base": list(range(tokens))})


def capture_paths(model, input_ids):
    """Modules by their path, whole tensors."""
    settings = [
        {
            "component": f"transformer.h[{layer}].{path}",
            "intervention": pyvene.CollectIntervention(),
        }
        for layer in range(model.config.n_layer)
        for path in PATHS
    ]
    return collected(model, settings, input_ids, None)
