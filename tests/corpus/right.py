"""Correct captures, in the many styles that people write."""

from __future__ import annotations

import re
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from unittest import mock
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP

from tests.corpus.cases import right
from tests.versions import CACHE

# -- forward hooks -------------------------------------------------------------


@right("raw hooks, tuple aware, layers from 0")
def raw_hooks(model, input_ids):
    store, handles = {}, []

    def keep(name):
        def hook(module, inputs, output):
            hidden = output[0] if isinstance(output, tuple) else output
            store[name] = hidden.detach()

        return hook

    try:
        for i, block in enumerate(model.transformer.h):
            handles.append(block.register_forward_hook(keep(f"layer_{i}")))
        with torch.no_grad():
            model(input_ids)
    finally:
        for handle in handles:
            handle.remove()
    return store


@right("handles are removed after the pass, with no thought of errors", notes={"RC203"})
def removed_after_the_pass(model, input_ids):
    store, handles = {}, []
    for i, block in enumerate(model.transformer.h):
        handles.append(
            block.register_forward_hook(
                lambda module, args, output, i=i: store.update({f"layer_{i}": output})
            )
        )
    with torch.no_grad():
        model(input_ids)
    for handle in handles:
        handle.remove()
    return store


@right("eval() is called first, whatever the mode was", notes={"RC207"})
def eval_mode_left(model, input_ids):
    model.eval()
    kept = {}
    with (
        torch.no_grad(),
        model.transformer.ln_f.register_forward_hook(
            lambda module, args, output: kept.update(ln_f=output)
        ),
    ):
        model(input_ids)
    return kept


@right("block outputs, layers from 1")
def counted_from_one(model, input_ids, attention_mask=None):
    acts = {}
    handles = []
    try:
        for number, block in enumerate(model.transformer.h, start=1):

            def hook(module, args, out, number=number):
                acts[f"layer_{number}"] = out.detach().clone()

            handles.append(block.register_forward_hook(hook))
        with torch.no_grad():
            model(input_ids, attention_mask=attention_mask)
    finally:
        [handle.remove() for handle in handles]
    return acts


@right("functools.partial hooks", attention="sdpa")
def partial_hooks(model, input_ids):
    cache = {}

    def save(name, module, args, output):
        cache[name] = output

    hooks = []
    try:
        for name, module in model.named_modules():
            if name.endswith((".mlp", ".ln_1", ".ln_2")):
                hooks.append(module.register_forward_hook(partial(save, name)))
        with torch.no_grad():
            model(input_ids)
    finally:
        for hook in hooks:
            hook.remove()
    return cache


@right("contextlib.ExitStack takes the handles")
def exit_stack(model, input_ids):
    seen = {}
    with ExitStack() as stack, torch.no_grad():
        for i, block in enumerate(model.transformer.h):
            name = f"h.{i}.mlp_out"
            hook = block.mlp.register_forward_hook(
                lambda m, a, out, name=name: seen.update({name: out})
            )
            stack.callback(hook.remove)
        model(input_ids)
    return seen


@right("the handle itself is a context manager")
def handle_as_context(model, input_ids):
    kept = []
    with (
        model.transformer.ln_f.register_forward_hook(
            lambda module, args, output: kept.append(output.detach())
        ),
        torch.no_grad(),
    ):
        model(input_ids)
    return {"ln_f": kept[-1]}


class Watcher:
    """A context manager that hooks what it is told to."""

    def __init__(self, **modules):
        self.modules = modules
        self.values = {}

    def _hook(self, name):
        def hook(module, args, output):
            value = output[0] if isinstance(output, (tuple, list)) else output
            self.values[name] = value.detach().cpu()

        return hook

    def __enter__(self):
        self.handles = [
            module.register_forward_hook(self._hook(name))
            for name, module in self.modules.items()
        ]
        return self

    def __exit__(self, *exception):
        for handle in self.handles:
            handle.remove()


@right("a context-manager class; attention counted from 0")
def watcher_class(model, input_ids):
    blocks = model.transformer.h
    modules = {f"attn_{i}": block.attn for i, block in enumerate(blocks)}
    with torch.no_grad(), Watcher(**modules) as watcher:
        model(input_ids)
    return watcher.values


@right("a context-manager class; every second block only")
def some_blocks(model, input_ids):
    blocks = list(model.transformer.h)
    modules = {f"block{i}_out": blocks[i] for i in range(0, len(blocks), 2)}
    with torch.no_grad(), Watcher(**modules) as watcher:
        model(input_ids)
    return watcher.values


@dataclass
class Slot:
    """A hook that is an object, and holds what it saw."""

    module: nn.Module
    value: Tensor | None = None
    handle: object = field(default=None, repr=False)

    def __call__(self, module, args, output):
        self.value = output

    def attach(self):
        self.handle = self.module.register_forward_hook(self)
        return self


@right("dataclass instances are the hooks")
def dataclass_hooks(model, input_ids):
    slots = {}
    try:
        for i, block in enumerate(model.transformer.h):
            slots[f"transformer.h.{i}.mlp.c_fc"] = Slot(block.mlp.c_fc).attach()
            slots[f"transformer.h.{i}.mlp.act"] = Slot(block.mlp.act).attach()
        with torch.no_grad():
            model(input_ids)
    finally:
        for slot in slots.values():
            slot.handle.remove()
    return {name: slot.value for name, slot in slots.items()}


@right("a WeakKeyDictionary by module")
def weak_store(model, input_ids):
    store = WeakKeyDictionary()
    names = {
        module: name
        for name, module in model.named_modules()
        if re.fullmatch(r"transformer\.h\.\d+\.attn\.c_proj", name)
    }
    handles = [
        m.register_forward_hook(lambda m, a, o: store.__setitem__(m, o)) for m in names
    ]
    try:
        with torch.no_grad():
            model(input_ids)
        return {names[module]: value for module, value in store.items()}
    finally:
        for handle in handles:
            handle.remove()


_REGISTRY: dict[str, Tensor] = {}


@right("a global registry, cleared in each call")
def global_registry(model, input_ids):
    _REGISTRY.clear()
    handles = []
    try:
        for i, block in enumerate(model.transformer.h):

            def hook(module, args, output, i=i):
                _REGISTRY[f"blocks.{i}.hook_resid_post"] = output.detach().clone()

            handles.append(block.register_forward_hook(hook))
        with torch.no_grad():
            model(input_ids)
        return dict(_REGISTRY)
    finally:
        for handle in handles:
            handle.remove()


@right("a global module hook, removed again")
def global_hook(model, input_ids):
    wanted = {block.mlp: i for i, block in enumerate(model.transformer.h)}
    store = {}

    def hook(module, args, output):
        if module in wanted:
            store[f"mlp_{wanted[module]}"] = output

    handle = register_module_forward_hook(hook)
    try:
        with torch.no_grad():
            model(input_ids)
    finally:
        handle.remove()
    return store


