"""Wrong captures, and captures that harm the model: each shows one fault, or two.

A row is that of the fault catalogue: A the wrong thing selected, B wrong layout or
formula, C storage, D lifecycle, E mode; ``new`` is in no catalogue, and ``A5+D3`` shows
two faults. The docstring says what is wrong. What a fault needs besides is correct:
hooks are removed, also after an exception, unless leaving them is the fault.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812 - as torch's own documentation has it
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from transformers.models.gpt2 import modeling_gpt2

from tests.corpus.cases import wrong
from tests.versions import CACHE

# -- how the functions below look at a model -----------------------------------


def first(value):
    return value[0] if isinstance(value, tuple) else value


def OUT(args, output):  # noqa: N802 - read like a constant
    return first(output)


def IN(args, output):  # noqa: N802 - read like a constant
    return args[0]


def run_hooked(model, input_ids, pairs, **inputs):
    """Run once with forward hooks on, and take them off again."""
    with ExitStack() as stack, torch.no_grad():
        for module, hook in pairs:
            stack.callback(module.register_forward_hook(hook).remove)
        return model(input_ids, **inputs)


def collect(model, input_ids, places, **inputs):
    """Run once; return what ``places`` asks for, name: (module, read)."""
    store = {}

    def hook(name, read, module, args, output):
        store[name] = read(args, output)

    pairs = [(module, partial(hook, n, read)) for n, (module, read) in places.items()]
    run_hooked(model, input_ids, pairs, **inputs)
    return store


def numbered(model):
    return enumerate(model.transformer.h)


def split(x, heads):
    """(B, T, D) to (B, H, T, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def outputs(model, input_ids, name="h.{}.resid_post", path="", **inputs):
    """The outputs of one module of every block, by name."""
    places = {
        name.format(i): (block.get_submodule(path), OUT) for i, block in numbered(model)
    }
    return collect(model, input_ids, places, **inputs)


def layers_of(model, input_ids, path, read=OUT):
    """What one module of every block shows, by layer."""
    places = {i: (b.get_submodule(path), read) for i, b in numbered(model)}
    return collect(model, input_ids, places)


def states_of(model, input_ids, **inputs):
    with torch.no_grad():
        return model(input_ids, output_hidden_states=True, **inputs).hidden_states


# -- A: the wrong thing selected -----------------------------------------------


@wrong(row="A1", rules={"RC104"}, sites="h.*.resid_post")
def row_zero_of_blocks(model, input_ids):
    """output[0] of a block, which is a tensor by now: row 0."""
    places = {
        f"transformer.h.{i}": (block, lambda args, output: output[0])
        for i, block in numbered(model)
    }
    return collect(model, input_ids, places)


@wrong(row="A1", rules={"RC104"}, sites="h.*.mlp_out", attention="sdpa")
def row_zero_of_mlps(model, input_ids):
    """output[0] of an MLP, which always was a tensor."""
    places = {
        f"blocks.{i}.hook_mlp_out": (block.mlp, lambda args, output: output[0].clone())
        for i, block in numbered(model)
    }
    return collect(model, input_ids, places)


@wrong(row="A1", rules={"RC104"}, sites="h.*.resid_post")
def row_zero_put_back_in_shape(model, input_ids):
    """output[0], and a batch axis again, so that B=1 looks right."""
    places = {
        f"h.{i}.resid_post": (block, lambda args, output: output[0].unsqueeze(0))
        for i, block in numbered(model)
    }
    return collect(model, input_ids, places)


@wrong(row="A1", rules={"RC104", "RC115"})
def last_feature_for_last_token(model, input_ids):
    """output[0][:, -1]: of a tensor that is the last feature of row 0."""
    places = {
        f"layer_{i}_last_token": (block, lambda args, output: output[0][:, -1])
        for i, block in numbered(model)
    }
    return collect(model, input_ids, places)


@wrong(row="A2", rules={"RC205"})
def steers_row_zero(model, input_ids):
    """output[0] += v steers the first row of a batch only."""
    store = {}

    def steer(module, args, output):
        output[0] += 0.5
        return output

    def keep(module, args, output):
        store["h.2.resid_post"] = output.clone()

    blocks = model.transformer.h
    run_hooked(model, input_ids, [(blocks[0], steer), (blocks[2], keep)])
    return store


@wrong(row="A3", rules={"RC403"})
def tuple_into_a_block(model, input_ids):
    """A steering hook returns (hidden, *rest), as blocks did once."""
    store = {}

    def steer(module, args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        store["h.0.resid_post"] = hidden
        return (hidden * 1.5, *output[1:])

    run_hooked(model, input_ids, [(model.transformer.h[0], steer)])
    return store


@wrong(row="A5", rules={"RC101", "RC102"}, sites="h.*.resid_post")
def states_one_early(model, input_ids):
    """hidden_states[i] taken for the output of block i."""
    states = states_of(model, input_ids)
    return {f"h.{i}.resid_post": states[i] for i, _ in numbered(model)}


@wrong(row="A5", rules={"RC101", "RC102"}, sites="h.*.resid_pre", attention="sdpa")
def states_one_late(model, input_ids):
    """hidden_states[i + 1] taken for the input of block i."""
    states = states_of(model, input_ids)
    return {
        f"blocks.{i}.hook_resid_pre": states[i + 1] for i, _ in list(numbered(model))
    }


@wrong(row="A7", rules={"RC101"}, sites="h.2.resid_post")
def last_state_for_last_residual(model, input_ids):
    """hidden_states[L] taken for the last residual: it is after ln_f."""
    states = states_of(model, input_ids)
    return {f"blocks.{i}.hook_resid_post": s for i, s in enumerate(states[1:])}


@wrong(row="A9", rules={"RC101", "RC106"}, sites="h.0.resid_pre")
def no_positions(model, input_ids):
    """Token embeddings alone as the input of block 0."""
    return collect(model, input_ids, {"h.0.resid_pre": (model.transformer.wte, OUT)})


@wrong(row="A9", rules={"RC101", "RC106"}, sites="embed")
def only_positions(model, input_ids):
    """Position embeddings alone, expanded, as the embedding."""
    found = collect(model, input_ids, {"embed": (model.transformer.wpe, OUT)})
    return {"embed": found["embed"].expand(len(input_ids), -1, -1)}


@wrong(row="A10", rules={"RC101"}, sites="h.*.resid_pre")
def normed_stream(model, input_ids):
    """The output of ln_1 stored as the residual stream."""
    return outputs(model, input_ids, "blocks.{}.hook_resid_pre", "ln_1")


@wrong(row="A10", rules={"RC101"}, sites="h.*.ln_1")
def input_of_norm(model, input_ids):
    """The input of ln_1 stored under its own name."""
    places = {f"transformer.h.{i}.ln_1": (b.ln_1, IN) for i, b in numbered(model)}
    return collect(model, input_ids, places)


@wrong(row="A11", rules={"RC101"}, sites="h.*.resid_mid")
def mid_from_ln_1(model, input_ids):
    """resid_mid read at ln_1 instead of ln_2."""
    places = {f"blocks.{i}.hook_resid_mid": (b.ln_1, IN) for i, b in numbered(model)}
    return collect(model, input_ids, places)


@wrong(row="A12", rules={"RC101", "RC106"}, sites="h.*.resid_post")
def mlp_for_block(model, input_ids):
    """The MLP's output as the block's: the residual is missing."""
    return outputs(model, input_ids, "h.{}.resid_post", "mlp")


@wrong(row="A13", rules={"RC101"}, sites="h.*.attn_out")
def input_of_c_proj(model, input_ids):
    """What attn.c_proj receives stored as what attention adds."""
    places = {
        f"blocks.{i}.hook_attn_out": (b.attn.c_proj, IN) for i, b in numbered(model)
    }
    return collect(model, input_ids, places)


@wrong(row="A13", rules={"RC106"}, sites="h.*.attn.out")
def attention_without_bias(model, input_ids):
    """z times the output weights, without their bias."""
    z = layers_of(model, input_ids, "attn.c_proj", IN)
    blocks = model.transformer.h
    return {
        f"transformer.h.{i}.attn.c_proj": (x @ blocks[i].attn.c_proj.weight).detach()
        for i, x in z.items()
    }


@wrong(row="A14", rules={"RC101"}, sites="h.*.mlp.post")
def neurons_before_activation(model, input_ids):
    """Neurons stored before the activation."""
    return outputs(model, input_ids, "blocks.{}.mlp.hook_post", "mlp.c_fc")


@wrong(row="A14", rules={"RC101"}, sites="h.*.mlp.pre", attention="sdpa")
def neurons_after_activation(model, input_ids):
    """Pre-activations stored after the activation."""
    return outputs(model, input_ids, "blocks.{}.mlp.hook_pre", "mlp.act")


@wrong(row="A16", rules={"RC101"}, sites="h.*.attn.out")
def both_projections(model, input_ids):
    """endswith("c_proj") matches attention and MLP; the later one wins."""
    places = {}
    store = {}

    def hook(key, module, args, output):
        store[key] = output

    for name, module in model.named_modules():
        if name.endswith("c_proj"):
            layer = name.split(".")[2]
            places[name] = (
                module,
                partial(hook, f"transformer.h.{layer}.attn.c_proj"),
            )
    run_hooked(model, input_ids, places.values())
    return store


@wrong(row="A16", rules={"RC102"}, sites="h.1.resid_post", n_layer=12)
def prefix_of_numbers(model, input_ids):
    """ "h.1" in name is true of h.10 and h.11, too, and the last one wins."""
    store = {}
    pairs = []

    def hook(key, module, args, output):
        store[key] = output

    for layer in range(model.config.n_layer):
        key = f"transformer.h.{layer}"
        for name, module in model.named_modules():
            if key in name and isinstance(module, modeling_gpt2.GPT2Block):
                pairs.append((module, partial(hook, key)))
    run_hooked(model, input_ids, pairs)
    return store


@wrong(row="A16", rules={"RC109", "RC101"})
def everything_called_attn(model, input_ids):
    """ "attn" in name matches the attention and all that is inside."""
    found = []
    pairs = [
        (module, lambda m, a, output: found.append(first(output)))
        for name, module in model.named_modules()
        if "attn" in name
    ]
    run_hooked(model, input_ids, pairs)
    return {"attn_out": found}


@wrong(row="A17", rules={"RC110"})
def linear_layers_of_mlps(model, input_ids):
    """isinstance(module, nn.Linear) finds nothing in a GPT-2 block."""
    places = {
        name: (module, OUT)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and "mlp" in name
    }
    return collect(model, input_ids, places)


@wrong(row="A17", rules={"RC101", "RC109", "RC115"})
def linear_layers_by_number(model, input_ids):
    """The linear layers, numbered: lm_head is the only one."""
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    return collect(
        model,
        input_ids,
        {f"h.{i}.mlp_out": (module, OUT) for i, module in enumerate(linear)},
    )


@wrong(row="A18", rules={"RC109"})
def late_key(model, input_ids):
    """The hook's key is looked up when it runs: one key, the last layer."""
    store = {}
    pairs = []
    for i, block in numbered(model):

        def hook(module, args, output):
            store[f"layer_{i}"] = output  # noqa: B023 - the fault

        pairs.append((block, hook))
    run_hooked(model, input_ids, pairs)
    return store


@wrong(row="A18", rules={"RC102"}, sites="h.0.mlp_out")
def late_reading(model, input_ids):
    """Values are read through closures that all see the last layer."""
    found = layers_of(model, input_ids, "mlp")
    readers = {}
    for i, _ in numbered(model):
        readers[f"blocks.{i}.hook_mlp_out"] = lambda: found[i]  # noqa: B023 - the fault
    return {name: read() for name, read in readers.items()}


@wrong(row="A18", rules={"RC109", "RC110"})
def late_index(model, input_ids):
    """A list with a place for each layer, written at a late-bound index."""
    found = [None] * model.config.n_layer
    pairs = []
    for i, block in numbered(model):

        def hook(module, args, output):
            found[i] = output  # noqa: B023 - the fault

        pairs.append((block, hook))
    run_hooked(model, input_ids, pairs)
    return {"resid_post": found}


@wrong(row="A20", rules={"RC110"})
def dropout_that_never_runs(model, input_ids):
    """attn_dropout should see the pattern, but is not called in this version."""
    return outputs(model, input_ids, "blocks.{}.attn.hook_pattern", "attn.attn_dropout")


@wrong(row="A21", rules={"RC110"})
def module_list(model, input_ids):
    """A hook on the ModuleList of blocks, which is never called."""
    places = {"transformer.h": (model.transformer.h, OUT)}
    return {"resid_post": collect(model, input_ids, places).get("transformer.h")}


@wrong(row="A22", rules={"RC110"})
def prefix_forgotten(model, input_ids):
    """Names without the prefix of this model match nothing."""
    wanted = {f"model.transformer.h.{i}.mlp" for i, _ in numbered(model)}
    places = {
        f"mlp_{name.split('.')[2]}": (module, OUT)
        for name, module in model.named_modules()
        if name in wanted
    }
    return collect(model, input_ids, places)


class Adapted(nn.Module):
    """Adds a low-rank product to what a linear map makes, as LoRA does."""

    def __init__(self, base_layer):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        into, out = base_layer.weight.shape
        self.base_layer = base_layer
        self.down = torch.randn(into, 2, generator=generator) * 0.1
        self.up = torch.randn(2, out, generator=generator) * 0.1

    def forward(self, x):
        return self.base_layer(x) + x @ self.down @ self.up


def adapt(model):
    """Put an adapter around every c_attn, as libraries for fine-tuning do."""
    for block in model.transformer.h:
        block.attn.c_attn = Adapted(block.attn.c_attn)


@wrong(row="A23", rules={"RC106"}, sites="h.1.attn.qkv")
def hooked_before_wrapping(model, input_ids):
    """A hook is set, then the module is wrapped: the hook stays on the inner one."""
    store = {}
    attention = model.transformer.h[1].attn
    plain = attention.c_attn
    handle = plain.register_forward_hook(
        lambda m, a, o: store.update({"transformer.h.1.attn.c_attn": o})
    )
    try:
        attention.c_attn = Adapted(plain)
        with torch.no_grad():
            model(input_ids)
    finally:
        attention.c_attn = plain
        handle.remove()
    return store


@wrong(row="A23", rules={"RC106"}, sites="h.*.attn.qkv", prepare=adapt)
def base_of_an_adapter(model, input_ids):
    """In an adapted model the base layer is hooked, for what c_attn makes."""
    return outputs(model, input_ids, "h.{}.attn.qkv", "attn.c_attn.base_layer")


@wrong(row="A23", rules={"RC106"}, sites="h.*.attn.v", prepare=adapt)
def values_of_a_base_layer(model, input_ids):
    """Values cut out of the base layer's output, under a loose name."""
    width = model.config.n_embd
    found = outputs(model, input_ids, "layer_{}_v", "attn.c_attn.base_layer")
    return {name: x[..., 2 * width :].clone() for name, x in found.items()}


@wrong(row="A25", rules={"RC110"})
def kwargs_unseen(model, input_ids):
    """A pre-hook without kwargs, where everything is passed by keyword."""
    store = {}

    def before(module, args):
        store["embed"] = args[0] if args else None

    with model.register_forward_pre_hook(before), torch.no_grad():
        model(input_ids=input_ids)
    return store


@wrong(row="A25", rules={"RC403"})
def kwargs_indexed(model, input_ids):
    """A pre-hook takes args[0] of a call by keyword."""
    store = {}

    def before(module, args):
        store["tokens"] = args[0]

    with model.register_forward_pre_hook(before), torch.no_grad():
        out = model(input_ids=input_ids)
    return {"logits": out.logits}


@wrong(row="A27", rules={"RC101", "RC115"})
def loss_for_logits(model, input_ids):
    """outputs[0] is the loss as soon as labels are given."""
    with torch.no_grad():
        return {"logits": model(input_ids, labels=input_ids)[0]}


@wrong(row="A27", rules={"RC304"})
def cache_for_states(model, input_ids):
    """outputs[1] is the cache."""
    with torch.no_grad():
        return {"hidden_states": model(input_ids, use_cache=True)[1]}


@wrong(row="A27", rules={"RC403"})
def third_output_of_attention(model, input_ids):
    """output[2] of the attention, which returns two things by now."""
    places = {
        f"h.{i}.attn.pattern": (b.attn, lambda args, output: output[2])
        for i, b in numbered(model)
    }
    return collect(model, input_ids, places)


@wrong(row="A28", rules={"RC109", "RC110"})
def holes_in_states(model, input_ids):
    """output_hidden_states=1 asks for one state; None stands for the others."""
    with torch.no_grad():
        out = model(input_ids, output_hidden_states=1)
    return {"hidden_states": out.hidden_states}


@wrong(row="A29", rules={"RC104"})
def one_row_of_ids(model, input_ids):
    """input_ids[0] makes a prompt of the first row."""
    states = states_of(model.transformer, input_ids[0])
    return {f"hidden_states.{i}": s for i, s in enumerate(states)}


@wrong(row="A30", rules={"RC107"}, sites="wte", maker=True)
def stale_embeddings():
    """wte does not run where embeddings are given: an old capture stays."""
    store = {}

    def hook(module, args, output):
        store.setdefault("wte", output.detach().clone())

    def capture(model, input_ids):
        wte = model.transformer.wte
        if not store:
            run_hooked(model, input_ids, [(wte, hook)])
        given = wte.weight.detach()[input_ids]
        run_hooked(model, None, [(wte, hook)], inputs_embeds=given)
        return dict(store)

    return capture


@wrong(row="A30", rules={"RC101", "RC107"}, sites="wte")
def token_types_overwrite(model, input_ids):
    """With token types wte runs twice, and the second output wins."""
    return collect(
        model,
        input_ids,
        {"wte": (model.transformer.wte, OUT)},
        token_type_ids=torch.full_like(input_ids, 3),
    )


@wrong(
    row="A31",
    rules={"RC101", "RC106"},
    sites="h.*.resid_mid",
    add_cross_attention=True,
)
def mid_without_cross_attention(model, input_ids):
    """resid_mid as resid_pre + attn_out, where cross-attention adds to it, too."""
    generator = torch.Generator().manual_seed(0)
    shape = (len(input_ids), 5, model.config.n_embd)
    given = {"encoder_hidden_states": torch.randn(shape, generator=generator)}
    places = {("pre", i): (block, IN) for i, block in numbered(model)}
    places |= {("attn", i): (block.attn, OUT) for i, block in numbered(model)}
    found = collect(model, input_ids, places, **given)
    return {
        f"h.{i}.resid_mid": found["pre", i] + found["attn", i]
        for i, _ in numbered(model)
    }


# -- B: the wrong layout or the wrong formula ----------------------------------


def named_heads(model, input_ids, letters, name="h.{}.attn.{}"):
    """q, k, v of every layer, the three parts of c_attn called ``letters``."""
    heads = model.config.n_head
    result = {}
    for i, qkv in layers_of(model, input_ids, "attn.c_attn").items():
        for letter, part in zip(letters, qkv.chunk(3, -1), strict=True):
            result[name.format(i, letter)] = split(part, heads)
    return result


@wrong(row="B1", rules={"RC101"}, sites="h.*.attn.q")
def queries_and_keys(model, input_ids):
    """q and k swapped."""
    return named_heads(model, input_ids, "kqv")


@wrong(row="B2", rules={"RC101"}, sites="h.*.attn.v", attention="sdpa")
def rotated(model, input_ids):
    """The parts of c_attn read as v, q, k."""
    return named_heads(model, input_ids, "vqk")


@wrong(row="B2", rules={"RC101"}, sites="h.*.attn.k")
def keys_and_values(model, input_ids):
    """k and v swapped, in TransformerLens's names and layout."""
    found = named_heads(model, input_ids, "qvk", "blocks.{}.attn.hook_{}")
    return {name: x.transpose(1, 2) for name, x in found.items()}


def pattern_of(q, k, scale, *, causal=True):
    scores = q @ k.transpose(-1, -2) * scale
    if causal:
        future = torch.ones(scores.shape[-2:]).triu(1).bool()
        scores = scores.masked_fill(future, float("-inf"))
    return scores.softmax(-1)


def patterns(model, input_ids, pattern, name="h.{}.attn.pattern"):
    """A pattern of every layer, computed from its q and k."""
    heads = model.config.n_head
    result = {}
    for i, qkv in layers_of(model, input_ids, "attn.c_attn").items():
        q, k, _ = (split(part, heads) for part in qkv.chunk(3, -1))
        result[name.format(i)] = pattern(q, k)
    return result


@wrong(row="B3", rules={"RC105"}, sites="h.*.attn.pattern")
def pattern_of_swapped(model, input_ids):
    """A pattern computed with q and k swapped."""
    return patterns(
        model, input_ids, lambda q, k: pattern_of(k, q, q.shape[-1] ** -0.5)
    )


def heads_by(model, input_ids, cut, name="h.{}.attn.{}"):
    """q, k, v of every layer, each part cut into heads by ``cut``."""
    heads = model.config.n_head
    result = {}
    for i, qkv in layers_of(model, input_ids, "attn.c_attn").items():
        for letter, part in zip("qkv", qkv.chunk(3, -1), strict=True):
            result[name.format(i, letter)] = cut(part, heads)
    return result


@wrong(row="B4", rules={"RC103"}, sites="h.*.attn.q")
def no_transpose(model, input_ids):
    """view(B, H, T, d) without a transpose."""

    def cut(x, heads):
        batch, tokens, width = x.shape
        return x.reshape(batch, heads, tokens, width // heads)

    return heads_by(model, input_ids, cut)


@wrong(row="B6", rules={"RC103"}, sites="h.*.attn.k")
def width_before_heads(model, input_ids):
    """Heads cut as view(B, T, d, H)."""

    def cut(x, heads):
        return x.unflatten(-1, (-1, heads)).permute(0, 3, 1, 2)

    return heads_by(model, input_ids, cut, "transformer.h.{}.attn.{}")


@wrong(row="B6", rules={"RC103", "RC101"}, sites="h.*.attn.[qkv]")
def neox_order(model, input_ids):
    """c_attn read as GPT-NeoX orders it, by head first."""
    heads = model.config.n_head
    result = {}
    for i, qkv in layers_of(model, input_ids, "attn.c_attn").items():
        by_head = qkv.unflatten(-1, (heads, -1)).transpose(1, 2)
        for letter, part in zip("qkv", by_head.chunk(3, -1), strict=True):
            result[f"h.{i}.attn.{letter}"] = part
    return result


@wrong(row="B8", rules={"RC103"}, sites="h.*.attn.z")
def merged_without_transpose(model, input_ids):
    """z merged from (B, H, T, d) without transposing back."""
    heads = model.config.n_head
    merged = layers_of(model, input_ids, "attn.c_proj", IN)
    return {
        f"blocks.{i}.attn.hook_z": split(x, heads).reshape(x.shape)
        for i, x in merged.items()
    }


@wrong(row="B10", rules={"RC105"}, sites="h.*.attn.pattern")
def unscaled_pattern(model, input_ids):
    """A pattern without the division by sqrt(d)."""
    return patterns(model, input_ids, lambda q, k: pattern_of(q, k, 1.0))


@wrong(row="B10", rules={"RC105"}, sites="h.*.attn.pattern", attention="sdpa")
def pattern_scaled_by_width(model, input_ids):
    """A pattern scaled by the width of the model, not of a head."""
    scale = model.config.n_embd**-0.5
    return patterns(
        model,
        input_ids,
        lambda q, k: pattern_of(q, k, scale),
        "blocks.{}.attn.hook_pattern",
    )


@wrong(
    row="B10",
    rules={"RC105"},
    sites="h.[12].attn.pattern",
    scale_attn_by_inverse_layer_idx=True,
)
def scale_of_layer_ignored(model, input_ids):
    """A pattern without the scale of its layer, which this config asks for."""
    return patterns(
        model, input_ids, lambda q, k: pattern_of(q, k, q.shape[-1] ** -0.5)
    )


@wrong(row="B11", rules={"RC101", "RC105"}, sites="h.*.attn.pattern")
def scores_for_pattern(model, input_ids):
    """Scores stored as the pattern."""

    def scores(q, k):
        return q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])

    return patterns(model, input_ids, scores, "blocks.{}.attn.hook_pattern")


@wrong(row="B12", rules={"RC105"}, sites="h.*.attn.pattern", attention="sdpa")
def pattern_without_mask(model, input_ids):
    """A pattern that sees the future."""
    return patterns(
        model,
        input_ids,
        lambda q, k: pattern_of(q, k, q.shape[-1] ** -0.5, causal=False),
    )


@wrong(row="B16", rules={"RC108", "RC301"}, sites="h.1.attn.pattern")
def pattern_edited_too_late(model, input_ids):
    """A head is zeroed in the pattern after it was used: nothing but the capture."""
    store = {}

    def knock_out(module, args, output):
        store["h.1.attn.pattern"] = output[1]
        output[1][:, 0] = 0.0

    run_hooked(model, input_ids, [(model.transformer.h[1].attn, knock_out)])
    return store


@wrong(row="B17", rules={"RC110"}, attention="sdpa")
def no_weights_under_sdpa(model, input_ids):
    """The second output of the attention is None under sdpa."""
    places = {
        f"h.{i}.attn.pattern": (b.attn, lambda args, output: output[1])
        for i, b in numbered(model)
    }
    return collect(model, input_ids, places)


@wrong(row="B17", rules={"RC110"}, attention="sdpa")
def no_attentions_under_sdpa(model, input_ids):
    """output_attentions=True under sdpa: an empty tuple."""
    with torch.no_grad():
        out = model(input_ids, output_attentions=True)
    return {"attentions": out.attentions}


def norms(model, input_ids, formula, name="h.{}.ln_1"):
    """ln_1 of every layer, computed by ``formula`` from its input."""
    result = {}
    for i, x in layers_of(model, input_ids, "ln_1", IN).items():
        norm = model.transformer.h[i].ln_1
        result[name.format(i)] = formula(x, norm).detach()
    return result


@wrong(row="B18", rules={"RC105"}, sites="h.0.ln_1")
def other_eps(model, input_ids):
    """LayerNorm with eps 1e-12."""

    def formula(x, norm):
        return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, 1e-12)

    return norms(model, input_ids, formula)


