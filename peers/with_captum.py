"""captum: LayerActivation over named modules."""

from captum.attr import LayerActivation

PARTS = ("", ".ln_1", ".attn.c_attn", ".attn.c_proj", ".ln_2", ".mlp.act", ".mlp")


def capture(model, input_ids):
    blocks = range(model.config.n_layer)
    names = [f"transformer.h.{number}{part}" for number in blocks for part in PARTS]
    names += ["transformer.ln_f", "lm_head"]
    layers = [model.get_submodule(name) for name in names]
    found = LayerActivation(model, layers).attribute(input_ids)
    return dict(zip(names, found, strict=True))