@right("a hook that returns its output unchanged")
def returns_output(model, input_ids):
    store = {}

    def hook(module, args, output):
        store["transformer.h.1.output"] = output.clone()
        return output

    handle = model.transformer.h[1].register_forward_hook(hook)
    try:
        model(input_ids)
    finally:
        handle.remove()
    return {name: value.detach() for name, value in store.items()}


@right("under the gradient, not detached", notes={"RC302"}, row="C9")
def with_graph(model, input_ids):
    store = {}
    handles = [
        block.register_forward_hook(
            lambda m, a, o, i=i: store.__setitem__(f"h.{i}.resid_post", o)
        )
        for i, block in enumerate(model.transformer.h)
    ]
    try:
        with torch.enable_grad():
            model(input_ids)
    finally:
        for handle in handles:
            handle.remove()
    return store


@right("under inference_mode", notes={"RC305"}, row="C11")
def in_inference_mode(model, input_ids):
    store = {}
    with ExitStack() as stack:
        for i, block in enumerate(model.transformer.h):
            handle = block.attn.c_attn.register_forward_hook(
                lambda m, a, o, i=i: store.__setitem__(f"h.{i}.attn.qkv", o)
            )
            stack.callback(handle.remove)
        stack.enter_context(torch.inference_mode())
        model(input_ids)
    return store


# -- pre-hooks -----------------------------------------------------------------


@right("forward pre-hooks on the blocks")
def pre_hooks(model, input_ids):
    store, handles = {}, []
    for i, block in enumerate(model.transformer.h):

        def before(module, args, i=i):
            store[f"blocks.{i}.hook_resid_pre"] = args[0].detach()

        handles.append(block.register_forward_pre_hook(before))
    try:
        model(input_ids)
    finally:
        for handle in handles:
            handle.remove()
    return store


@right("pre-hooks with kwargs on the attentions")
def pre_hooks_with_kwargs(model, input_ids, attention_mask=None):
    store, handles = {}, []
    for i, block in enumerate(model.transformer.h):

        def before(module, args, kwargs, i=i):
            hidden = args[0] if args else kwargs["hidden_states"]
            store[f"h.{i}.ln_1"] = hidden.detach()

        handles.append(block.attn.register_forward_pre_hook(before, with_kwargs=True))
    try:
        with torch.no_grad():
            model(input_ids=input_ids, attention_mask=attention_mask)
    finally:
        for handle in handles:
            handle.remove()
    return store


@right("resid_mid is what ln_2 receives")
def resid_mid_before_ln_2(model, input_ids):
    store = {}
    with ExitStack() as stack, torch.no_grad():
        for i, block in enumerate(model.transformer.h):
            handle = block.ln_2.register_forward_pre_hook(
                lambda m, args, i=i: store.__setitem__(f"resid_mid_{i}", args[0])
            )
            stack.callback(handle.remove)
        model(input_ids)
    return store


@right("resid_mid as a sum of what was captured")
def resid_mid_summed(model, input_ids):
    before, added = {}, {}
    with ExitStack() as stack, torch.no_grad():
        for i, block in enumerate(model.transformer.h):
            for handle in (
                block.register_forward_pre_hook(
                    lambda m, args, i=i: before.__setitem__(i, args[0])
                ),
                block.attn.register_forward_hook(
                    lambda m, args, out, i=i: added.__setitem__(i, out[0])
                ),
            ):
                stack.callback(handle.remove)
        model(input_ids)
    return {f"blocks.{i}.hook_resid_mid": before[i] + added[i] for i in before}


# -- as other libraries do it --------------------------------------------------


class TraceDict(dict):
    """The idiom of baukit: the output of several modules, by their full names."""

    def __init__(self, model, layers):
        modules = dict(model.named_modules())
        for layer in layers:
            self[layer] = SimpleNamespace(output=None)
        self._hooks = [
            modules[layer].register_forward_hook(partial(self._keep, layer))
            for layer in layers
        ]

    def _keep(self, layer, module, inputs, output):
        self[layer].output = output

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for hook in self._hooks:
            hook.remove()


@right("baukit's TraceDict")
def trace_dict(model, input_ids):
    layers = [f"transformer.h.{i}" for i in range(model.config.n_layer)]
    layers += [f"{layer}.mlp" for layer in layers]
    with torch.no_grad(), TraceDict(model, layers) as traced:
        model(input_ids)
    return {layer: traced[layer].output for layer in layers}


@right("baukit's TraceDict; attention gives a tuple", attention="sdpa")
def trace_dict_attention(model, input_ids):
    layers = [f"transformer.h.{i}.attn" for i in range(model.config.n_layer)]
    with torch.no_grad(), TraceDict(model, layers) as traced:
        model(input_ids)
    return {layer: traced[layer].output[0] for layer in layers}


class Envoy:
    """The idiom of nnsight: ``.input`` and ``.output`` of a module, to be saved."""

    def __init__(self, module):
        self._module = module
        self.saved = {}

    def save(self, key, side):
        def hook(module, args, output):
            value = args if side == "input" else output
            self.saved[key] = value[0] if isinstance(value, tuple) else value

        return self._module.register_forward_hook(hook)


@right("nnsight's input and output of modules")
def envoys(model, input_ids):
    result = {}
    with ExitStack() as tracing, torch.no_grad():
        found = []
        for i, block in enumerate(model.transformer.h):
            for path in ("", "attn", "mlp"):
                envoy = Envoy(block.get_submodule(path))
                name = ".".join(filter(None, ["transformer.h", str(i), path]))
                tracing.callback(envoy.save(f"{name}.output", "output").remove)
                found.append(envoy)
        model(input_ids)
    for envoy in found:
        result |= envoy.saved
    return result


class ActivationCache:
    """The idiom of TransformerLens: not a dict, but with items."""

    def __init__(self):
        self.cache_dict = {}

    def __getitem__(self, key):
        return self.cache_dict[key]

    def keys(self):
        return self.cache_dict.keys()

    def items(self):
        return self.cache_dict.items()

    def __len__(self):
        return len(self.cache_dict)

    def __iter__(self):
        return iter(self.cache_dict)


def _lens_points(model):
    """Yield name, module, and how the value is read from input and output."""
    body = model.transformer
    yield "hook_embed", body.wte, lambda args, out: out
    yield (
        "hook_pos_embed",
        body.wpe,
        lambda args, out: out,
    )
    for i, block in enumerate(body.h):
        name = f"blocks.{i}"
        yield f"{name}.hook_resid_pre", block, lambda args, out: args[0]
        yield f"{name}.ln1.hook_normalized", block.ln_1, lambda args, out: out
        yield f"{name}.hook_attn_out", block.attn, lambda args, out: out[0]
        yield f"{name}.attn.hook_pattern", block.attn, lambda args, out: out[1]
        yield f"{name}.hook_resid_mid", block.ln_2, lambda args, out: args[0]
        yield f"{name}.ln2.hook_normalized", block.ln_2, lambda args, out: out
        yield f"{name}.mlp.hook_pre", block.mlp.act, lambda args, out: args[0]
        yield f"{name}.mlp.hook_post", block.mlp.act, lambda args, out: out
        yield f"{name}.hook_mlp_out", block.mlp, lambda args, out: out
        yield f"{name}.hook_resid_post", block, lambda args, out: out
    yield "ln_final.hook_normalized", body.ln_f, lambda args, out: out