@wrong(row="B18", rules={"RC105"}, sites="h.0.ln_1")
def eps_outside_root(model, input_ids):
    """LayerNorm with eps added to the standard deviation."""

    def formula(x, norm):
        centred = x - x.mean(-1, keepdim=True)
        spread = x.var(-1, keepdim=True, correction=0).sqrt() + norm.eps
        return centred / spread * norm.weight + norm.bias

    return norms(model, input_ids, formula, "transformer.h.{}.ln_1")


@wrong(row="B18", rules={"RC105"}, sites="h.*.ln_1")
def unbiased_variance(model, input_ids):
    """LayerNorm by torch.std, which divides by D - 1."""

    def formula(x, norm):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (x.std(-1, keepdim=True) + 1e-5) * norm.weight + norm.bias

    return norms(model, input_ids, formula)


@wrong(row="B20", rules={"RC105"}, sites="h.*.ln_1")
def root_mean_square(model, input_ids):
    """RMSNorm in place of LayerNorm."""

    def formula(x, norm):
        scale = x.square().mean(-1, keepdim=True).add(norm.eps).rsqrt()
        return x * scale * norm.weight + norm.bias

    return norms(model, input_ids, formula)


@wrong(row="B20", rules={"RC105", "RC106"}, sites="h.*.ln_1")
def norm_without_affine(model, input_ids):
    """LayerNorm without weight and bias, under the module's own name."""

    def formula(x, norm):
        return F.layer_norm(x, norm.normalized_shape, eps=norm.eps)

    return norms(model, input_ids, formula, "transformer.h.{}.ln_1.output")


