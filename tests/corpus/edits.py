"""Deliberate edits and early stops that are put back: effects, no wrong captures."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, suppress

import torch
from torch import nn

from tests.corpus.cases import edit


class _StopHere(Exception):  # noqa: N818 - no error, but a way out
    """Thrown by a hook when all that is wanted has been seen."""


@contextmanager
def _hooks(*handles):
    with ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        yield


def _store_output(store, name):
    def hook(module, args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        store[name] = hidden.detach().clone()

    return hook


@edit("a steering vector, added for all rows")
def steered(model, input_ids):
    store = {}
    vector = torch.linspace(-1, 1, model.config.n_embd)
    first, second = model.transformer.h[0], model.transformer.h[1]
    with (
        torch.no_grad(),
        _hooks(
            first.register_forward_hook(lambda m, a, out: out + vector),
            second.register_forward_hook(_store_output(store, "h.1.resid_post")),
        ),
    ):
        model(input_ids)
    return store


@edit("a steering vector, captured after it was added", effects={"RC204", "RC123"})
def steered_and_captured(model, input_ids):
    store = {}
    block = model.transformer.h[1]
    with (
        torch.no_grad(),
        _hooks(
            block.register_forward_hook(lambda m, a, out: out + 2.0 * out.std()),
            block.register_forward_hook(_store_output(store, "block1_out")),
        ),
    ):
        model(input_ids)
    return store


@edit("one head ablated before c_proj")
def head_ablated(model, input_ids):
    store = {}
    width = model.config.n_embd // model.config.n_head
    attention = model.transformer.h[1].attn

    def without_head(module, args):
        z = args[0].clone()
        z[..., width : 2 * width] = 0
        return (z,)

    with (
        torch.no_grad(),
        _hooks(
            attention.c_proj.register_forward_pre_hook(without_head),
            attention.register_forward_hook(_store_output(store, "h.1.attn_out")),
        ),
    ):
        store["logits"] = model(input_ids).logits
    return store


@edit("an MLP replaced by its mean over tokens")
def mean_ablated(model, input_ids):
    store = {}

    def mean(module, args, output):
        return output.mean(1, keepdim=True).expand_as(output)

    with (
        torch.no_grad(),
        _hooks(model.transformer.h[0].mlp.register_forward_hook(mean)),
    ):
        out = model(input_ids, output_hidden_states=True)
    store["hidden_states"] = out.hidden_states
    return store


@edit("a block skipped")
def skipped_block(model, input_ids):
    store = {}
    blocks = model.transformer.h
    with (
        torch.no_grad(),
        _hooks(
            blocks[1].register_forward_hook(lambda m, args, out: args[0]),
            blocks[2].register_forward_hook(
                _store_output(store, "blocks.2.hook_resid_post")
            ),
        ),
    ):
        model(input_ids)
    return store


@edit("activations of reversed tokens, patched in")
def patched_from_another_prompt(model, input_ids):
    other, store = {}, {}
    block = model.transformer.h[0]
    with (
        torch.no_grad(),
        _hooks(block.register_forward_hook(_store_output(other, "there"))),
    ):
        model(input_ids.flip(1))
    last = model.transformer.h[-1]
    name = f"transformer.h.{len(model.transformer.h) - 1}"
    with (
        torch.no_grad(),
        _hooks(
            block.register_forward_hook(lambda m, args, out: other["there"]),
            last.register_forward_hook(_store_output(store, name)),
        ),
    ):
        model(input_ids)
    return store


@edit("a weight edited for one pass, and put back")
def weight_edited(model, input_ids):
    store = {}
    mlp = model.transformer.h[1].mlp
    kept = mlp.c_proj.weight.detach().clone()
    try:
        with torch.no_grad():
            mlp.c_proj.weight[:, 0] += 1.0
            with _hooks(mlp.register_forward_hook(_store_output(store, "mlp_1"))):
                model(input_ids)
    finally:
        with torch.no_grad():
            mlp.c_proj.weight.copy_(kept)
    return store


@edit("attention to the first token knocked out by the mask")
def attention_knocked_out(model, input_ids):
    store = {}

    def mask_first(module, args, kwargs):
        tokens = args[0].shape[1]
        blocked = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
        blocked[1:, 0] = True
        mask = torch.zeros(tokens, tokens).masked_fill(blocked, -1e9)
        return args, {**kwargs, "attention_mask": mask[None, None]}

    attention = model.transformer.h[1].attn
    with (
        torch.no_grad(),
        _hooks(
            attention.register_forward_pre_hook(mask_first, with_kwargs=True),
            attention.register_forward_hook(_store_output(store, "attn_1")),
        ),
    ):
        model(input_ids)
    return store


@edit("stopped after the block that was wanted", effects=())
def stopped_early(model, input_ids):
    store = {}
    keep = _store_output(store, "h.1.resid_post")

    def keep_and_stop(module, args, output):
        keep(module, args, output)
        raise _StopHere

    with (
        torch.no_grad(),
        _hooks(model.transformer.h[1].register_forward_hook(keep_and_stop)),
        suppress(_StopHere),
    ):
        model(input_ids)
    return store


@edit("only the lower blocks are called", effects=())
def lower_blocks_only(model, input_ids):
    body = model.transformer
    blocks = body.h
    with torch.no_grad():
        try:
            body.h = blocks[:2]
            hidden = body(input_ids, output_hidden_states=False).last_hidden_state
        finally:
            body.h = blocks
    # What leaves ln_f is the normed output of block 1, which no full pass computes.
    return {"early_exit": hidden}


# -- captures beside the edit ------------------------------------------------------

BESIDE = {"RC204", "RC123"}


def _halve(module, args, output):
    if isinstance(output, tuple):
        return (output[0] * 0.5, *output[1:])
    return output * 0.5


def _beside(model, input_ids, path, name, hooks):
    """Run once with two hooks on one module of block 1: an edit, and a capture."""
    store = {}
    hooks = [_store_output(store, name) if one is None else one for one in hooks]
    module = model.transformer.h[1].get_submodule(path)
    handles = [module.register_forward_hook(one) for one in hooks]
    with torch.no_grad(), _hooks(*handles):
        model(input_ids)
    return store


@edit(
    "a block's output, captured before it is edited",
    row="D11",
    effects=BESIDE,
    found="h.1.resid_post before the code's edit",
)
def block_before_its_edit(model, input_ids):
    return _beside(model, input_ids, "", "h.1.resid_post", [None, _halve])


@edit(
    "a block's output, captured after it is edited",
    row="D12",
    effects=BESIDE,
    found="h.1.resid_post after the code's edit",
)
def block_after_its_edit(model, input_ids):
    return _beside(model, input_ids, "", "h.1.resid_post", [_halve, None])


@edit(
    "what an MLP adds, captured before it is edited",
    row="D11",
    effects=BESIDE,
    found="h.1.mlp_out before the code's edit",
)
def mlp_before_its_edit(model, input_ids):
    return _beside(model, input_ids, "mlp", "mlp_1", [None, _halve])


@edit(
    "what an MLP adds, captured after it is edited",
    row="D12",
    effects=BESIDE,
    found="h.1.mlp_out after the code's edit",
)
def mlp_after_its_edit(model, input_ids):
    return _beside(model, input_ids, "mlp", "mlp_1", [_halve, None])


@edit(
    "what attention adds, captured after it is edited",
    row="D12",
    effects=BESIDE,
    found="h.1.attn_out after the code's edit",
)
def attention_after_its_edit(model, input_ids):
    return _beside(model, input_ids, "attn", "attn_1", [_halve, None])


@edit(
    "a mean over tokens of what is edited",
    row="D12",
    effects=BESIDE,
    found="h.1.resid_post averaged over tokens, after the code's edit",
)
def mean_after_the_edit(model, input_ids):
    kept = _beside(model, input_ids, "", "layer_1_mean", [_halve, None])
    return {name: value.mean(1) for name, value in kept.items()}


@edit(
    "queries cut out of an edited c_attn",
    row="D12",
    effects=BESIDE,
    found="h.1.attn.q after the code's edit",
)
def queries_after_their_edit(model, input_ids):
    width, heads = model.config.n_embd, model.config.n_head
    kept = _beside(model, input_ids, "attn.c_attn", "h.1.attn.qkv", [_halve, None])
    q = kept["h.1.attn.qkv"][..., :width].unflatten(-1, (heads, -1))
    return {"h.1.attn.q": q.transpose(1, 2)}


@edit(
    "z by head, captured before a pre-hook edits it",
    row="D11",
    effects=BESIDE,
    found="h.1.attn.z before the code's edit",
)
def z_before_its_edit(model, input_ids):
    store, heads = {}, model.config.n_head
    proj = model.transformer.h[1].attn.c_proj

    def keep(module, args):
        store["h.1.attn.z"] = args[0].unflatten(-1, (heads, -1)).transpose(1, 2)

    handles = [
        proj.register_forward_pre_hook(one)
        for one in (keep, lambda module, args: (args[0] * 0.5,))
    ]
    with torch.no_grad(), _hooks(*handles):
        model(input_ids)
    return store


@edit(
    "the same edit, with hidden states whose hooks were there before it",
    row="D13",
    effects=BESIDE,
    found="h.1.resid_post before the code's edit",
)
def states_of_before_the_edit(model, input_ids):
    block = model.transformer.h[1]
    with torch.no_grad():
        model(input_ids[:, :1], output_hidden_states=True)  # hooks stay from now on
        with _hooks(block.register_forward_hook(_halve)):
            out = model(input_ids, output_hidden_states=True)
    return {"hidden_states": out.hidden_states}


@edit("the same edit, with hidden states whose hooks come after it", row="D13")
def states_of_after_the_edit(model, input_ids):
    with (
        torch.no_grad(),
        _hooks(model.transformer.h[1].register_forward_hook(_halve)),
    ):
        out = model(input_ids, output_hidden_states=True)
    return {"hidden_states": out.hidden_states}


class _Shifted(nn.Module):
    """Stands before a block, keeps what that returns, and adds to it."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, *args, **kwargs):
        self.kept = self.block(*args, **kwargs)
        return self.kept + 1.0


@edit(
    "a wrapper that steers a block, and keeps the block's own output",
    effects=BESIDE,
    found="h.1.resid_post as block makes it inside of the _Shifted at *",
)
def kept_by_a_wrapper(model, input_ids):
    blocks = model.transformer.h
    block, wrapper = blocks[1], _Shifted(blocks[1])
    blocks[1] = wrapper
    try:
        with torch.no_grad():
            model(input_ids)
    finally:
        blocks[1] = block
    return {"layer_1": wrapper.kept}