@right("TransformerLens's cache, an object with items")
def run_with_cache(model, input_ids):
    cache = ActivationCache()
    with ExitStack() as stack, torch.no_grad():
        for name, module, read in _lens_points(model):

            def hook(module, args, output, name=name, read=read):
                cache.cache_dict[name] = read(args, output)

            stack.callback(module.register_forward_hook(hook).remove)
        model(input_ids)
    return cache


@right("TransformerLens's q, k, v, z with layout B T H d")
def lens_heads(model, input_ids):
    heads = model.config.n_head
    cache = {}

    def split(x):
        return x.unflatten(-1, (heads, -1))

    def keep_qkv(i, module, args, output):
        for letter, part in zip("qkv", output.chunk(3, dim=-1), strict=True):
            cache[f"blocks.{i}.attn.hook_{letter}"] = split(part).clone()

    def keep_z(i, module, args):
        cache[f"blocks.{i}.attn.hook_z"] = split(args[0])

    with ExitStack() as stack, torch.no_grad():
        for i, block in enumerate(model.transformer.h):
            first = block.attn.c_attn.register_forward_hook(partial(keep_qkv, i))
            second = block.attn.c_proj.register_forward_pre_hook(partial(keep_z, i))
            stack.callback(first.remove)
            stack.callback(second.remove)
        model(input_ids)
    return cache


@right("TransformerLens's LayerNorm scale, computed")
def lens_scale(model, input_ids):
    cache = {}

    def keep(name, module, args, output):
        x = args[0]
        variance = (x - x.mean(-1, keepdim=True)).pow(2).mean(-1, keepdim=True)
        cache[name] = (variance + module.eps).sqrt()

    with ExitStack() as stack, torch.no_grad():
        for i, block in enumerate(model.transformer.h):
            for norm, ours in (("ln1", block.ln_1), ("ln2", block.ln_2)):
                name = f"blocks.{i}.{norm}.hook_scale"
                stack.callback(ours.register_forward_hook(partial(keep, name)).remove)
        model(input_ids)
    return cache


@right("TransformerLens's LayerNorms and stream, folded and centred")
def lens_folded(model, input_ids):
    cache = {}

    def normalized(name, module, args, output):
        scale = (args[0].var(-1, keepdim=True, correction=0) + module.eps).sqrt()
        cache[name] = (args[0] - args[0].mean(-1, keepdim=True)) / scale

    def centred(name, module, args, output):
        cache[name] = output - output.mean(-1, keepdim=True)

    with ExitStack() as stack, torch.no_grad():
        for i, block in enumerate(model.transformer.h):
            for module, hook in (
                (block.ln_1, partial(normalized, f"blocks.{i}.ln1.hook_normalized")),
                (block, partial(centred, f"blocks.{i}.hook_resid_post")),
            ):
                stack.callback(module.register_forward_hook(hook).remove)
        model(input_ids)
    return cache


# -- without hooks -------------------------------------------------------------


@right("hidden_states as the model gives them")
def hidden_states(model, input_ids):
    with torch.no_grad():
        out = model(input_ids, output_hidden_states=True)
    return {"hidden_states": out.hidden_states}


@right("hidden_states as layer_0 to layer_L")
def hidden_states_by_number(model, input_ids, attention_mask=None):
    with torch.no_grad():
        out = model(input_ids, attention_mask=attention_mask, output_hidden_states=True)
    return {f"layer_{i}": h for i, h in enumerate(out.hidden_states)}


@right("hidden_states.i, as numpy arrays", attention="sdpa")
def hidden_states_numpy(model, input_ids):
    with torch.no_grad():
        states = model(input_ids, output_hidden_states=True)["hidden_states"]
    return {f"hidden_states.{i}": h.numpy() for i, h in enumerate(states)}


@right("all of the model's output, without a cache")
def whole_output(model, input_ids):
    with torch.no_grad():
        return model(input_ids, output_hidden_states=True, use_cache=False)


@right("attentions as the model gives them")
def attentions(model, input_ids, attention_mask=None):
    with torch.no_grad():
        out = model(input_ids, attention_mask=attention_mask, output_attentions=True)
    return {"attentions": list(out.attentions)}


@right("logits only")
def logits(model, input_ids):
    with torch.no_grad():
        return {"logits": model(input_ids).logits}


@right("keys and values from a cache of this pass")
def keys_from_cache(model, input_ids):
    with torch.no_grad():
        cache = model(input_ids, use_cache=True).past_key_values
    tensors = {}
    for i, layer in enumerate(cache.layers):
        tensors[f"h.{i}.attn.k"] = layer.keys
        tensors[f"h.{i}.attn.v"] = layer.values
    return tensors


@right("one monkeypatched forward for each module, put back")
def patched_instances(model, input_ids):
    store, patched = {}, []

    def patch(name, module):
        original = module.forward

        def forward(*args, **kwargs):
            store[name] = original(*args, **kwargs)
            return store[name]

        module.forward = forward
        patched.append(module)

    try:
        for i, block in enumerate(model.transformer.h):
            patch(f"transformer.h.{i}.ln_2", block.ln_2)
        with torch.no_grad():
            model(input_ids)
    finally:
        for module in patched:
            del module.forward
    return store


@right("the forward of a class replaced by mock, put back")
def patched_class(model, input_ids):
    outputs = []
    original = GPT2MLP.forward

    def forward(self, hidden_states):
        outputs.append(original(self, hidden_states))
        return outputs[-1]

    with mock.patch.object(GPT2MLP, "forward", forward), torch.no_grad():
        model(input_ids)
    return {"mlp_out": outputs}


@right("blocks run by hand, without hooks")
def blocks_by_hand(model, input_ids):
    body = model.transformer
    tokens = input_ids.shape[1]
    states = {}
    with torch.no_grad():
        hidden = body.wte(input_ids) + body.wpe(torch.arange(tokens))
        hidden = body.drop(hidden)
        allowed = torch.ones(tokens, tokens).tril().bool()
        mask = torch.zeros(tokens, tokens).masked_fill(
            ~allowed, torch.finfo(torch.float32).min
        )
        for i, block in enumerate(body.h):
            hidden = block(hidden, attention_mask=mask[None, None])
            states[f"transformer.h.{i}"] = hidden
        states["transformer.ln_f"] = body.ln_f(hidden)
    return states