@wrong(row="B21", rules={"RC105", "RC106"}, sites="h.*.resid_post")
def centred_stream(model, input_ids):
    """The residual stream with its mean subtracted, under Hugging Face's names."""
    found = outputs(model, input_ids, "transformer.h.{}.output")
    return {name: x - x.mean(-1, keepdim=True) for name, x in found.items()}


@wrong(row="B22", rules={"RC105"}, sites="h.*.mlp.post")
def erf_gelu(model, input_ids):
    """F.gelu where the model has gelu_new."""
    found = outputs(model, input_ids, "blocks.{}.mlp.hook_post", "mlp.c_fc")
    return {name: F.gelu(x) for name, x in found.items()}


@wrong(row="B24", rules={"RC107", "RC114"}, sites="h.*.resid_post")
def token_prepended(model, input_ids):
    """A BOS token is put before the prompt."""
    bos = torch.zeros_like(input_ids[:, :1])
    return outputs(model, torch.cat([bos, input_ids], 1), "h.{}.resid_post")


@wrong(row="B24", rules={"RC107", "RC114"}, sites="h.*.resid_post", attention="sdpa")
def token_prepended_and_cut(model, input_ids):
    """A BOS token is put before the prompt, and its row cut off."""
    bos = torch.zeros_like(input_ids[:, :1])
    found = outputs(model, torch.cat([bos, input_ids], 1), "transformer.h.{}")
    return {name: x[:, 1:] for name, x in found.items()}


@wrong(row="B26", rules={"RC113"})
def last_column(model, input_ids, attention_mask=None):
    """[:, -1] for the last token, which is padding on the right."""
    found = outputs(
        model, input_ids, "layer_{}_last_token", attention_mask=attention_mask
    )
    return {name: x[:, -1].clone() for name, x in found.items()}


@wrong(row="B26", rules={"RC113"})
def mean_of_padding(model, input_ids, attention_mask=None):
    """A mean over all positions, padding included."""
    states = states_of(model, input_ids, attention_mask=attention_mask)
    return {f"layer_{i}_mean": s.mean(1) for i, s in enumerate(states)}


# -- C: aliasing and storage ---------------------------------------------------


@wrong(row="C1", rules={"RC301"}, sites="h.0.resid_post")
def edited_after_capture(model, input_ids):
    """A tensor is kept without a clone, and edited in place by a later hook."""
    store = {}

    def keep(module, args, output):
        store["h.0.resid_post"] = output

    def steer(module, args, output):
        output.add_(0.25)

    block = model.transformer.h[0]
    run_hooked(model, input_ids, [(block, keep), (block, steer)])
    return store


@wrong(row="C1", rules={"RC105", "RC301"}, sites="h.*.mlp_out")
def normalised_in_place(model, input_ids):
    """Captured outputs are kept as they are, and normalised in place afterwards."""
    places = {f"mlp_{i}": (b.mlp, OUT) for i, b in numbered(model)}
    store = collect(model, input_ids, places)
    for value in store.values():
        value.div_(value.norm(dim=-1, keepdim=True))
    return store


@wrong(row="C1", rules={"RC204", "RC301"})
def queries_zeroed_in_place(model, input_ids):
    """A slice of the captured c_attn output is zeroed in the same hook."""
    store = {}
    width = model.config.n_embd

    def ablate(module, args, output):
        store["transformer.h.1.attn.c_attn"] = output
        output[..., :width].zero_()

    run_hooked(model, input_ids, [(model.transformer.h[1].attn.c_attn, ablate)])
    return store


@wrong(row="C4", rules={"RC301"}, sites="h.*.resid_post")
def copies_that_are_none(model, input_ids):
    """detach, cpu, float and contiguous copy nothing here, and an edit follows."""
    store = {}

    def keep(name, module, args, output):
        store[name] = output.detach().cpu().float().contiguous()

    def steer(module, args, output):
        output.mul_(0.9)

    pairs = []
    for i, block in numbered(model):
        pairs += [(block, partial(keep, f"h.{i}.resid_post")), (block, steer)]
    run_hooked(model, input_ids, pairs)
    return store


@wrong(row="C4", rules={"RC301"}, sites="h.1.mlp_out")
def array_of_live_memory(model, input_ids):
    """A numpy array shares the memory that a later hook edits, unseen by autograd."""
    store = {}

    def keep(module, args, output):
        store["mlp_1"] = output.detach().numpy()

    def steer(module, args, output):
        output.data.add_(0.25)

    mlp = model.transformer.h[1].mlp
    run_hooked(model, input_ids, [(mlp, keep), (mlp, steer)])
    return store


@wrong(row="C7", rules={"RC304"})
def cache_object(model, input_ids):
    """The cache that a hook saw is kept as the object it is."""
    store = {}

    def before(module, args, kwargs):
        store["kv_cache"] = args[1]

    block = model.transformer.h[0]
    with (
        block.register_forward_pre_hook(before, with_kwargs=True),
        torch.no_grad(),
    ):
        model(input_ids, use_cache=True)
    return store


@wrong(row="C11", rules={"RC403"})
def probe_on_inference_tensors(model, input_ids):
    """A probe is trained on what inference_mode made, which autograd cannot save."""
    with torch.inference_mode():
        states = model(input_ids, output_hidden_states=True).hidden_states
    probe = torch.zeros(states[1].shape[-1], requires_grad=True)
    with torch.enable_grad():
        (states[1] @ probe).sum().backward()
    return {"h.0.resid_post": states[1]}


@wrong(row="C12", rules={"RC403"})
def edited_behind_a_backward_hook(model, input_ids):
    """A full backward hook makes the output a view, which an edit in place breaks."""
    store = {}

    def steer(module, args):
        store["h.2.resid_pre"] = args[0].detach().clone()
        args[0].add_(0.5)

    blocks = model.transformer.h
    with (
        blocks[1].register_full_backward_hook(lambda m, into, out: None),
        blocks[2].register_forward_pre_hook(steer),
        torch.enable_grad(),
    ):
        model(input_ids)
    return store


@wrong(row="C12", rules={"RC110"})
def same_object_behind_a_backward_hook(model, input_ids):
    """States are kept if handed on as they were made; behind such a hook none is."""
    made, store = {}, {}

    def keep(i, module, args, output):
        made[i] = output

    def compare(i, module, args):
        if made.get(i - 1) is args[0]:
            store[f"h.{i}.resid_pre"] = args[0].detach()

    with ExitStack() as stack, torch.enable_grad():
        for i, block in numbered(model):
            for handle in (
                block.register_full_backward_hook(lambda m, into, out: None),
                block.register_forward_hook(partial(keep, i)),
                block.register_forward_pre_hook(partial(compare, i)),
            ):
                stack.callback(handle.remove)
        model(input_ids)
    return store


# -- D: lifecycle --------------------------------------------------------------


@wrong(row="D2", rules={"RC401"}, maker=True)
def growing_list():
    """Lists grow over the calls, and all of them is returned."""
    store = {}

    def hook(name, module, args, output):
        store.setdefault(name, []).append(output.detach())

    def capture(model, input_ids):
        pairs = [(b, partial(hook, f"layer_{i}")) for i, b in numbered(model)]
        run_hooked(model, input_ids, pairs)
        return {name: list(values) for name, values in store.items()}

    return capture


@wrong(row="D2", rules={"RC107", "RC401"}, maker=True)
def first_of_growing_list():
    """Lists grow over the calls, and the first entry is returned: the oldest."""
    store = {}

    def hook(name, module, args, output):
        store.setdefault(name, []).append(output.detach())

    def capture(model, input_ids):
        pairs = [
            (b, partial(hook, f"blocks.{i}.hook_resid_post"))
            for i, b in numbered(model)
        ]
        run_hooked(model, input_ids, pairs)
        return {name: values[0] for name, values in store.items()}

    return capture


@wrong(row="D3", rules={"RC203"})
def not_safe_from_errors(model, input_ids):
    """A context manager removes the hooks, but not if the pass raises."""
    store = {}

    @contextmanager
    def hooked():
        handles = [
            block.register_forward_hook(
                lambda m, a, o, i=i: store.__setitem__(f"layer_{i}", o.detach())
            )
            for i, block in numbered(model)
        ]
        yield
        for handle in handles:
            handle.remove()

    with hooked():
        model(input_ids)
    return store


@wrong(row="D3", rules={"RC203"})
def one_handle_is_not_safe(model, input_ids):
    """A finally block removes the handles, but for the last one."""
    store, handles = {}, []
    last = model.transformer.ln_f.register_forward_hook(
        lambda m, a, o: store.__setitem__("ln_f", o)
    )
    try:
        for i, block in numbered(model):
            keep = partial(keep_output, store, f"layer_{i}")
            handles.append(block.register_forward_hook(keep))
        model(input_ids)
        last.remove()
    finally:
        for handle in handles:
            handle.remove()
    return store


def keep_output(store, name, module, args, output):
    store[name] = output.detach()


@wrong(row="D3", rules={"RC203"})
def error_swallowed(model, input_ids):
    """Errors of the pass are taken for an early stop, and the hooks stay."""
    store = {}
    handles = [
        block.register_forward_hook(partial(keep_output, store, f"layer_{i}"))
        for i, block in numbered(model)
    ]
    with suppress(RuntimeError):
        model(input_ids)
        for handle in handles:
            handle.remove()
    return store


@wrong(row="D4", rules={"RC201"})
def handles_dropped(model, input_ids):
    """Handles are forgotten; the hooks stay."""
    store = {}
    for i, block in numbered(model):

        def hook(module, args, output, i=i):
            store[f"h.{i}.mlp_out"] = output

        block.mlp.register_forward_hook(hook)
    with torch.no_grad():
        model(input_ids)
    return dict(store)


@wrong(row="D4", rules={"RC201"})
def one_handle_forgotten(model, input_ids):
    """Only the handle of the last hook is removed."""
    store = {}
    for i, block in numbered(model):

        def before(module, args, i=i):
            store[f"h.{i}.resid_pre"] = args[0]

        handle = block.register_forward_pre_hook(before)
    with torch.no_grad():
        model(input_ids)
    handle.remove()
    return dict(store)