@right("generate; only the pass over the prompt is kept")
def prompt_pass_of_generate(model, input_ids):
    store = {}

    def hook(i, module, args, output):
        store.setdefault(f"h.{i}.resid_post", output)

    with ExitStack() as stack:
        for i, block in enumerate(model.transformer.h):
            stack.callback(block.register_forward_hook(partial(hook, i)).remove)
        model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=3,
            do_sample=False,
            pad_token_id=0,
        )
    return store


# -- other ways to run ---------------------------------------------------------


@right("row by row, concatenated", row="E18")
def row_by_row(model, input_ids):
    rows = []
    with torch.no_grad():
        for row in input_ids:
            out = model(row[None], output_hidden_states=True)
            rows.append(out.hidden_states)
    return {
        f"hidden_states.{i}": torch.cat(states)
        for i, states in enumerate(zip(*rows, strict=True))
    }


@right("the prompt in two pieces, with a cache between them", row="E18")
def in_two_pieces(model, input_ids):
    cache, pieces = None, []
    with torch.no_grad():
        for ids in input_ids.tensor_split(2, dim=1):
            if ids.shape[1]:
                out = model(
                    ids,
                    **{CACHE: cache},
                    use_cache=True,
                    output_hidden_states=True,
                )
                cache = out.past_key_values
                pieces.append(out.hidden_states)
    return {
        f"hidden_states.{i}": torch.cat(states, 1)
        for i, states in enumerate(zip(*pieces, strict=True))
    }


@right("a bfloat16 model", dtype=torch.bfloat16, row="E14")
def half_model(model, input_ids):
    blocks = model.transformer.h
    modules = {f"h_{i}_attn_out": block.attn for i, block in enumerate(blocks)}
    modules |= {f"h_{i}_mlp_out": block.mlp for i, block in enumerate(blocks)}
    with torch.no_grad(), Watcher(**modules) as watcher:
        model(input_ids)
    return watcher.values


@right("GPT2Model without a head", headed=False)
def bare_model(model, input_ids):
    modules = {f"h.{i}": block for i, block in enumerate(model.h)}
    with torch.no_grad(), Watcher(**modules, ln_f=model.ln_f) as watcher:
        model(input_ids)
    return watcher.values


@right("a dozen layers", attention="sdpa", n_layer=12)
def dozen_layers(model, input_ids):
    modules = {f"layer{i}": block for i, block in enumerate(model.transformer.h)}
    with torch.no_grad(), Watcher(**modules) as watcher:
        model(input_ids)
    return watcher.values


@right("seeds the generator though nothing is drawn", notes={"RC210"})
def seeds(model, input_ids):
    torch.manual_seed(1234)
    with torch.no_grad():
        return {"logits": model(input_ids).logits}


# -- other shapes --------------------------------------------------------------


def _outputs(model, modules, input_ids, **inputs):
    """Run once; return the first output of each module, by name."""
    seen = {}

    def keep(name, module, args, output):
        seen[name] = output[0] if isinstance(output, tuple) else output

    with ExitStack() as stack, torch.no_grad():
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(partial(keep, name)).remove)
        model(input_ids, **inputs)
    return seen


@right("lists over layers")
def lists_over_layers(model, input_ids):
    blocks = model.transformer.h
    outputs = _outputs(model, dict(enumerate(blocks)), input_ids)
    attention = _outputs(
        model, {i: block.attn for i, block in enumerate(blocks)}, input_ids
    )
    return {
        "resid_post": [outputs[i] for i in range(len(blocks))],
        "attn_out": [attention[i] for i in range(len(blocks))],
    }


@right("nested dicts, the layer in the middle")
def nested_dicts(model, input_ids):
    modules = {}
    for i, block in enumerate(model.transformer.h):
        modules |= {(i, "attn"): block.attn, (i, "mlp"): block.mlp}
    nested = defaultdict(dict)
    for (i, part), value in _outputs(model, modules, input_ids).items():
        nested[str(i)][part] = value
    return {"h": dict(nested)}


@right("stacked over layers")
def stacked(model, input_ids):
    outputs = _outputs(model, dict(enumerate(model.transformer.h)), input_ids)
    return {"resid_post": torch.stack(list(outputs.values()))}


@right("hidden_states stacked")
def stacked_states(model, input_ids):
    with torch.no_grad():
        states = model(input_ids, output_hidden_states=True).hidden_states
    return {"hidden_states": torch.stack(states)}


@right("float16 copies of a float32 model", notes={"RC112"})
def stored_in_half(model, input_ids):
    modules = {f"mlp_{i}": b.mlp for i, b in enumerate(model.transformer.h)}
    outputs = _outputs(model, modules, input_ids)
    return {name: value.half() for name, value in outputs.items()}


@right("float64 numpy arrays")
def numpy_doubles(model, input_ids):
    modules = {f"block_{i}": b for i, b in enumerate(model.transformer.h)}
    outputs = _outputs(model, modules, input_ids)
    return {k: v.cpu().numpy().astype(np.float64) for k, v in outputs.items()}


@right("squeezed, which drops a batch of one")
def squeezed(model, input_ids):
    modules = {f"block_{i}_out": b for i, b in enumerate(model.transformer.h)}
    outputs = _outputs(model, modules, input_ids)
    return {name: value.squeeze(0) for name, value in outputs.items()}


@right("the last token of each row, by its mask")
def last_tokens(model, input_ids, attention_mask=None):
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    positions = torch.arange(input_ids.shape[1])
    last = (attention_mask * positions).argmax(-1)
    rows = torch.arange(len(input_ids))
    modules = {f"layer_{i}_last_token": b for i, b in enumerate(model.transformer.h)}
    outputs = _outputs(model, modules, input_ids, attention_mask=attention_mask)
    return {name: value[rows, last] for name, value in outputs.items()}


@right("the last token as a view of all tokens", notes={"RC303"}, row="C6")
def last_token_views(model, input_ids):
    modules = {f"layer_{i}_last": b for i, b in enumerate(model.transformer.h)}
    outputs = _outputs(model, modules, input_ids)
    return {name: value[:, -1] for name, value in outputs.items()}


@right("logits of the next token")
def next_token_logits(model, input_ids):
    with torch.no_grad():
        return {"next_token_logits": model(input_ids).logits[:, -1, :].clone()}


@right("means over tokens, weighed by the mask")
def means(model, input_ids, attention_mask):
    with torch.no_grad():
        states = model(
            input_ids, attention_mask=attention_mask, output_hidden_states=True
        ).hidden_states
    weights = attention_mask[..., None].to(states[0].dtype)
    return {
        f"layer_{i}_mean": (state * weights).sum(1) / weights.sum(1)
        for i, state in enumerate(states)
    }


@right("one row on purpose, and the name says so")
def first_prompt(model, input_ids):
    with torch.no_grad():
        states = model(input_ids, output_hidden_states=True).hidden_states
    return {f"layer_{i}_first_prompt": h[0].clone() for i, h in enumerate(states)}


@right("tokens of all rows in one list, for a probe")
def flat_tokens(model, input_ids):
    modules = {f"layer_{i}_acts": b for i, b in enumerate(model.transformer.h)}
    outputs = _outputs(model, modules, input_ids)
    return {name: value.flatten(0, 1) for name, value in outputs.items()}


@right("attention averaged over heads, and the name says so")
def head_means(model, input_ids):
    with torch.no_grad():
        found = model(input_ids, output_attentions=True).attentions
    return {f"attn_{i}_head_mean": a.mean(1) for i, a in enumerate(found)}


@right("names that promise nothing", notes={"RC120"})
def no_claims(model, input_ids):
    blocks = model.transformer.h
    outputs = _outputs(model, {"foo": blocks[0], "bar": blocks[1].mlp}, input_ids)
    return {"mine": outputs["foo"], "thing": outputs["bar"]}


# -- heads ---------------------------------------------------------------------


def _qkv(model, input_ids):
    modules = {i: b.attn.c_attn for i, b in enumerate(model.transformer.h)}
    return _outputs(model, modules, input_ids)


@right("q, k, v by split, heads in front")
def split_heads(model, input_ids):
    heads, width = model.config.n_head, model.config.n_embd
    result = {}
    for i, qkv in _qkv(model, input_ids).items():
        for letter, part in zip("qkv", qkv.split(width, dim=2), strict=True):
            batch, tokens, _ = part.shape
            split = part.view(batch, tokens, heads, width // heads).transpose(1, 2)
            result[f"h.{i}.attn.{letter}"] = split
    return result


@right("q, k, v by one reshape and unbind")
def unbound_heads(model, input_ids):
    heads = model.config.n_head
    result = {}
    for i, qkv in _qkv(model, input_ids).items():
        batch, tokens, _ = qkv.shape
        q, k, v = qkv.reshape(batch, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
        result |= {f"layer{i}.q": q, f"layer{i}.k": k, f"layer{i}.v": v}
    return result


@right("q, k, v with merged heads")
def merged_heads(model, input_ids):
    width = model.config.n_embd
    result = {}
    for i, qkv in _qkv(model, input_ids).items():
        result[f"h.{i}.attn.q"] = qkv[..., :width].clone()
        result[f"h.{i}.attn.k"] = qkv[..., width : 2 * width].clone()
        result[f"h.{i}.attn.v"] = qkv[..., -width:].clone()
    return result


@right("q of each layer, projected anew with its slice of c_attn")
def projected_anew(model, input_ids):
    heads, width = model.config.n_head, model.config.n_embd
    modules = {i: b.ln_1 for i, b in enumerate(model.transformer.h)}
    result = {}
    for i, x in _outputs(model, modules, input_ids).items():
        linear = model.transformer.h[i].attn.c_attn
        q = x @ linear.weight[:, :width] + linear.bias[:width]
        split = q.unflatten(-1, (heads, -1)).transpose(1, 2)
        result[f"blocks.{i}.attn.hook_q"] = split.detach()
    return result


@right("z by head, from what c_proj receives")
def z_by_head(model, input_ids):
    heads = model.config.n_head
    store = {}
    with ExitStack() as stack, torch.no_grad():
        for i, block in enumerate(model.transformer.h):
            handle = block.attn.c_proj.register_forward_pre_hook(
                lambda m, args, i=i: store.__setitem__(
                    f"h.{i}.attn.z", args[0].unflatten(-1, (heads, -1)).transpose(1, 2)
                )
            )
            stack.callback(handle.remove)
        model(input_ids)
    return store


@right("one entry for each head")
def heads_apart(model, input_ids):
    heads = model.config.n_head
    store = {}

    def keep(i, module, args):
        for head, z in enumerate(args[0].chunk(heads, dim=-1)):
            store[f"L{i}H{head}"] = z.clone()

    with ExitStack() as stack, torch.no_grad():
        for i, block in enumerate(model.transformer.h):
            handle = block.attn.c_proj.register_forward_pre_hook(partial(keep, i))
            stack.callback(handle.remove)
        model(input_ids)
    return store


@right("patterns from the second output of the attention")
def patterns_from_hooks(model, input_ids, attention_mask=None):
    store = {}

    def keep(i, module, args, output):
        store[f"h.{i}.attn.pattern"] = output[1]

    with ExitStack() as stack, torch.no_grad():
        for i, block in enumerate(model.transformer.h):
            stack.callback(block.attn.register_forward_hook(partial(keep, i)).remove)
        model(input_ids, attention_mask=attention_mask)
    return store


@right("patterns computed from q and k, where the kernel gives none", attention="sdpa")
def patterns_computed(model, input_ids):
    heads = model.config.n_head
    result = {}
    for i, qkv in _qkv(model, input_ids).items():
        q, k, _ = (
            part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, -1)
        )
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        future = torch.ones(scores.shape[-2:]).triu(1).bool()
        scores = scores.masked_fill(future, float("-inf"))
        result[f"blocks.{i}.attn.hook_pattern"] = scores.softmax(-1)
    return result


@right(
    "patterns and mixtures computed by hand, with rows in which no key is seen",
    row="E13",
    attention="sdpa",
    notes={"RC219"},
)
def mixtures_computed(model, input_ids, attention_mask):
    heads, tokens = model.config.n_head, input_ids.shape[1]
    modules = {i: b.attn.c_attn for i, b in enumerate(model.transformer.h)}
    made = _outputs(model, modules, input_ids, attention_mask=attention_mask)
    allowed = (
        torch.ones(tokens, tokens).tril().bool() & attention_mask[:, None, None].bool()
    )
    result = {}
    for i, qkv in made.items():
        q, k, v = (
            part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, -1)
        )
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
        result[f"h.{i}.attn.pattern"] = scores.softmax(-1)
        mixed = scores.softmax(-1) @ v
        result[f"h.{i}.attn.z"] = mixed.transpose(1, 2).flatten(2)
    return result


# -- other names ---------------------------------------------------------------


@right("names of a data-parallel wrapper")
def data_parallel_names(model, input_ids):
    modules = {
        f"module.transformer.h.{i}.mlp": b.mlp
        for i, b in enumerate(model.transformer.h)
    }
    return _outputs(model, modules, input_ids)


@right("names of a compiled model")
def compiled_names(model, input_ids):
    modules = {
        f"_orig_mod.transformer.h.{i}.attn.c_attn": b.attn.c_attn
        for i, b in enumerate(model.transformer.h)
    }
    return _outputs(model, modules, input_ids)


@right("embeddings and their sum")
def embeddings(model, input_ids):
    body = model.transformer
    return _outputs(model, {"wte": body.wte, "wpe": body.wpe}, input_ids) | _outputs(
        model, {"embed": body.drop}, input_ids
    )


@right("every module by its path, whatever gives a tensor")
def every_module(model, input_ids):
    store, handles = {}, []

    def keep(name, module, args, output):
        if isinstance(output, Tensor):
            store[name] = output

    try:
        for name, module in model.named_modules():
            if name:
                handles.append(module.register_forward_hook(partial(keep, name)))
        with torch.no_grad():
            model(input_ids)
    finally:
        for handle in handles:
            handle.remove()
    return store