def ask_for_states(model):
    """Make transformers leave its own hooks on the model."""
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3]]), output_hidden_states=True)


@wrong(row="D5", rules={"RC202", "RC215"}, prepare=ask_for_states)
def clears_all_hooks(model, input_ids):
    """The hooks are removed by clearing all there are, also those of others."""
    store = {}
    for i, block in numbered(model):
        block.register_forward_hook(
            lambda m, a, o, i=i: store.__setitem__(f"layer_{i}", o)
        )
    try:
        with torch.no_grad():
            model(input_ids)
    finally:
        for module in model.modules():
            module._forward_hooks.clear()
    return store


@wrong(row="D6", rules={"RC109", "RC110"})
def removed_by_the_first(model, input_ids):
    """The first hook that runs removes all of them."""
    found = dict.fromkeys(f"h.{i}.resid_post" for i, _ in numbered(model))
    handles = []

    def hook(name, module, args, output):
        found[name] = output
        for handle in handles:
            handle.remove()

    for i, block in numbered(model):
        handles.append(block.register_forward_hook(partial(hook, f"h.{i}.resid_post")))
    try:
        with torch.no_grad():
            model(input_ids)
    finally:
        for handle in handles:
            handle.remove()
    return found


@wrong(row="D7", rules={"RC107"}, maker=True, sites="h.*.resid_post")
def stale_by_setdefault():
    """A store that outlives the call, and keeps what it has."""
    store = {}

    def hook(name, module, args, output):
        if name not in store:
            store[name] = output.detach().clone()

    def capture(model, input_ids):
        pairs = [(b, partial(hook, f"h.{i}.resid_post")) for i, b in numbered(model)]
        run_hooked(model, input_ids, pairs)
        return dict(store)

    return capture


@wrong(row="D7", rules={"RC107"}, maker=True, sites="h.*.mlp_out")
def one_call_behind():
    """The store is read before the pass that fills it."""
    store = {}

    def capture(model, input_ids):
        before = dict(store)
        store.update(outputs(model, input_ids, "h.{}.mlp_out", "mlp"))
        return before or dict(store)

    return capture


@wrong(row="D9", rules={"RC206"}, maker=True)
def replays_the_first_prompt():
    """A lambda returns what setdefault returns: the first prompt's output."""
    store = {}

    def capture(model, input_ids):
        pairs = [
            (b, lambda m, a, o, i=i: store.setdefault(f"layer_{i}", o))
            for i, b in numbered(model)
        ]
        run_hooked(model, input_ids, pairs)
        return dict(store)

    return capture


@wrong(row="D14", rules={"RC208", "RC211", "RC215"})
def block_swapped(model, input_ids):
    """A block is replaced by a copy, which stays."""
    blocks = model.transformer.h
    blocks[1] = copy.deepcopy(blocks[1])
    return outputs(model, input_ids, "layer_{}")


class Wrapped(nn.Module):
    """Stands before a block, and keeps what it returns."""

    def __init__(self, block):
        super().__init__()
        self.block = block
        self.kept = None

    def forward(self, *args, **kwargs):
        self.kept = self.block(*args, **kwargs)
        return self.kept


@wrong(row="D14", rules={"RC211", "RC215"})
def block_wrapped(model, input_ids):
    """Blocks are wrapped to see their outputs, and stay so."""
    blocks = model.transformer.h
    for i, block in numbered(model):
        if not isinstance(block, Wrapped):
            blocks[i] = Wrapped(block)
    with torch.no_grad():
        model(input_ids)
    return {f"h.{i}.resid_post": b.kept for i, b in numbered(model)}


@wrong(row="D15", rules={"RC214"})
def unpicklable(model, input_ids):
    """A closure stays on the model as an attribute: it cannot be pickled."""
    store = {}
    model.activations_of = lambda name: store[name]
    store |= outputs(model, input_ids, "layer_{}")
    return store


@wrong(row="D17", rules={"RC201", "RC212"})
def global_hook_left(model, input_ids):
    """A hook on all modules of the process stays."""
    store = {}
    names = {block: f"transformer.h.{i}" for i, block in numbered(model)}

    def hook(module, args, output):
        if module in names:
            store[names[module]] = output

    register_module_forward_hook(hook)
    with torch.no_grad():
        model(input_ids)
    return dict(store)


@wrong(row="D18", rules={"RC104"}, sites="h.*.resid_post")
def rows_in_threads(model, input_ids):
    """Rows run in a pool of threads and share one store: the last one stays."""
    store = {}

    def hook(name, module, args, output):
        store[name] = output

    with ExitStack() as stack:
        for i, block in numbered(model):
            kept = partial(hook, f"h.{i}.resid_post")
            stack.callback(block.register_forward_hook(kept).remove)
        with ThreadPoolExecutor(max_workers=1) as pool:
            list(pool.map(lambda row: model(row[None]), input_ids))
    return {name: x.detach() for name, x in store.items()}


# -- E: mode -------------------------------------------------------------------


@wrong(row="E1", rules={"RC204", "RC207", "RC402"})
def in_train_mode(model, input_ids):
    """The pass runs in train mode, with dropout, and the mode is put back."""
    was = model.training
    try:
        model.train()
        return outputs(model, input_ids, "h.{}.resid_post")
    finally:
        model.train(was)


@wrong(row="E1", rules={"RC207"})
def train_mode_left(model, input_ids):
    """The model is left in train mode."""
    found = outputs(model, input_ids, "layer_{}")
    model.train()
    return found


@wrong(row="new", rules={"RC207"})
def one_module_left_in_train_mode(model, input_ids):
    """One dropout is switched on, and stays on."""
    found = outputs(model, input_ids, "layer_{}")
    model.transformer.drop.train()
    return found


@wrong(row="E2", rules={"RC101", "RC106"}, sites="h.*.attn_out")
def before_dropout(model, input_ids):
    """c_proj's output for what attention adds: in train mode they differ."""
    return outputs(model, input_ids, "h.{}.attn_out", "attn.c_proj")


@wrong(row="E4", rules={"RC107", "RC204", "RC207", "RC402"})
def two_dropouts(model, input_ids):
    """Hooks see one pass in train mode, hidden_states come from another."""
    was = model.training
    try:
        model.train()
        found = outputs(model, input_ids, "h.{}.mlp_out", "mlp")
        states = states_of(model, input_ids)
    finally:
        model.train(was)
    return found | {"hidden_states": states}


NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


@wrong(row="E5", rules={"RC109", "RC401"}, **NO_DROPOUT)
def recomputed_blocks(model, input_ids):
    """With gradient checkpointing each hook runs twice, and the list doubles."""
    found, was = [], model.training
    with ExitStack() as stack, torch.enable_grad():
        for block in model.transformer.h:
            handle = block.attn.register_forward_hook(
                lambda m, a, output: found.append(output[0].detach())
            )
            stack.callback(handle.remove)
        stack.callback(model.train, was)
        stack.callback(model.disable_input_require_grads)
        stack.callback(model.activation_checkpointing_disable)
        model.train()
        model.activation_checkpointing_enable()
        loss = model(input_ids, labels=input_ids, use_cache=False).loss
        torch.autograd.grad(loss, list(model.parameters()))
    return {"attn_out": found}


def generate(model, input_ids, **options):
    return model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        min_new_tokens=3,
        max_new_tokens=3,
        do_sample=False,
        pad_token_id=0,
        **options,
    )


def generated(model, input_ids, keep, **options):
    """Generate with a hook on each block; ``keep`` stores what it is given."""

    def hook(name, module, args, output):
        keep(name, output)

    with ExitStack() as stack:
        for i, block in numbered(model):
            one = partial(hook, f"h.{i}.resid_post")
            stack.callback(block.register_forward_hook(one).remove)
        generate(model, input_ids, **options)


@wrong(row="E6", rules={"RC107", "RC114"}, sites="h.*.resid_post")
def generate_overwrites(model, input_ids):
    """generate runs a pass for each new token; the last one is kept."""
    store = {}
    generated(model, input_ids, store.__setitem__)
    return store


@wrong(row="E8", rules={"RC107", "RC114", "RC115"}, sites="h.*.resid_post")
def beams_for_rows(model, input_ids):
    """Beams multiply the rows of the batch."""
    store = {}
    generated(model, input_ids, store.setdefault, num_beams=2)
    return store


@wrong(row="E9", rules={"RC107", "RC114"}, sites="h.*.resid_post", attention="sdpa")
def generate_without_cache(model, input_ids):
    """Without a cache each pass is longer than the last; the longest is kept."""
    store = {}
    generated(model, input_ids, store.__setitem__, use_cache=False)
    return store


@wrong(row="E12", rules={"RC107", "RC113"})
def mask_not_passed(model, input_ids, attention_mask=None):
    """The mask is asked for, and not handed on to the model."""
    return outputs(model, input_ids, "transformer.h.{}")


def one_huge_bias(model):
    """Give one dimension of the stream what float16 cannot hold."""
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.bias[5] = 1e5


@wrong(row="E17", rules={"RC111"}, sites="h.1.mlp_out", prepare=one_huge_bias)
def half_overflows(model, input_ids):
    """Stored as float16, which the largest values overflow."""
    found = outputs(model, input_ids, "h.{}.mlp_out", "mlp")
    return {name: x.half() for name, x in found.items()}


@wrong(row="E20", rules={"RC110"})
def hooked_after_compiling(model, input_ids):
    """Hooks on modules inside of what is compiled already do not run."""
    store = {}
    mlp = model.transformer.h[0].mlp
    x = collect(model, input_ids, {"x": (mlp, IN)})["x"]
    torch._dynamo.reset()
    compiled = torch.compile(mlp, backend="eager")
    with torch.no_grad():
        compiled(x)
        with mlp.c_fc.register_forward_hook(
            lambda m, a, output: store.update({"h.0.mlp.pre": output})
        ):
            compiled(x)
    return store