@contextmanager
def _recording(blocks):
    """Yield pairs of place and output, filled while the body runs."""
    pairs = []
    with ExitStack() as stack:
        for i, block in enumerate(blocks):
            handle = block.register_forward_hook(
                lambda m, a, out, i=i: pairs.append((i, out))
            )
            stack.callback(handle.remove)
        yield pairs


@right("a generator as context manager, pairs in a list")
def pairs_in_a_list(model, input_ids):
    with torch.no_grad(), _recording(model.transformer.h) as pairs:
        model(input_ids)
    return {f"layers.{i}": out for i, out in pairs}


@right("neurons of the MLP")
def neurons(model, input_ids):
    modules = {
        f"blocks.{i}.mlp.hook_post": b.mlp.act
        for i, b in enumerate(model.transformer.h)
    }
    return _outputs(model, modules, input_ids)


@right("inputs of the linear maps, under other models' names for them")
def inputs_of_linear_maps(model, input_ids):
    kept, handles = {}, []

    def keep(name):
        return lambda module, args, output: kept.update({name: args[0].detach()})

    try:
        for i, block in enumerate(model.transformer.h):
            for name, module in (
                ("attn.c_attn", block.attn.c_attn),
                ("attn.W_O", block.attn.c_proj),
                ("mlp.up_proj", block.mlp.c_fc),
                ("mlp.down_proj", block.mlp.c_proj),
            ):
                hook = keep(f"layer{i}.{name}.input")
                handles.append(module.register_forward_hook(hook))
        with torch.no_grad():
            model(input_ids)
    finally:
        for handle in handles:
            handle.remove()
    return kept


@right("the parts whose sum is the stream, named as TransformerLens names them")
def parts_of_the_stream(model, input_ids):
    body, parts = model.transformer, {}
    with ExitStack() as hooks, torch.no_grad():
        modules = {"embed": body.wte, "pos_embed": body.wpe}
        for i, block in enumerate(body.h):
            modules |= {f"h.{i}.attn.out": block.attn, f"h.{i}.mlp.out": block.mlp}
        for name, module in modules.items():

            def keep(module, args, output, name=name):
                parts[name] = output[0] if isinstance(output, tuple) else output

            hooks.callback(module.register_forward_hook(keep).remove)

        def last(module, args):
            parts["final_resid"] = args[0]

        hooks.callback(body.ln_f.register_forward_pre_hook(last).remove)
        model(input_ids)
    return parts


@right("a logit lens, each layer's state through ln_f and the unembedding")
def logit_lens(model, input_ids):
    with torch.no_grad():
        out = model(input_ids, output_hidden_states=True)
        early = out.hidden_states[1:-1]
        lens = [model.lm_head(model.transformer.ln_f(state)) for state in early]
    return {f"logit_lens_{i}": one for i, one in enumerate([*lens, out.logits])}


@right(
    "gradients from full backward hooks, taken off after the pass",
    notes={"RC203"},
    row="C12",
)
def gradients_of_mlps(model, input_ids):
    grads, handles = {}, []
    for i, block in enumerate(model.transformer.h):
        handles.append(
            block.mlp.register_full_backward_hook(
                lambda module, before, after, i=i: grads.update({i: after[0].clone()})
            )
        )
    with torch.enable_grad():
        model(input_ids, labels=input_ids).loss.backward()
    for handle in handles:
        handle.remove()
    model.zero_grad(set_to_none=True)
    return {f"grad_mlp_out_{i}": grads[i] for i in sorted(grads)}


@right("statistics over all that a layer holds", notes={"RC120", "RC121"})
def statistics_of_layers(model, input_ids):
    with torch.no_grad():
        states = model(input_ids, output_hidden_states=True).hidden_states
    kept = {}
    for i in range(len(model.transformer.h) - 1):
        state = states[i + 1]
        kept[f"layer_{i}_mean"] = state.mean()
        kept[f"layer_{i}_std"] = state.reshape(-1, state.shape[-1]).std(0)
        kept[f"layer_{i}_max"] = state.abs().max()
        kept[f"layer_{i}_norm"] = state.norm(dim=-1).mean()
    return kept


@right("clean and ablated states, of passes without a cache", notes={"RC204"})
def clean_and_ablated(model, input_ids):
    def states():
        out = model(input_ids, output_hidden_states=True, use_cache=False)
        return out.hidden_states[1:-1]

    def zero(module, args, output):
        return torch.zeros_like(output)

    with torch.no_grad():
        kept = {f"clean_layer_{i}": one for i, one in enumerate(states())}
        with model.transformer.h[0].mlp.register_forward_hook(zero):
            kept |= {f"ablated_layer_{i}": one for i, one in enumerate(states())}
    return kept


@right("a leaf put into the stream, whose gradient is taken", notes={"RC217"})
def gradient_of_a_state(model, input_ids):
    kept = {}

    def leaf(module, args, output):
        kept["h.1.resid_post"] = output.detach().requires_grad_(True)
        return kept["h.1.resid_post"]

    with model.transformer.h[1].register_forward_hook(leaf), torch.enable_grad():
        logits = model(input_ids).logits
        (gradient,) = torch.autograd.grad(logits.sum(), kept["h.1.resid_post"])
    return {"grad_of_h.1.resid_post": gradient, **kept}


@right("the text's tokens of all rows, one after another")
def rows_of_real_tokens(model, input_ids, attention_mask):
    kept = {}

    def keep(module, args, output):
        kept["tokens_layer_2"] = output[attention_mask.bool()]

    with model.transformer.h[1].register_forward_hook(keep), torch.no_grad():
        model(input_ids, attention_mask=attention_mask)
    return kept


@right("patterns of a pass with another kernel, which is put back", row="E22")
def patterns_of_eager_attention(model, input_ids, attention_mask=None):
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            out = model(
                input_ids, attention_mask=attention_mask, output_attentions=True
            )
    finally:
        model.set_attn_implementation(before)
    return {f"h.{i}.attn.pattern": one for i, one in enumerate(out.attentions)}


@right("the last token of a clean run patched into a corrupted one", notes={"RC204"})
def patched_last_token(model, input_ids):
    kept = {}

    def keep(module, args, output):
        kept["last"] = output[:, -1].clone()

    def patch(module, args, output):
        output = output.clone()
        output[:, -1] = kept["last"]
        return output

    block = model.transformer.h[1]
    with torch.no_grad():
        with block.register_forward_hook(keep):
            clean = model(input_ids).logits
        with block.register_forward_hook(patch):
            patched = model(input_ids.flip(1)).logits
    return {"clean_logits": clean, "patched_logits": patched}


@right("a state at the positions that are given")
def at_given_positions(model, input_ids, position_ids):
    with torch.no_grad():
        out = model(input_ids, position_ids=position_ids, output_hidden_states=True)
    return {"h.0.resid_post": out.hidden_states[1]}


@right("what attention adds, taken before a dropout that older libraries lack")
def attention_out_of_its_last_map(model, input_ids):
    store = {}

    def keep(i, module, args, output):
        store[f"blocks.{i}.hook_attn_out"] = output.detach()

    with ExitStack() as stack:
        for i, block in enumerate(model.transformer.h):
            hook = block.attn.c_proj.register_forward_hook(partial(keep, i))
            stack.callback(hook.remove)
        model(input_ids)
    return store


@right("probabilities of the next token after each block")
def probabilities_of_a_lens(model, input_ids):
    with torch.no_grad():
        out = model(input_ids, output_hidden_states=True)
        body = model.transformer
        return {
            f"probs_{i}": model.lm_head(body.ln_f(state)).softmax(-1)
            for i, state in enumerate(out.hidden_states[1:-1])
        }


@right("statistics, with what they are taken over in their names")
def named_statistics(model, input_ids):
    with torch.no_grad():
        out = model(input_ids, output_attentions=True, output_hidden_states=True)
    layers = range(len(model.transformer.h) - 1)
    states = out.hidden_states[1:]
    return {
        **{f"attn_mean_over_heads_{i}": out.attentions[i].mean(1) for i in layers},
        **{f"resid_post_{i}_l2_norm": states[i].norm(dim=-1) for i in layers},
        "residual_before_ln_f": _before_last_norm(model, input_ids),
    }


def _before_last_norm(model, input_ids):
    kept = []
    hook = model.transformer.ln_f.register_forward_pre_hook(
        lambda module, args: kept.append(args[0])
    )
    with torch.no_grad():
        model(input_ids)
    hook.remove()
    return kept[0]


@right("a list for each layer, to which a hook appends")
def appended_to_lists(model, input_ids):
    store = defaultdict(list)
    with ExitStack() as stack, torch.no_grad():
        for i, block in enumerate(model.transformer.h):

            def keep(module, args, output, i=i):
                store[f"layer_{i}"].append(output.detach())

            stack.callback(block.register_forward_hook(keep).remove)
        model(input_ids)
    return dict(store)


@right("a list for each layer, with an entry for each step of generate")
def steps_of_generate(model, input_ids):
    store = defaultdict(list)
    with ExitStack() as stack:
        for i, block in enumerate(model.transformer.h):

            def keep(module, args, output, i=i):
                store[f"layer_{i}"].append(output.detach())

            stack.callback(block.register_forward_hook(keep).remove)
        model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=3,
            do_sample=False,
            pad_token_id=0,
        )
    return dict(store)


# -- easily taken for faults -----------------------------------------------------


@right(
    "the last block's output beside the last hidden state, which is normed", row="A6"
)
def last_residual_and_last_state(model, input_ids):
    last = len(model.transformer.h) - 1
    kept = _outputs(model, {f"h.{last}.resid_post": model.transformer.h[-1]}, input_ids)
    with torch.no_grad():
        states = model(input_ids, output_hidden_states=True).hidden_states
    return {**kept, "hidden_states": states}


def _encoder_states(model, input_ids):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(len(input_ids), 5, model.config.n_embd, generator=generator)


@right(
    "resid_mid as a sum with what cross-attention adds",
    row="A31",
    add_cross_attention=True,
)
def resid_mid_with_cross_attention(model, input_ids):
    before, blocks = {}, dict(enumerate(model.transformer.h))
    modules = {("attn", i): block.attn for i, block in blocks.items()}
    modules |= {("cross", i): block.crossattention for i, block in blocks.items()}
    with ExitStack() as stack:
        for i, block in blocks.items():

            def keep(module, args, i=i):
                before[i] = args[0]

            stack.callback(block.register_forward_pre_hook(keep).remove)
        states = _encoder_states(model, input_ids)
        added = _outputs(model, modules, input_ids, encoder_hidden_states=states)
    return {
        f"h.{i}.resid_mid": before[i] + added["attn", i] + added["cross", i]
        for i in blocks
    }


@right(
    "states of the other kernel, with rows in which no key is seen",
    row="E13",
    attention="sdpa",
    notes={"RC219"},
)
def states_of_the_other_kernel(model, input_ids, attention_mask):
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            out = model(
                input_ids, attention_mask=attention_mask, output_hidden_states=True
            )
    finally:
        model.set_attn_implementation(before)
    return {"hidden_states": out.hidden_states}


@right(
    "positions are left to the model, which counts padding", row="E11", notes={"RC219"}
)
def positions_left_to_the_model(model, input_ids, attention_mask):
    blocks = {f"layer_{i}": block for i, block in enumerate(model.transformer.h)}
    return _outputs(model, blocks, input_ids, attention_mask=attention_mask)


@right("positions counted from the mask, as generate does", row="E11")
def positions_from_the_mask(model, input_ids, attention_mask):
    blocks = {f"layer_{i}": block for i, block in enumerate(model.transformer.h)}
    positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
    return _outputs(
        model,
        blocks,
        input_ids,
        attention_mask=attention_mask,
        position_ids=positions,
    )


@right("states of a float16 model", row="E14", dtype=torch.float16)
def states_in_half_precision(model, input_ids):
    with torch.no_grad():
        out = model(input_ids, output_hidden_states=True)
    return {"hidden_states": out.hidden_states}


@right("token by token, with a cache between them", row="E18")
def token_by_token(model, input_ids):
    cache, pieces = None, []
    with torch.no_grad():
        for ids in input_ids.split(1, dim=1):
            out = model(
                ids, **{CACHE: cache}, use_cache=True, output_hidden_states=True
            )
            cache = out.past_key_values
            pieces.append(out.hidden_states)
    return {
        f"hidden_states.{i}": torch.cat(states, 1)
        for i, states in enumerate(zip(*pieces, strict=True))
    }


@right("a statistic of the heads of one block, numbered by head")
def heads_of_one_block(model, input_ids):
    with torch.no_grad():
        made = model(input_ids, output_attentions=True).attentions[1]
    heads = range(made.shape[1])
    return {f"head_{h}_prev_token_score": made[:, h].diagonal(-1, 1, 2) for h in heads}


# -- several numbers in a name, of which one is that of the block ------------------


def _states(model, input_ids):
    blocks = dict(enumerate(model.transformer.h))
    return list(_outputs(model, blocks, input_ids).values())


@right("rows and layers by number, rows first")
def rows_by_number(model, input_ids):
    states = _states(model, input_ids)
    rows = range(len(input_ids))
    return {f"row_{r}_layer_{i}": s[r] for r in rows for i, s in enumerate(states)}


@right("tokens by number under their layer", notes={"RC121", "RC303"})
def tokens_by_number(model, input_ids):
    states = _states(model, input_ids)
    return {f"resid_post_{i}": {f"token_{t}": s[:, t] for t in (0, 1, 4)}
            for i, s in enumerate(states)}  # fmt: skip