@wrong(row="E21", rules={"RC107"}, sites="h.0.mlp_out", maker=True)
def hooked_while_tracing():
    """Hooks run while torch.jit traces, with the first prompt, and never again."""
    store, traced = {}, []

    def trace(mlp, x):
        with (
            mlp.register_forward_hook(lambda m, a, o: store.update(seen=o.clone())),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            return torch.jit.trace(mlp, x, check_trace=False)

    def capture(model, input_ids):
        mlp = model.transformer.h[0].mlp
        x = collect(model, input_ids, {"x": (mlp, IN)})["x"]
        with torch.no_grad():
            if not traced:
                traced.append(trace(mlp, x))
            traced[0](x)
        return {"h.0.mlp_out": store["seen"]}

    return capture


@wrong(row="E22", rules={"RC209"})
def kernel_left(model, input_ids):
    """The attention kernel is switched for the pattern, and stays so."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model(input_ids, output_attentions=True)
    model.set_attn_implementation("sdpa")
    return {"attentions": out.attentions}


@wrong(row="E23", rules={"RC211", "RC212"})
def attention_function_patched(model, input_ids):
    """A function of transformers is replaced for the whole process, and stays so."""
    original, found = modeling_gpt2.eager_attention_forward, []

    def eager_attention_forward(*args, **kwargs):
        out, weights = original(*args, **kwargs)
        found.append(weights)
        return out, weights

    modeling_gpt2.eager_attention_forward = eager_attention_forward
    with torch.no_grad():
        model(input_ids)
    return {"attentions": list(found)}


@wrong(row="E24", rules={"RC208"})
def tie_cut(model, input_ids):
    """lm_head gets weights of its own, and is no longer tied to wte."""
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    with torch.no_grad():
        return {"logits": model(input_ids).logits}


# -- new: the wrong thing selected ---------------------------------------------


@wrong(row="new", rules={"RC102"}, sites="h.*.mlp_out", n_layer=12)
def sorted_as_text(model, input_ids):
    """Names sorted as text: h.1, h.10, h.11, h.2."""
    found = outputs(model, input_ids, "transformer.h.{}.mlp", "mlp")
    return {"mlp_out": [found[name] for name in sorted(found)]}


@wrong(row="new", rules={"RC102"}, sites="h.*.attn_out")
def two_layers_swapped(model, input_ids):
    """Layers 0 and 1 are exchanged."""
    found = outputs(model, input_ids, "h.{}.attn_out", "attn")
    found["h.0.attn_out"], found["h.1.attn_out"] = (
        found["h.1.attn_out"],
        found["h.0.attn_out"],
    )
    return found


@wrong(row="new", rules={"RC102"}, sites="h.*.mlp_out", n_layer=12)
def off_by_one_above_five(model, input_ids):
    """From layer 6 on each entry is the one below it."""
    found = list(layers_of(model, input_ids, "mlp").values())
    shifted = found[:6] + found[5:-1]
    return {f"blocks.{i}.hook_mlp_out": x for i, x in enumerate(shifted)}


@wrong(row="new", rules={"RC102"}, sites="h.*.resid_post")
def layers_from_the_top(model, input_ids):
    """A stack over layers, the last one first."""
    found = outputs(model, input_ids, "h.{}.resid_post")
    return {"resid_post": torch.stack(list(found.values())[::-1])}


@wrong(row="new", rules={"RC102"}, sites="h.*.attn.pattern")
def attentions_one_early(model, input_ids):
    """attentions[i - 1] for layer i; for layer 0 that is the last one."""
    with torch.no_grad():
        found = model(input_ids, output_attentions=True).attentions
    return {f"h.{i}.attn.pattern": found[i - 1] for i in range(len(found))}


@wrong(row="new", rules={"RC101"}, sites="h.*.attn.k")
def cache_entries_swapped(model, input_ids):
    """Keys and values of the cache, one taken for the other."""
    with torch.no_grad():
        cache = model(input_ids, use_cache=True).past_key_values
    result = {}
    for i, layer in enumerate(cache.layers):
        result[f"h.{i}.attn.k"] = layer.values
        result[f"h.{i}.attn.v"] = layer.keys
    return result


@wrong(row="new", rules={"RC101"}, sites="logits")
def head_input_for_logits(model, input_ids):
    """What lm_head receives stored as logits."""
    return collect(model, input_ids, {"logits": (model.lm_head, IN)})


@wrong(row="new", rules={"RC101"}, sites="ln_f")
def norm_input_for_ln_f(model, input_ids):
    """What ln_f receives stored as its output."""
    places = {"transformer.ln_f": (model.transformer.ln_f, IN)}
    return collect(model, input_ids, places)


@wrong(row="new", rules={"RC101"}, sites="h.*.ln_2")
def other_norm(model, input_ids):
    """ln_1 stored as ln_2."""
    return outputs(model, input_ids, "transformer.h.{}.ln_2", "ln_1")


@wrong(row="new", rules={"RC101"}, sites="h.*.mlp_out")
def attention_for_mlp(model, input_ids):
    """Attention and MLP are exchanged."""
    attention = outputs(model, input_ids, "blocks.{}.hook_mlp_out", "attn")
    mlp = outputs(model, input_ids, "blocks.{}.hook_attn_out", "mlp")
    return attention | mlp


@wrong(row="new", rules={"RC101", "RC102"}, sites="h.*.ln_1")
def norms_counted(model, input_ids):
    """The LayerNorms numbered as they come: every second one is ln_2."""
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    places = {f"h.{i}.ln_1": (norms[i], OUT) for i, _ in numbered(model)}
    return collect(model, input_ids, places)


@wrong(row="new", rules={"RC101"}, sites="h.*.attn.z")
def output_cut_into_heads(model, input_ids):
    """c_proj's output, cut into heads, for z."""
    heads = model.config.n_head
    found = outputs(model, input_ids, "blocks.{}.attn.hook_z", "attn.c_proj")
    return {name: x.unflatten(-1, (heads, -1)) for name, x in found.items()}


@wrong(row="new", rules={"RC109"})
def registered_twice(model, input_ids):
    """Each hook is registered twice, so that the list has each layer twice."""
    found = []

    def hook(module, args, output):
        found.append(output)

    pairs = [(block.mlp, hook) for _, block in numbered(model)]
    run_hooked(model, input_ids, pairs + pairs)
    return {"mlp_out": found}


@wrong(row="new", rules={"RC109"})
def last_layer_dropped(model, input_ids):
    """range(n_layer - 1) leaves the last block out of the list."""
    found = outputs(model, input_ids)
    depth = model.config.n_layer
    return {"resid_post": [found[f"h.{i}.resid_post"] for i in range(depth - 1)]}


@wrong(row="new", rules={"RC109"})
def one_state_twice(model, input_ids):
    """The embedding is put before hidden_states, which begin with it."""
    states = states_of(model, input_ids)
    return {"hidden_states": [states[0], *states]}


@wrong(row="new", rules={"RC101"}, sites="h.*.mlp_out")
def gradients_for_activations(model, input_ids):
    """A backward hook keeps gradients, under the names of activations."""
    store = {}
    with ExitStack() as stack, torch.enable_grad():
        for i, block in numbered(model):
            handle = block.mlp.register_full_backward_hook(
                lambda m, into, out, i=i: store.__setitem__(
                    f"blocks.{i}.hook_mlp_out", out[0].detach()
                )
            )
            stack.callback(handle.remove)
        loss = model(input_ids, labels=input_ids).loss
        torch.autograd.grad(loss, list(model.parameters()))
    return store


# -- new: terms, formulas, layouts ---------------------------------------------


@wrong(row="new", rules={"RC105", "RC106"}, sites="h.*.resid_mid")
def mid_with_mlp(model, input_ids):
    """resid_mid as resid_pre + mlp_out."""
    before = layers_of(model, input_ids, "", IN)
    added = layers_of(model, input_ids, "mlp")
    return {f"blocks.{i}.hook_resid_mid": before[i] + added[i] for i in before}


@wrong(row="new", rules={"RC106"}, sites="h.*.resid_post")
def residual_twice(model, input_ids):
    """The residual is added to an output that has it already."""
    before = layers_of(model, input_ids, "", IN)
    after = layers_of(model, input_ids, "")
    return {f"h.{i}.resid_post": after[i] + before[i] for i in after}


@wrong(row="new", rules={"RC106"}, sites="h.*.resid_post")
def no_attention_update(model, input_ids):
    """The block's output as its input plus mlp_out, without attention."""
    before = layers_of(model, input_ids, "", IN)
    added = layers_of(model, input_ids, "mlp")
    return {f"transformer.h.{i}": before[i] + added[i] for i in before}


@wrong(row="new", rules={"RC106"}, sites="h.*.mlp.out")
def mlp_without_bias(model, input_ids):
    """Neurons times the output weights, without their bias."""
    neurons = layers_of(model, input_ids, "mlp.act")
    blocks = model.transformer.h
    return {
        f"h.{i}.mlp.out": (x @ blocks[i].mlp.c_proj.weight).detach()
        for i, x in neurons.items()
    }


@wrong(row="new", rules={"RC106"}, sites="h.*.mlp.pre")
def neurons_without_bias(model, input_ids):
    """Pre-activations without the bias of c_fc."""
    found = layers_of(model, input_ids, "mlp.c_fc")
    blocks = model.transformer.h
    return {
        f"transformer.h.{i}.mlp.c_fc": x - blocks[i].mlp.c_fc.bias.detach()
        for i, x in found.items()
    }


@wrong(row="new", rules={"RC105"}, sites="h.*.attn.q")
def queries_without_norm(model, input_ids):
    """c_attn applied to the stream, which ln_1 has not normed."""
    heads, width = model.config.n_head, model.config.n_embd
    result = {}
    for i, x in layers_of(model, input_ids, "", IN).items():
        linear = model.transformer.h[i].attn.c_attn
        q = x @ linear.weight[:, :width] + linear.bias[:width]
        result[f"h.{i}.attn.q"] = split(q.detach(), heads)
    return result


@wrong(row="new", rules={"RC105"}, sites="h.*.attn.q")
def queries_scaled(model, input_ids):
    """Queries divided by sqrt(d), as some models keep them."""
    found = named_heads(model, input_ids, "qkv")
    return {
        name: x / math.sqrt(x.shape[-1])
        for name, x in found.items()
        if "attn.q" in name
    }


@wrong(row="new", rules={"RC105", "RC108"}, sites="h.*.attn.out")
def weights_transposed(model, input_ids):
    """F.linear with the weights of a Conv1D, which are the other way round."""
    z = layers_of(model, input_ids, "attn.c_proj", IN)
    result = {}
    for i, x in z.items():
        linear = model.transformer.h[i].attn.c_proj
        y = F.linear(x, linear.weight, linear.bias).detach()
        result[f"transformer.h.{i}.attn.c_proj"] = y
    return result


@wrong(row="new", rules={"RC105"}, sites="h.*.attn.scores")
def scores_unscaled(model, input_ids):
    """Scores before the division by sqrt(d)."""

    def scores(q, k):
        tokens = q.shape[-2]
        future = torch.ones(tokens, tokens).triu(1).bool()
        return (q @ k.transpose(-1, -2)).masked_fill(future, float("-inf"))

    return patterns(model, input_ids, scores, "blocks.{}.attn.hook_attn_scores")


@wrong(row="new", rules={"RC105"}, sites="h.*.mlp.post")
def relu_neurons(model, input_ids):
    """F.relu where the model has gelu_new."""
    found = outputs(model, input_ids, "h.{}.mlp.post", "mlp.c_fc")
    return {name: F.relu(x) for name, x in found.items()}


@wrong(row="new", rules={"RC105"}, sites="h.*.attn.pattern")
def softmax_over_queries(model, input_ids):
    """A softmax over the wrong axis."""

    def pattern(q, k):
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        future = torch.ones(scores.shape[-2:]).triu(1).bool()
        return scores.masked_fill(future, float("-inf")).softmax(-2)

    return patterns(model, input_ids, pattern)


@wrong(row="new", rules={"RC105", "RC111"}, sites="h.*.attn.pattern")
def diagonal_masked(model, input_ids):
    """A causal mask that hides each token from itself."""

    def pattern(q, k):
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        future = torch.ones(scores.shape[-2:]).triu().bool()
        return scores.masked_fill(future, torch.finfo(q.dtype).min).softmax(-1)

    return patterns(model, input_ids, pattern, "blocks.{}.attn.hook_pattern")


@wrong(row="new", rules={"RC103"}, sites="h.*.attn.pattern")
def keys_by_queries(model, input_ids):
    """A pattern with keys before queries."""
    with torch.no_grad():
        found = model(input_ids, output_attentions=True).attentions
    return {f"h.{i}.attn.pattern": x.transpose(-1, -2) for i, x in enumerate(found)}


@wrong(row="new", rules={"RC105"}, sites="embed")
def embedding_scaled(model, input_ids):
    """Embeddings times sqrt(D), as some models scale them."""
    found = collect(model, input_ids, {"embed": (model.transformer.drop, OUT)})
    return {"embed": found["embed"] * math.sqrt(model.config.n_embd)}


@wrong(row="new", rules={"RC105", "RC106"}, sites="h.2.resid_post")
def layers_averaged(model, input_ids):
    """The mean over layers, under the name of the last one."""
    found = outputs(model, input_ids)
    return {"h.2.resid_post": torch.stack(list(found.values())).mean(0)}


@wrong(row="new", rules={"RC103", "RC114", "RC115"}, sites="h.*.attn.[qkv]")
def chunked_along_tokens(model, input_ids):
    """c_attn's output chunked along the tokens, not the width."""
    result = {}
    for i, qkv in layers_of(model, input_ids, "attn.c_attn").items():
        for letter, part in zip("qkv", qkv.tensor_split(3, dim=1), strict=True):
            result[f"h.{i}.attn.{letter}"] = part.clone()
    return result


@wrong(row="new", rules={"RC105", "RC106"}, sites="ln_f")
def normed_twice(model, input_ids):
    """ln_f applied to the last hidden state, which it has made."""
    state = states_of(model, input_ids)[-1]
    norm = model.transformer.ln_f
    with torch.no_grad():
        twice = F.layer_norm(
            state, norm.normalized_shape, norm.weight, norm.bias, norm.eps
        )
    return {"ln_final.hook_normalized": twice}


@wrong(row="new", rules={"RC105", "RC106"}, sites="logits")
def logits_without_norm(model, input_ids):
    """The unembedding of the last residual, without ln_f."""
    last = layers_of(model, input_ids, "")[model.config.n_layer - 1]
    return {"logits": (last @ model.lm_head.weight.T).detach()}


@wrong(row="new", rules={"RC105"}, sites="logits")
def probabilities_for_logits(model, input_ids):
    """A softmax stored as logits."""
    with torch.no_grad():
        return {"logits": model(input_ids).logits.softmax(-1)}


@wrong(row="new", rules={"RC105", "RC106"}, sites="logits")
def log_probabilities_for_logits(model, input_ids):
    """A log-softmax stored as logits."""
    with torch.no_grad():
        return {"logits": model(input_ids).logits.log_softmax(-1)}


@wrong(row="new", rules={"RC105"}, sites="h.*.resid_post")
def unit_vectors(model, input_ids):
    """Activations normalised to length 1, under a plain name."""
    found = outputs(model, input_ids, "blocks.{}.hook_resid_post")
    return {name: F.normalize(x, dim=-1) for name, x in found.items()}


@wrong(row="new", rules={"RC103"}, sites="h.*.attn.z")
def heads_reversed(model, input_ids):
    """Heads in the opposite order."""
    heads = model.config.n_head
    merged = layers_of(model, input_ids, "attn.c_proj", IN)
    return {f"h.{i}.attn.z": split(x, heads).flip(1) for i, x in merged.items()}


@wrong(row="new", rules={"RC103"}, sites="h.*.mlp.post")
def viewed_across_rows(model, input_ids):
    """Tokens first, by a view instead of a transpose, then back by a transpose."""
    found = outputs(model, input_ids, "h.{}.mlp.post", "mlp.act")
    return {
        name: x.reshape(x.shape[1], x.shape[0], -1).transpose(0, 1)
        for name, x in found.items()
    }


@wrong(row="new", rules={"RC105", "RC115"}, sites="h.*.attn.pattern")
def heads_averaged(model, input_ids):
    """The mean over heads under the plain name of the pattern."""
    with torch.no_grad():
        found = model(input_ids, output_attentions=True).attentions
    return {f"blocks.{i}.attn.hook_pattern": x.mean(1) for i, x in enumerate(found)}


@wrong(row="new", rules={"RC105", "RC115"}, sites="h.*.resid_post")
def averaged_over_rows(model, input_ids):
    """The mean over the batch instead of the tokens, under a plain name."""
    found = outputs(model, input_ids, "transformer.h.{}.output")
    return {name: x.mean(0) for name, x in found.items()}


@wrong(row="new", rules={"RC109", "RC114", "RC115"})
def layers_after_layers(model, input_ids):
    """torch.cat over layers, where a stack was meant."""
    found = outputs(model, input_ids)
    return {"h.0.resid_post": torch.cat(list(found.values()), dim=1)}


# -- new: rows, tokens and passes ----------------------------------------------


@wrong(row="new", rules={"RC114"}, sites="h.*.resid_post")
def rows_reversed(model, input_ids):
    """The rows of the batch in the opposite order."""
    found = outputs(model, input_ids, "h.{}.resid_post")
    return {name: x.flip(0) for name, x in found.items()}


@wrong(row="new", rules={"RC114"}, sites="h.*.resid_pre")
def tokens_reversed(model, input_ids):
    """Tokens in the opposite order."""
    places = {f"blocks.{i}.hook_resid_pre": (b, IN) for i, b in numbered(model)}
    found = collect(model, input_ids, places)
    return {name: x.flip(1) for name, x in found.items()}


@wrong(row="new", rules={"RC114"}, sites="h.*.mlp_out")
def first_token_dropped(model, input_ids):
    """[:, 1:] drops a BOS token that is not there."""
    found = outputs(model, input_ids, "h.{}.mlp_out", "mlp")
    return {name: x[:, 1:] for name, x in found.items()}


@wrong(row="new", rules={"RC114"}, sites="logits")
def logits_shifted(model, input_ids):
    """Logits shifted as for a loss, under their plain name."""
    with torch.no_grad():
        return {"logits": model(input_ids).logits[:, :-1]}


@wrong(row="new", rules={"RC114", "RC104"}, sites="h.*.resid_post")
def first_row_for_all(model, input_ids):
    """Row 0 repeated for every row of the batch."""
    found = outputs(model, input_ids, "h.{}.resid_post")
    return {name: x[:1].expand_as(x).clone() for name, x in found.items()}


@wrong(row="new", rules={"RC114", "RC107"}, sites="h.*.resid_post")
def prompt_cut(model, input_ids):
    """max_length=4 cuts the prompt."""
    return outputs(model, input_ids[:, :4], "h.{}.resid_post")


@wrong(row="new", rules={"RC107"}, sites="h.*.resid_post")
def positions_from_one(model, input_ids):
    """position_ids count from 1."""
    positions = torch.arange(1, input_ids.shape[1] + 1)[None]
    return outputs(model, input_ids, "h.{}.resid_post", position_ids=positions)


@wrong(row="new", rules={"RC107"}, sites="h.*.resid_post")
def other_tokens(model, input_ids):
    """Ids are taken modulo a smaller vocabulary."""
    return outputs(model, (input_ids + 1) % 50, "h.{}.resid_post")


@wrong(row="new", rules={"RC107", "RC108"}, sites="h.*.resid_post")
def another_model(model, input_ids):
    """A copy with fresh weights is run in place of the model."""
    other = copy.deepcopy(model)
    with torch.no_grad(), torch.random.fork_rng([]):
        torch.manual_seed(0)
        for weight in other.parameters():
            weight.normal_(0.0, 0.2)
    return outputs(other, input_ids, "h.{}.resid_post")


@wrong(row="new", rules={"RC107", "RC401", "RC402"}, maker=True)
def cache_reused():
    """One cache is used for all calls, so that each one continues the last."""
    kept = {}

    def capture(model, input_ids):
        cache = kept.get(len(input_ids))
        store = {}
        pairs = [
            (b, lambda m, a, o, i=i: store.__setitem__(f"h.{i}.resid_post", o))
            for i, b in numbered(model)
        ]
        out = run_hooked(model, input_ids, pairs, **{CACHE: cache})
        if out.past_key_values.get_seq_length() < model.config.n_positions // 2:
            kept[len(input_ids)] = out.past_key_values
        return store

    return capture


@wrong(row="new", rules={"RC107", "RC401", "RC402"}, maker=True)
def running_average():
    """Activations are averaged with those of earlier calls."""
    store = {}

    def capture(model, input_ids):
        for name, x in outputs(model, input_ids, "h.{}.mlp_out", "mlp").items():
            old = store.get(name)
            same = old is not None and old.shape == x.shape
            store[name] = 0.9 * old + 0.1 * x if same else x
        return dict(store)

    return capture


@wrong(row="new", rules={"RC108", "RC402"})
def noise_added(model, input_ids):
    """Noise is added to what was captured."""
    found = outputs(model, input_ids, "h.{}.resid_post")
    return {name: x + 1e-2 * torch.randn_like(x) for name, x in found.items()}


@wrong(row="new", rules={"RC402", "RC114"})
def random_tokens(model, input_ids):
    """Tokens are sampled without a seed."""
    found = outputs(model, input_ids, "h.{}.resid_post")
    order = torch.randperm(input_ids.shape[1])
    return {name: x[:, order] for name, x in found.items()}


@wrong(row="new", rules={"RC107", "RC108", "RC111", "RC402"})
def buffer_not_filled(model, input_ids):
    """torch.empty, and the copy goes to a slice of a copy of it."""
    store = {}
    for name, x in outputs(model, input_ids, "h.{}.resid_post").items():
        buffer = torch.empty_like(x)
        buffer.clone()[:] = x
        store[name] = buffer
    return store


@wrong(row="new", rules={"RC108", "RC110"}, sites="h.*.mlp_out")
def zeros_not_filled(model, input_ids):
    """A buffer of zeros whose layers were to be filled, and were not."""
    found = outputs(model, input_ids, "h.{}.mlp_out", "mlp")
    buffers = {name: torch.zeros_like(x) for name, x in found.items()}
    for name, x in found.items():
        buffers[name].clone().copy_(x)
    return buffers


@wrong(row="new", rules={"RC108"}, sites="h.*.resid_post")
def half_filled(model, input_ids):
    """Only the first half of the width is copied into a buffer of zeros."""
    store = {}
    for name, x in outputs(model, input_ids, "h.{}.resid_post").items():
        store[name] = torch.zeros_like(x)
        half = x.shape[-1] // 2
        store[name][..., :half] = x[..., :half]
    return store


@wrong(row="new", rules={"RC105", "RC111"}, sites="h.*.resid_post")
def standardised_over_rows(model, input_ids):
    """Standardised over the batch: with one row that divides zero by zero."""
    found = outputs(model, input_ids, "h.{}.resid_post")
    return {name: (x - x.mean(0)) / x.std(0, correction=0) for name, x in found.items()}


# -- new: what the code does to the model --------------------------------------


@wrong(row="new", rules={"RC213"})
def parameters_frozen(model, input_ids):
    """requires_grad_(False), and never back."""
    model.requires_grad_(False)
    return outputs(model, input_ids, "layer_{}")


@wrong(row="new", rules={"RC209"})
def config_left(model, input_ids):
    """config.output_hidden_states is set, and stays."""
    model.config.output_hidden_states = True
    with torch.no_grad():
        return {"hidden_states": model(input_ids).hidden_states}


@wrong(row="new", rules={"RC211"})
def forward_left(model, input_ids):
    """A forward is replaced, and stays."""
    store = {}
    for i, block in numbered(model):

        def forward(*args, i=i, original=block.mlp.forward, **kwargs):
            store[f"mlp_{i}"] = original(*args, **kwargs)
            return store[f"mlp_{i}"]

        block.mlp.forward = forward
    with torch.no_grad():
        model(input_ids)
    return dict(store)


@wrong(row="new", rules={"RC211"})
def class_forward_left(model, input_ids):
    """The forward of a class is replaced for the process, and stays."""
    original, found = modeling_gpt2.GPT2MLP.forward, []

    def forward(self, hidden_states):
        found.append(original(self, hidden_states))
        return found[-1]

    modeling_gpt2.GPT2MLP.forward = forward
    with torch.no_grad():
        model(input_ids)
    return {"mlp_out": list(found)}


@wrong(row="new", rules={"RC208"})
def weights_edited(model, input_ids):
    """A bias is zeroed in place, and stays so."""
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.bias.zero_()
    return outputs(model, input_ids, "layer_{}")


@wrong(row="new", rules={"RC208"})
def weights_edited_behind_autograd(model, input_ids):
    """A weight is scaled through .data, which counts no version."""
    found = outputs(model, input_ids, "layer_{}")
    model.transformer.ln_f.weight.data.mul_(1.01)
    return found


@wrong(row="new", rules={"RC208"})
def model_cast(model, input_ids):
    """The model is cast to bfloat16 to save memory, and stays so."""
    model.to(torch.bfloat16)
    return outputs(model, input_ids, "layer_{}")


@wrong(row="new", rules={"RC212"})
def gradients_off(model, input_ids):
    """torch.set_grad_enabled(False), and never back."""
    torch.set_grad_enabled(False)
    return outputs(model, input_ids, "layer_{}")


@wrong(row="new", rules={"RC212"})
def default_dtype_left(model, input_ids):
    """The default dtype of the process is changed, and stays."""
    torch.set_default_dtype(torch.float64)
    return outputs(model, input_ids, "layer_{}")


@wrong(row="new", rules={"RC212"})
def autocast_left(model, input_ids):
    """Autocast is switched on after the pass, and stays on."""
    found = outputs(model, input_ids, "layer_{}")
    torch.set_autocast_enabled("cpu", True)
    return found


def two_hooks_of_others(model):
    """Put two hooks on a block that belong to someone else."""
    for _ in range(2):
        model.transformer.h[0].register_forward_hook(partial(someone_elses, {}))


def someone_elses(store, module, args, output):
    store["seen"] = output.shape


@wrong(row="D5", rules={"RC202"}, prepare=two_hooks_of_others)
def hooks_reordered(model, input_ids):
    """Hooks are put aside to be first, and put back the other way round."""
    block = model.transformer.h[0]
    aside = list(block._forward_hooks.items())
    block._forward_hooks.clear()
    try:
        return outputs(model, input_ids, "layer_{}")
    finally:
        block._forward_hooks.update(OrderedDict(reversed(aside)))


@wrong(row="D5", rules={"RC202"}, prepare=two_hooks_of_others)
def last_hook_popped(model, input_ids):
    """popitem removes the last hook, which need not be one's own."""
    block = model.transformer.h[0]
    store = collect(model, input_ids, {"h.0.resid_post": (block, OUT)})
    block._forward_hooks.popitem()
    return store


@wrong(row="new", rules={"RC201"})
def backward_hook_left(model, input_ids):
    """A backward hook stays on a block."""
    store = outputs(model, input_ids, "layer_{}")
    model.transformer.h[1].register_full_backward_hook(lambda m, into, out: None)
    return store


@wrong(row="new", rules={"RC204"})
def rounds_through_half(model, input_ids):
    """A hook returns what it stores, which it has rounded to float16."""
    store = {}

    def hook(module, args, output):
        store["h.0.resid_post"] = output.half()
        return store["h.0.resid_post"].float()

    run_hooked(model, input_ids, [(model.transformer.h[0], hook)])
    return store


@wrong(row="new", rules={"RC204", "RC402"})
def draws_noise_into_the_model(model, input_ids):
    """A hook adds noise to what the model goes on with."""
    store = {}

    def hook(module, args, output):
        store["h.0.mlp_out"] = output + 0.1 * torch.randn_like(output)
        return store["h.0.mlp_out"]

    run_hooked(model, input_ids, [(model.transformer.h[0].mlp, hook)])
    return store


# -- new: over several runs ----------------------------------------------------


@wrong(row="new", rules={"RC404"})
def batch_of_one_assumed(model, input_ids):
    """view(T, D) of a batch."""
    tokens, width = input_ids.shape[1], model.config.n_embd
    found = outputs(model, input_ids, "block_{}_out")
    return {name: x.view(tokens, width) for name, x in found.items()}


@wrong(row="new", rules={"RC404"}, maker=True)
def buffer_of_the_first_shape():
    """Buffers get the shape of the first prompt, and are kept."""
    buffers = {}

    def capture(model, input_ids):
        for name, x in outputs(model, input_ids, "h.{}.mlp_out", "mlp").items():
            buffers.setdefault(name, torch.zeros_like(x)).copy_(x)
        return {name: x.clone() for name, x in buffers.items()}

    return capture


@wrong(row="new", rules={"RC404"})
def gradient_mode_assumed(model, input_ids):
    """Refuses to run under no_grad, and asks for no gradient."""
    if not torch.is_grad_enabled():
        raise ValueError("call me with gradients on")
    return {"logits": model(input_ids).logits.detach()}


@wrong(row="new", rules={"RC405"}, maker=True)
def calls_counted():
    """Names count the calls of the function."""
    calls = []

    def capture(model, input_ids):
        calls.append(None)
        return outputs(model, input_ids, f"call{len(calls)}.h.{{}}.mlp_out", "mlp")

    return capture


@wrong(row="new", rules={"RC405", "RC109"})
def keys_by_value(model, input_ids):
    """Names depend on the values, so that not all of them always come."""
    found = outputs(model, input_ids, "h.{}.mlp_out", "mlp")
    chosen = int(input_ids.sum()) % len(found)
    return {name: x for i, (name, x) in enumerate(found.items()) if i != chosen}


# -- two faults in one function ------------------------------------------------


@wrong(
    row="A5+D4",
    rules={"RC101", "RC102"},
    sites="h.*.resid_post",
    also=[({"RC201"}, None)],
)
def early_states_and_hooks(model, input_ids):
    """Hidden states one block early, and a hook that stays."""
    states = states_of(model, input_ids)
    model.transformer.h[0].register_forward_hook(lambda m, a, o: None)
    return {f"h.{i}.resid_post": states[i] for i, _ in numbered(model)}


@wrong(
    row="B1+A13",
    rules={"RC101"},
    sites="h.*.attn.[qk]",
    also=[({"RC106"}, "h.*.attn.out")],
)
def swapped_and_unbiased(model, input_ids):
    """q and k swapped, and attn.out without its bias."""
    return queries_and_keys(model, input_ids) | attention_without_bias(model, input_ids)


@wrong(row="A1+E1", rules={"RC104"}, sites="h.*.mlp_out", also=[({"RC207"}, None)])
def row_zero_and_train_mode(model, input_ids):
    """output[0] of MLPs, and the model is left in train mode."""
    found = row_zero_of_mlps(model, input_ids)
    model.train()
    return found


@wrong(
    row="B22+new",
    rules={"RC105"},
    sites="h.*.mlp.post",
    also=[({"RC102"}, "h.*.attn_out")],
)
def gelu_and_layers(model, input_ids):
    """The other gelu, and two layers of attention exchanged."""
    return erf_gelu(model, input_ids) | two_layers_swapped(model, input_ids)


@wrong(
    row="D7+new",
    rules={"RC107"},
    sites="h.*.resid_post",
    also=[({"RC213"}, None)],
    maker=True,
)
def stale_and_frozen():
    """A store that keeps the first prompt, and frozen parameters."""
    stale = stale_by_setdefault()

    def capture(model, input_ids):
        model.requires_grad_(False)
        return stale(model, input_ids)

    return capture


@wrong(
    row="B8+new",
    rules={"RC103"},
    sites="h.*.attn.z",
    also=[({"RC209"}, None)],
)
def merged_wrong_and_config(model, input_ids):
    """z merged wrongly, and the config changed."""
    model.config.use_cache = False
    return merged_without_transpose(model, input_ids)


@wrong(
    row="E17+new",
    rules={"RC111"},
    sites="h.1.mlp_out",
    also=[({"RC212"}, None)],
    prepare=one_huge_bias,
)
def overflow_and_gradients_off(model, input_ids):
    """float16 overflows, and gradients stay off."""
    torch.set_grad_enabled(False)
    return half_overflows(model, input_ids)


@wrong(
    row="B26+A14",
    rules={"RC113"},
    also=[({"RC101"}, "h.*.mlp.post")],
)
def padding_and_activation(model, input_ids, attention_mask=None):
    """A mean over padding, and neurons before their activation."""
    means = mean_of_padding(model, input_ids, attention_mask)
    return means | neurons_before_activation(model, input_ids)


@wrong(
    row="A7+A11",
    rules={"RC101"},
    sites="h.2.resid_post",
    also=[({"RC101"}, "h.*.resid_mid")],
)
def last_state_and_mid(model, input_ids):
    """The last residual is after ln_f, and resid_mid is resid_pre."""
    return last_state_for_last_residual(model, input_ids) | mid_from_ln_1(
        model, input_ids
    )


@wrong(
    row="A2+D3",
    rules={"RC205"},
    also=[({"RC203"}, None)],
)
def steers_a_row_unsafely(model, input_ids):
    """Row 0 is steered, and the hook stays if the pass raises."""
    store = {}

    def steer(module, args, output):
        output[0] += 0.5
        store["h.1.resid_post"] = output.clone()

    handle = model.transformer.h[1].register_forward_hook(steer)
    with torch.no_grad():
        model(input_ids)
    handle.remove()
    return store


@wrong(row="new", rules={"RC105"}, sites="h.*.mlp_out")
def mlp_from_before_attention(model, input_ids):
    """A block written anew feeds its MLP from the block's input, as GPT-J does."""
    kept = {}
    with torch.no_grad():
        states = model(input_ids, output_hidden_states=True).hidden_states
        for i, block in enumerate(model.transformer.h):
            kept[f"mlp_out_{i}"] = block.mlp(block.ln_2(states[i]))
    return kept


@wrong(row="new", rules={"RC105"}, sites="h.*.attn.k")
def keys_with_the_bias_of_queries(model, input_ids):
    """Keys are computed from the weights, with the queries' bias."""
    kept, width = {}, model.config.n_embd
    with torch.no_grad():
        states = model(input_ids, output_hidden_states=True).hidden_states
        for i, block in enumerate(model.transformer.h):
            weight, bias = block.attn.c_attn.weight, block.attn.c_attn.bias
            keys = block.ln_1(states[i]) @ weight[:, width : 2 * width]
            kept[f"k_{i}"] = keys + bias[:width]
    return kept


@wrong(row="new", rules={"RC114"}, sites="h.*.resid_post")
def buffer_that_is_not_filled(model, input_ids):
    """A buffer is filled token by token, and the loop stops one short."""
    kept = {}
    with torch.no_grad():
        states = model(input_ids, output_hidden_states=True).hidden_states
    for i in range(len(model.transformer.h) - 1):
        kept[f"resid_post_{i}"] = torch.zeros_like(states[i + 1])
        for token in range(input_ids.shape[1] - 1):
            kept[f"resid_post_{i}"][:, token] = states[i + 1][:, token]
    return kept


@wrong(row="new", rules={"RC107"}, sites="h.*.resid_post")
def windows_without_context(model, input_ids):
    """The prompt is cut into windows that run apart, each from position 0."""
    windows = []
    with torch.no_grad():
        for ids in input_ids.split(4, dim=1):
            windows.append(model(ids, output_hidden_states=True).hidden_states)
    layers = range(len(model.transformer.h) - 1)
    return {f"hidden_{i}": torch.cat([w[i + 1] for w in windows], 1) for i in layers}


@wrong(row="new", rules={"RC105"}, sites="logits")
def lens_through_two_norms(model, input_ids):
    """A logit lens norms the last hidden state, which is normed already."""
    with torch.no_grad():
        states = model(input_ids, output_hidden_states=True).hidden_states
        lens = [model.lm_head(model.transformer.ln_f(state)) for state in states[1:]]
    return {f"logit_lens_{i}": logits for i, logits in enumerate(lens)}


@wrong(row="new", rules={"RC116"})
def corrupted_run_is_the_clean_one(model, input_ids):
    """A hook's setdefault hands the clean run's states to the corrupted one."""
    store, handles = {}, []
    for i, block in enumerate(model.transformer.h):
        handles.append(
            block.register_forward_hook(
                lambda module, args, output, i=i: store.setdefault(i, output)
            )
        )
    try:
        with torch.no_grad():
            model(input_ids)
            corrupted = model(input_ids.flip(1)).logits
    finally:
        for handle in handles:
            handle.remove()
    return {"corrupted_logits": corrupted}


@wrong(row="new", rules={"RC107"})
def clean_rows_are_corrupted(model, input_ids):
    """Half of a doubled batch is corrupted, and the clean half is the wrong one."""
    both = torch.cat([input_ids.flip(1), input_ids])
    with torch.no_grad():
        states = model(both, output_hidden_states=True).hidden_states
    layers = range(len(model.transformer.h) - 1)
    return {f"clean_layer_{i}": states[i + 1][: len(input_ids)] for i in layers}


@wrong(row="new", rules={"RC112"}, sites="h.*.mlp.out")
def half_precision_in_disguise(model, input_ids):
    """Captures are rounded to bfloat16, and kept as float32."""
    kept, handles = {}, []
    for i, block in enumerate(model.transformer.h):
        handles.append(
            block.mlp.c_proj.register_forward_hook(
                lambda module, args, output, i=i: kept.update(
                    {f"h.{i}.mlp.out": output.bfloat16().float()}
                )
            )
        )
    try:
        with torch.no_grad():
            model(input_ids)
    finally:
        for handle in handles:
            handle.remove()
    return kept


@wrong(row="new", rules={"RC105"}, sites="h.*.mlp.post")
def variance_and_mean_swapped(model, input_ids):
    """What torch.var_mean returns is taken the other way round."""
    kept, handles = {}, []

    def keep(i):
        def hook(module, args, output):
            mean, variance = torch.var_mean(output, dim=1)
            kept[f"mean_act_{i}"], kept[f"var_act_{i}"] = mean, variance

        return hook

    try:
        for i, block in enumerate(model.transformer.h):
            handles.append(block.mlp.act.register_forward_hook(keep(i)))
        with torch.no_grad():
            model(input_ids)
    finally:
        for handle in handles:
            handle.remove()
    return kept


@wrong(row="new", rules={"RC114"}, sites="h.*.resid_post")
def pooled_over_the_batch(model, input_ids):
    """A sentence embedding is pooled over the rows, not over the tokens."""
    with torch.no_grad():
        states = model(input_ids, output_hidden_states=True).hidden_states
    layers = range(len(model.transformer.h) - 1)
    return {f"mean_pooled_layer_{i}": states[i + 1].mean(0) for i in layers}


@wrong(row="new", rules={"RC113"}, sites="h.*.resid_post")
def padded_tokens_counted(model, input_ids, attention_mask):
    """A mean over the text divides by the number of all tokens."""
    kept, handles = {}, []
    for i, block in enumerate(model.transformer.h):
        handles.append(
            block.register_forward_hook(
                lambda module, args, output, i=i: kept.update(
                    {
                        f"mean_resid_post_{i}": (
                            output * attention_mask[..., None]
                        ).mean(1)
                    }
                )
            )
        )
    try:
        with torch.no_grad():
            model(input_ids, attention_mask=attention_mask)
    finally:
        for handle in handles:
            handle.remove()
    return kept


@wrong(row="new", rules={"RC105"}, sites="h.*.attn.pattern", attention="sdpa")
def scaled_by_the_whole_width(model, input_ids, attention_mask):
    """Scores of a padded batch are divided by the root of the model's width."""
    kept, handles, (_, tokens) = {}, [], input_ids.shape
    allowed = torch.ones(tokens, tokens).tril().bool()
    allowed = allowed & attention_mask[:, None, None].bool()

    def keep(i, module, args, output):
        q, k, _ = (
            one.unflatten(-1, (model.config.n_head, -1)).transpose(1, 2)
            for one in output.chunk(3, -1)
        )
        scores = q @ k.transpose(-1, -2) / model.config.n_embd**0.5
        kept[f"h.{i}.attn.pattern"] = scores.masked_fill(~allowed, -1e9).softmax(-1)

    for i, block in enumerate(model.transformer.h):
        handles.append(block.attn.c_attn.register_forward_hook(partial(keep, i)))
    try:
        with torch.no_grad():
            model(input_ids, attention_mask=attention_mask)
    finally:
        for handle in handles:
            handle.remove()
    return kept


@wrong(row="new", rules={"RC105"}, sites="h.*.mlp_out as *")
def shares_by_their_own_size(model, input_ids):
    """Each part's share of a logit goes through ln_f alone, divided by its own size."""
    parts, handles = {}, []
    for i, block in enumerate(model.transformer.h):
        handles.append(
            block.mlp.register_forward_hook(
                lambda module, args, output, i=i: parts.update({i: output})
            )
        )
    try:
        with torch.no_grad():
            logits = model(input_ids).logits
            rows = model.lm_head.weight[logits.argmax(-1)]
            return {
                f"direct_logit_attribution_mlp_out_{i}": (
                    model.transformer.ln_f(part) * rows
                ).sum(-1)
                for i, part in parts.items()
            }
    finally:
        for handle in handles:
            handle.remove()


@wrong(row="new", rules={"RC105"}, sites="logits as *")
def losses_of_mixed_axes(model, input_ids):
    """The vocabulary is viewed as tokens before the loss is taken."""
    with torch.no_grad():
        logits = model(input_ids).logits[:, :-1]
    mixed = logits.reshape(len(input_ids), -1, logits.shape[1])
    loss = torch.nn.functional.cross_entropy(mixed, input_ids[:, 1:], reduction="none")
    return {"loss_per_token": loss}


@wrong(row="new", rules={"RC102"}, sites="h.*")
def features_of_another_block(model, input_ids):
    """Features of two parts stand side by side, and are those of the block before."""
    parts, handles, kept = {}, [], {}
    for i, block in enumerate(model.transformer.h):
        for part in ("attn", "mlp"):
            handles.append(
                getattr(block, part).c_proj.register_forward_hook(
                    lambda module, args, output, at=(part, i): parts.update(
                        {at: output}
                    )
                )
            )
    try:
        with torch.no_grad():
            model(input_ids)
    finally:
        for handle in handles:
            handle.remove()
    count = len(model.transformer.h)
    for i in range(count):
        kept[f"layer_{(i + 1) % count}"] = torch.cat(
            [parts["attn", i], parts["mlp", i]], -1
        )
    return kept


@wrong(row="new", rules={"RC104"}, sites="h.*.resid_post")
def last_row_only(model, input_ids):
    """A slice keeps the last row of the batch, under the name of the whole."""
    with torch.no_grad():
        states = model(input_ids, output_hidden_states=True).hidden_states
    layers = range(len(model.transformer.h) - 1)
    return {f"h.{i}.resid_post": states[i + 1][-1:] for i in layers}


@wrong(row="new", rules={"RC104"}, sites="h.1.resid_post")
def last_prompt_only(model, input_ids):
    """A loop over prompts writes the same key each time."""
    kept = {}
    for row in input_ids.split(1):
        with torch.no_grad():
            out = model(row, output_hidden_states=True)
        kept["resid_post_1"] = out.hidden_states[2]
    return kept


@wrong(row="new", rules={"RC107"}, sites="h.1.resid_post")
def decoded_at_position_0(model, input_ids):
    """Each step of a decoding loop runs at position 0."""
    states, cache, tokens, more = [], None, input_ids, {}
    for _ in range(3):
        with torch.no_grad():
            out = model(
                tokens, **{CACHE: cache}, use_cache=True, output_hidden_states=True,
                **more,
            )  # fmt: skip
        states.append(out.hidden_states[2])
        cache, tokens = out.past_key_values, out.logits[:, -1:].argmax(-1)
        more = {"position_ids": torch.zeros_like(tokens)}
    return {"resid_post_1": torch.cat(states, 1)}


@wrong(row="new", rules={"RC107"}, sites="h.1.resid_post")
def decoded_twice(model, input_ids):
    """Each step hands in all tokens again, beside the cache that holds them."""
    states, cache, tokens = [], None, input_ids
    for _ in range(3):
        with torch.no_grad():
            out = model(
                tokens, **{CACHE: cache}, use_cache=True, output_hidden_states=True
            )
        states.append(out.hidden_states[2])
        cache = out.past_key_values
        tokens = torch.cat([tokens, out.logits[:, -1:].argmax(-1)], 1)
    return {"resid_post_1": torch.cat(states, 1)}


@wrong(row="new", rules={"RC107"}, sites="h.1.resid_post")
def decoded_anew(model, input_ids):
    """A loop without a cache keeps all tokens of each step, most of them again."""
    states, tokens = [], input_ids
    for _ in range(3):
        with torch.no_grad():
            out = model(tokens, output_hidden_states=True)
        states.append(out.hidden_states[2])
        tokens = torch.cat([tokens, out.logits[:, -1:].argmax(-1)], 1)
    return {"resid_post_1": torch.cat(states, 1)}


@wrong(row="new", rules={"RC114"}, sites="h.*.mlp.post")
def tokens_for_neurons(model, input_ids):
    """The number of a neuron is taken along the tokens."""
    kept = {}
    handles = [
        block.mlp.act.register_forward_hook(
            lambda module, args, output, i=i: kept.update(
                {f"h.{i}.mlp.post.neuron_{n}": output[:, n].clone() for n in (1, 3)}
            )
        )
        for i, block in enumerate(model.transformer.h)
    ]
    try:
        with torch.no_grad():
            model(input_ids)
    finally:
        for handle in handles:
            handle.remove()
    return kept


@wrong(row="new", rules={"RC107"}, sites="h.*.resid_post")
def positions_not_handed_on(model, input_ids, attention_mask, position_ids):
    """The model runs on the mask, and counts the positions itself."""
    with torch.no_grad():
        out = model(input_ids, attention_mask=attention_mask, output_hidden_states=True)
    layers = range(len(model.transformer.h) - 1)
    return {f"h.{i}.resid_post": out.hidden_states[i + 1] for i in layers}


@wrong(row="new", rules={"RC101"}, sites="h.*.resid_post")
def gradients_under_the_name_of_states(model, input_ids):
    """What a backward hook sees is filed under the module's own name."""
    kept, handles = {}, []
    for i, block in enumerate(model.transformer.h):
        handles.append(
            block.register_full_backward_hook(
                lambda module, before, after, i=i: kept.update(
                    {f"h.{i}.resid_post": after[0].detach()}
                )
            )
        )
    with torch.enable_grad():
        model(input_ids).logits.logsumexp(-1).mean().backward()
    for handle in handles:
        handle.remove()
    model.zero_grad(set_to_none=True)
    return dict(sorted(kept.items()))


@wrong(row="new", rules={"RC205"})
def patched_in_the_first_row_only(model, input_ids):
    """Of a corrupted batch output[0, -1] patches row 0 only, not each last token."""
    kept = {}

    def keep(module, args, output):
        kept["last"] = output[:, -1].clone()

    def patch(module, args, output):
        output = output.clone()
        output[0, -1] = kept["last"][0]
        return output

    block = model.transformer.h[1]
    with torch.no_grad():
        with block.register_forward_hook(keep):
            clean = model(input_ids).logits
        with block.register_forward_hook(patch):
            patched = model(input_ids.flip(1)).logits
    return {"clean_logits": clean, "patched_logits": patched}


@wrong(row="new", rules={"RC107"}, sites="h.*.resid_post")
def positions_ignored(model, input_ids, position_ids):
    """Positions are taken, and never handed to the model."""
    with torch.no_grad():
        out = model(input_ids, output_hidden_states=True)
    layers = range(len(model.transformer.h) - 1)
    return {f"h.{i}.resid_post": out.hidden_states[i + 1] for i in layers}


@wrong(row="new", rules={"RC105"}, sites="h.*.attn.pattern")
def probabilities_over_the_queries(model, input_ids):
    """Under the loose name probs_3, a softmax over the wrong axis."""

    def pattern(q, k):
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        future = torch.ones(scores.shape[-2:]).triu(1).bool()
        return scores.masked_fill(future, float("-inf")).softmax(-2)

    return patterns(model, input_ids, pattern, "probs_{}")


@wrong(row="new", rules={"RC108"}, sites="h.*.resid_post")
def mean_of_mixed_rows(model, input_ids):
    """Rows and tokens are read as tokens and rows before the mean."""
    found = outputs(model, input_ids, "layer_{}_mean_over_tokens")
    return {
        name: tensor.reshape(tensor.shape[1], tensor.shape[0], -1).mean(0)
        for name, tensor in found.items()
    }


@wrong(row="new", rules={"RC218"})
def next_prompt_in_place(model, input_ids):
    """The next prompt is written into the tensor that the caller gave."""
    with torch.no_grad():
        logits = model(input_ids).logits
    input_ids[:, -1] = logits[:, -1].argmax(-1)
    return {"logits": logits}


@wrong(row="new", rules={"RC105"}, sites="h.*.attn.pattern")
def mean_over_another_axis(model, input_ids):
    """The mean over heads is taken over the rows of the batch."""
    with torch.no_grad():
        attentions = model(input_ids, output_attentions=True).attentions
    averaged = torch.stack(attentions).mean(1)
    return {f"attention_mean_over_heads_{i}": one for i, one in enumerate(averaged)}


# -- names that number rows and heads, or say which run it was ---------------------


@wrong(row="new", rules={"RC114"}, sites="h.*.attn.z")
def the_head_after_the_one_named(model, input_ids):
    """Heads are counted from 1 where they are cut, and from 0 where they are named."""
    count = model.config.n_head
    places = {i: (block.attn.c_proj, IN) for i, block in numbered(model)}
    merged = collect(model, input_ids, places)
    return {
        f"head_{h}_layer_{i}": z.chunk(count, -1)[(h + 1) % count]
        for i, z in merged.items()
        for h in range(count)
    }


@wrong(row="new", rules={"RC114"}, sites="h.*.resid_post")
def rows_from_the_end(model, input_ids):
    """Row 0 is the last one."""
    places = {i: (block, OUT) for i, block in numbered(model)}
    states, rows = collect(model, input_ids, places), range(len(input_ids))
    return {f"row_{r}/layer_{i}": s[-1 - r] for i, s in states.items() for r in rows}


@wrong(row="new", rules={"RC116"})
def reversed_run_served_from_a_cache(model, input_ids):
    """A cache of runs knows them by shape, and hands out the first for the second."""
    runs = {}

    def states(ids):
        if ids.shape not in runs:
            places = {f"layer_{i}": (block, OUT) for i, block in numbered(model)}
            runs[ids.shape] = collect(model, ids, places)
        return runs[ids.shape]

    return {"given": states(input_ids), "reversed": states(input_ids.flip(1))}


@wrong(row="new", rules={"RC116"})
def steering_that_misses_cached_steps(model, input_ids):
    """The tokens from 3 on are steered, and each step of decoding has but token 0."""
    pieces, cache = [], None

    def steer(module, args, output):
        output = output.clone()
        output[:, 3:] += 1.0
        return output

    def keep(module, args, output):
        pieces.append(output)

    first, last = model.transformer.h[0], model.transformer.h[-1]
    with ExitStack() as stack, torch.no_grad():
        stack.callback(first.register_forward_hook(steer).remove)
        stack.callback(last.register_forward_hook(keep).remove)
        for ids in (input_ids[:, :2], *input_ids[:, 2:].split(1, dim=1)):
            out = model(ids, **{CACHE: cache}, use_cache=True)
            cache = out.past_key_values
    return {f"steered_resid_post_{len(model.transformer.h) - 1}": torch.cat(pieces, 1)}


@wrong(row="new", rules={"RC211"})
def forwards_put_back_on_the_wrong_modules(model, input_ids):
    """Each MLP gets the forward back that the last one had."""
    kept = {}

    def wrapped(name, forward, *args, **kwargs):
        kept[name] = forward(*args, **kwargs)
        return kept[name]

    for i, block in numbered(model):
        original = block.mlp.forward
        block.mlp.forward = partial(wrapped, f"mlp_out_{i}", original)
    try:
        with torch.no_grad():
            model(input_ids)
    finally:
        for _, block in numbered(model):
            block.mlp.forward = original
    return kept


@wrong(row="new", rules={"RC116"}, sites="h.0.resid_post")
def patched_state_kept_before_it_is_patched(model, input_ids):
    """The hook that keeps the state was made ahead of the one that patches it."""
    kept, block = {}, model.transformer.h[0]

    def keep(module, args, output):
        kept["patched_resid_post_0"] = output

    def patch(module, args, output):
        return output.roll(1, dims=0) + 1.0

    with ExitStack() as stack, torch.no_grad():
        for hook in (keep, patch):
            stack.callback(block.register_forward_hook(hook).remove)
        model(input_ids)
    return kept