@right("one dictionary for each prompt", notes={"RC120"})
def prompts_by_number(model, input_ids):
    prompts = enumerate((input_ids, input_ids.flip(1)))
    return {
        f"prompt_{n}": {f"layer_{i}": s for i, s in enumerate(_states(model, ids))}
        for n, ids in prompts
    }


@right("heads by number, from 1", notes={"RC121"})
def heads_from_one(model, input_ids):
    count, kept = model.config.n_head, {}

    def keep(layer, module, args):
        for head, z in enumerate(args[0].chunk(count, -1), 1):
            kept[f"head_{head}_layer_{layer}"] = z

    with torch.no_grad(), ExitStack() as stack:
        for i, block in enumerate(model.transformer.h):
            hook = block.attn.c_proj.register_forward_pre_hook(partial(keep, i))
            stack.callback(hook.remove)
        model(input_ids)
    return kept


@right("what the last map of each half puts out, before dropout, by a loose name")
def outputs_of_the_last_maps(model, input_ids):
    halves = {
        f"{name}_{i}": half.c_proj
        for i, block in enumerate(model.transformer.h)
        for half, name in ((block.attn, "attn_out"), (block.mlp, "mlp_out"))
    }
    return _outputs(model, halves, input_ids)


@right("biases beside what they were added to", notes={"RC120"})
def biases_beside_captures(model, input_ids):
    found = {f"layer_{i}": s for i, s in enumerate(_states(model, input_ids))}
    return found | {
        f"blocks.{i}.attn.b_O": block.attn.c_proj.bias.detach().clone()
        for i, block in enumerate(model.transformer.h)
    }


@right("the parts of a block in a tuple, and q, k, v in another", notes={"RC120"})
def parts_in_tuples(model, input_ids):
    blocks = list(enumerate(model.transformer.h))
    hooked = {(i, name): block.get_submodule(name) for i, block in blocks
              for name in ("mlp", "ln_2", "attn.c_attn")}  # fmt: skip
    kept = _outputs(model, hooked, input_ids)
    both = {f"layer{i}": (kept[i, "mlp"], kept[i, "ln_2"]) for i, _ in blocks}
    return both | {"qkv": [kept[i, "attn.c_attn"].chunk(3, -1) for i, _ in blocks]}


@right("the whole stream in one tensor, and last tokens of all layers in another")
def stacks_of_layers(model, input_ids):
    with torch.no_grad():
        first = model.transformer.drop(model.transformer.wte(input_ids)
            + model.transformer.wpe(torch.arange(input_ids.shape[1])))  # fmt: skip
        states = _states(model, input_ids)
    return {
        "hidden": torch.stack([first, *states]),
        "last_token_resid": torch.stack([state[:, -1] for state in states], 1),
        "final": states[-1],
    }


@right("a dictionary for each row", notes=set())
def dictionaries_of_rows(model, input_ids):
    states = _states(model, input_ids)
    rows = range(len(input_ids))
    return [{f"layer_{i}": s[row] for i, s in enumerate(states)} for row in rows]


@right("layers from the end, their last tokens, and one neuron", notes={"RC121"})
def layers_from_the_end(model, input_ids):
    blocks = model.transformer.h
    acts = _outputs(model, {i: b.mlp.act for i, b in enumerate(blocks)}, input_ids)
    kept = {f"neuron_5_layer_{i}": act[..., 5] for i, act in acts.items()}
    for i, state in enumerate(_states(model, input_ids)):
        kept[f"layer_{i - len(blocks)}"] = state
        kept[f"layer_{i}_pos_-1"] = state[:, -1]
    return kept


@right(
    "other tokens of the same prompt, and the same prompt backwards", notes={"RC120"}
)
def others_and_reversed(model, input_ids):
    states = _states(model, input_ids)
    turned = _states(model, input_ids.flip(1))
    return {
        "reversed": {f"layer_{i}": state for i, state in enumerate(turned)},
        "bos": {f"other_tokens_{i}": s[:, 1:] for i, s in enumerate(states)},
        "original": {f"layer_{i}": state for i, state in enumerate(states)},
    }


@right("losses, divergences, unit vectors and shares of a logit, by hand")
def formulas_of_predictions(model, input_ids):
    with torch.no_grad():
        out = model(input_ids, output_hidden_states=True)
    body, final = model.transformer, out.logits.log_softmax(-1)
    nll = F.cross_entropy(
        out.logits[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten(), reduction="none"
    )
    kept = {"loss_per_token": nll.view(len(input_ids), -1)}
    last = _outputs(model, {0: body.h[-1]}, input_ids)[0]
    scale = (last.var(-1, unbiased=False, keepdim=True) + body.ln_f.eps).sqrt()
    best = model.lm_head.weight.detach()[out.logits.argmax(-1)]
    parts = {f"mlp_out_{i}": block.mlp for i, block in enumerate(body.h)}
    for name, part in _outputs(model, parts, input_ids).items():
        centred = part - part.mean(-1, keepdim=True)
        share = (centred / scale * body.ln_f.weight.detach() * best).sum(-1)
        kept[f"dla.{name}"] = share[:, -1]
    for i, state in enumerate(_states(model, input_ids)[:-1]):
        with torch.no_grad():
            lens = model.lm_head(body.ln_f(state)).log_softmax(-1)
        kept[f"lens_kl_{i}"] = F.kl_div(
            lens, final, log_target=True, reduction="none"
        ).sum(-1)
        kept[f"resid_unit_vectors_{i}"] = F.normalize(state, dim=-1)
    return kept


@right("features of two parts side by side, under the block's name", notes={"RC120"})
def features_side_by_side(model, input_ids):
    blocks = list(enumerate(model.transformer.h))
    kept = _outputs(model, {(i, "mlp"): b.mlp for i, b in blocks}, input_ids)
    acts = _outputs(model, {(i, "act"): b.mlp.act for i, b in blocks}, input_ids)
    return {
        f"layer_{i}": torch.cat([kept[i, "mlp"], acts[i, "act"]], -1)[:, -1]
        for i, _ in blocks
    }


@right("a decoding loop with a cache, its tokens put together", notes={"RC121"})
def decoded_with_a_cache(model, input_ids):
    states, cache, tokens = [], None, input_ids
    for _ in range(3):
        with torch.no_grad():
            out = model(
                tokens, **{CACHE: cache}, use_cache=True, output_hidden_states=True
            )
        states.append(out.hidden_states[2])
        cache, tokens = out.past_key_values, out.logits[:, -1:].argmax(-1)
    return {"resid_post_1": torch.cat(states, 1)}


@right("each row by itself, without its padding")
def rows_without_padding(model, input_ids, attention_mask):
    return {
        f"row_{n}.resid_post_1": _states(model, row[shown.bool()][None])[1][0]
        for n, (row, shown) in enumerate(zip(input_ids, attention_mask, strict=True))
    }
