"""Captures of gradients, right and wrong, as people take them from a GPT-2."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager

import torch

from tests.corpus.cases import right, wrong


def target(logits):
    """What people take gradients of: the top logit of the last token, all rows."""
    return logits[:, -1].max(-1).values.sum()


@contextmanager
def hooked(pairs, kind="register_forward_hook"):
    """Put hooks of one kind on modules, for the block; gradients flow in it."""
    with ExitStack() as stack, torch.enable_grad():
        for module, hook in pairs:
            stack.callback(getattr(module, kind)(hook).remove)
        yield


@contextmanager
def frozen(model):
    """Keep parameters from collecting gradients."""
    wanted = [(one, one.requires_grad) for one in model.parameters()]
    for one, _ in wanted:
        one.requires_grad_(False)
    try:
        yield
    finally:
        for one, was in wanted:
            one.requires_grad_(was)


def tapped(model, input_ids, module_of, objective=target):
    """Return the outputs of a module of each block, and the gradients at them."""
    taps = []
    pairs = [
        (module_of(block), lambda module, args, output: taps.append(output))
        for block in model.transformer.h
    ]
    with hooked(pairs):
        logits = model(input_ids).logits
        gradients = torch.autograd.grad(objective(logits), taps)
    return [one.detach() for one in taps], gradients


def by_backward_hooks(model, input_ids, module_of, read):
    """Return what ``read`` makes of both sides of a backward hook, by block."""
    store = {}
    pairs = [
        (
            module_of(block),
            lambda module, into, out, i=i: store.update({i: read(into, out)}),
        )
        for i, block in enumerate(model.transformer.h)
    ]
    with frozen(model), hooked(pairs, "register_full_backward_hook"):
        embedded = model.transformer.wte(input_ids).detach().requires_grad_(True)
        target(model(inputs_embeds=embedded).logits).backward()
    return dict(sorted(store.items()))


def heads_of(x, model):
    return x.unflatten(-1, (model.config.n_head, -1)).transpose(1, 2)


# -- right ---------------------------------------------------------------------


@right("a gradient, in a function that switches nothing on", notes={"RC404"})
def gradient_mode_left_to_callers(model, input_ids):
    embedded = model.transformer.wte(input_ids).detach().requires_grad_()
    target(model(inputs_embeds=embedded).logits).backward()
    model.zero_grad()
    return {"grad_of_logit_wrt_embed_tokens": embedded.grad}


@right("retain_grad in hooks that an error leaves behind", notes={"RC404", "RC203"})
def gradients_retained(model, input_ids):
    kept, handles = {}, []
    for i, block in enumerate(model.transformer.h):

        def keep(module, args, output, i=i):
            output.retain_grad()
            kept[f"grad_resid_post_{i}"] = output

        handles.append(block.register_forward_hook(keep))
    target(model(input_ids).logits).backward()
    for handle in handles:
        handle.remove()
    model.zero_grad()
    return {name: one.grad for name, one in kept.items()}


@right("the gradient of a weight, under no_grad too", notes={"RC404", "RC120"})
def gradient_of_a_weight(model, input_ids):
    weight = model.transformer.ln_f.weight
    loss = model(input_ids, labels=input_ids).loss
    return {"gain_gradient": torch.autograd.grad(loss, weight)[0]}


@right("states, their gradients, and both multiplied")
def states_and_gradients(model, input_ids):
    taps, gradients = tapped(model, input_ids, lambda block: block)
    kept = {}
    for i, (state, gradient) in enumerate(zip(taps, gradients, strict=True)):
        kept[f"resid_post_{i}"] = state
        kept[f"resid_post_{i}.grad"] = gradient
        kept[f"grad_x_act_{i}"] = gradient * state
    return kept


@right("both directions under the names of TransformerLens")
def lens_with_backward(model, input_ids):
    kept = {}

    def both(name):
        def forward(module, args, output):
            kept[name] = output.detach()
            output.register_hook(
                lambda gradient: kept.update({f"{name}_grad": gradient})
            )

        return forward

    pairs = []
    for i, block in enumerate(model.transformer.h):
        pairs.append((block, both(f"blocks.{i}.hook_resid_post")))
        pairs.append((block.mlp, both(f"blocks.{i}.hook_mlp_out")))
        pairs.append((block.mlp.act, both(f"blocks.{i}.mlp.hook_post")))
    with frozen(model), hooked(pairs):
        embedded = model.transformer.wte(input_ids).detach().requires_grad_(True)
        target(model(inputs_embeds=embedded).logits).backward()
    return kept


@right("gradients of queries, keys and values by head")
def gradients_by_head(model, input_ids):
    _, gradients = tapped(model, input_ids, lambda block: block.attn.c_attn)
    return {
        f"gradients.blocks.{i}.attn.hook_{letter}": heads_of(part, model).transpose(
            1, 2
        )
        for i, both in enumerate(gradients)
        for letter, part in zip("qkv", both.chunk(3, -1), strict=True)
    }


@right("what reaches both sides of a block, by backward hooks")
def both_sides_of_blocks(model, input_ids):
    sides = by_backward_hooks(
        model, input_ids, lambda block: block, lambda into, out: (into[0], out[0])
    )
    kept = {}
    for i, (into, out) in sides.items():
        kept[f"transformer.h.{i}.grad_input"] = into
        kept[f"transformer.h.{i}.grad_output"] = out
    return kept


@right("a head's and a token's share, gradients times values summed up")
def attribution_of_tokens(model, input_ids):
    taps, gradients = tapped(model, input_ids, lambda block: block.mlp)
    return {
        f"grad_x_act_mlp_out_{i}_summed_over_d_model": (one * gradient).sum(-1)
        for i, (one, gradient) in enumerate(zip(taps, gradients, strict=True))
    }


@right("gradients of two targets, each by itself")
def gradients_of_two_targets(model, input_ids):
    kept = {}
    for token in (5, 6):
        _, gradients = tapped(
            model,
            input_ids,
            lambda block: block,
            lambda logits, token=token: logits[:, -1, token].sum(),
        )
        for i, one in enumerate(gradients):
            kept[f"grad_of_logit_{token}_wrt_resid_post_{i}"] = one
    return kept


@right("gradients that are added up over two targets, and say so", notes={"RC121"})
def gradients_added_up(model, input_ids):
    taps = []
    block = model.transformer.h[1]
    with frozen(model), hooked([(block, lambda m, args, out: taps.append(out))]):
        embedded = model.transformer.wte(input_ids).detach().requires_grad_(True)
        logits = model(inputs_embeds=embedded).logits
        taps[0].retain_grad()
        logits[:, -1, 5].sum().backward(retain_graph=True)
        first = taps[0].grad.clone()
        logits[:, -1, 6].sum().backward()
    return {"grad_resid_post_1": first, "total_grad_resid_post_1": taps[0].grad}


@right("gradients row by row, put together")
def gradients_row_by_row(model, input_ids):
    rows = [tapped(model, row, lambda block: block)[1] for row in input_ids.split(1)]
    return {
        f"grad_layer_{i}": torch.cat(some)
        for i, some in enumerate(zip(*rows, strict=True))
    }


@right("how long the gradient at each token's embedding is")
def saliency_of_tokens(model, input_ids):
    with frozen(model), torch.enable_grad():
        embedded = model.transformer.wte(input_ids).detach().requires_grad_(True)
        target(model(inputs_embeds=embedded).logits).backward()
    return {
        "saliency": embedded.grad.norm(dim=-1),
        "embed.grad": embedded.grad,
        "input_x_gradient": (embedded * embedded.grad).sum(-1).detach(),
    }


@right("a sum of squares has its own value for a gradient")
def gradient_of_a_square(model, input_ids):
    taps = []
    block = model.transformer.h[1]
    with hooked([(block, lambda module, args, out: taps.append(out))]):
        model(input_ids)
        (gradient,) = torch.autograd.grad(taps[0].square().sum() / 2, taps)
    return {"grad_resid_post_1": gradient, "resid_post_1": taps[0].detach()}


@right("gradients of the last token only, scaled to length 1", notes={"RC120"})
def directions_of_gradients(model, input_ids):
    _, gradients = tapped(model, input_ids, lambda block: block)
    return {
        f"grad_direction_{i}": one[:, -1] / one[:, -1].norm(dim=-1, keepdim=True)
        for i, one in enumerate(gradients)
    }


@right("a mode beside which states are kept, and no gradients")
def states_with_and_without_gradients(model, input_ids):
    kept = {}
    for mode in (True, False):
        with torch.set_grad_enabled(mode):
            out = model(input_ids, output_hidden_states=True)
        name = "with_grad" if mode else "no_grad"
        for i, state in enumerate(out.hidden_states[1:-1]):
            kept[f"{name}.layer_{i}"] = state.detach()
    return kept


# -- wrong ---------------------------------------------------------------------


@wrong(row="new", rules={"RC102"}, sites="*h.*.resid_post")
def gradient_of_the_input(model, input_ids):
    """grad_input of a block, the gradient at its input, for that at its output."""
    into = by_backward_hooks(
        model, input_ids, lambda block: block, lambda into, out: into[0]
    )
    return {f"grad_resid_post_{i}": one for i, one in into.items()}


@wrong(row="new", rules={"RC102"}, sites="*h.*.mlp_out")
def gradients_in_the_order_of_backward(model, input_ids):
    """Backward hooks fire from the last block to the first, and a list is numbered."""
    grads = []
    pairs = [
        (block.mlp, lambda module, into, out: grads.append(out[0]))
        for block in model.transformer.h
    ]
    with frozen(model), hooked(pairs, "register_full_backward_hook"):
        embedded = model.transformer.wte(input_ids).detach().requires_grad_(True)
        target(model(inputs_embeds=embedded).logits).backward()
    return {f"h.{i}.mlp_out.grad": one for i, one in enumerate(grads)}


@wrong(row="new", rules={"RC106"}, sites="*h.1.resid_post")
def gradients_never_zeroed(model, input_ids):
    """The gradient of the second target has that of the first in it."""
    taps, kept = [], {}
    block = model.transformer.h[1]
    with frozen(model), hooked([(block, lambda m, args, out: taps.append(out))]):
        embedded = model.transformer.wte(input_ids).detach().requires_grad_(True)
        logits = model(inputs_embeds=embedded).logits
        taps[0].retain_grad()
        for token in (5, 6):
            logits[:, -1, token].sum().backward(retain_graph=True)
            kept[f"resid_post_1_grad.token_{token}"] = taps[0].grad.clone()
    return kept


@wrong(row="new", rules={"RC107"}, sites="*h.*.resid_post", maker=True)
def gradients_of_an_earlier_call():
    """A store that outlives the call keeps the first gradients that it got."""
    store = {}

    def capture(model, input_ids):
        _, gradients = tapped(model, input_ids, lambda block: block)
        for i, one in enumerate(gradients):
            store.setdefault(f"grad_resid_post_{i}", one)
        return dict(store)

    return capture


@wrong(row="new", rules={"RC101"}, sites="*h.*.resid_post")
def values_for_gradients(model, input_ids):
    """The tensor is kept, and not its .grad."""
    taps, _ = tapped(model, input_ids, lambda block: block)
    return {f"transformer.h.{i}.grad": one for i, one in enumerate(taps)}


@wrong(row="new", rules={"RC104"}, sites="*h.*.mlp_out")
def gradient_of_the_first_row(model, input_ids):
    """grad_output[0][0]: the tuple is opened twice, and row 0 is left."""
    rows = by_backward_hooks(
        model, input_ids, lambda block: block.mlp, lambda into, out: out[0][0]
    )
    return {f"grads.h.{i}.mlp_out": one for i, one in rows.items()}


@wrong(row="new", rules={"RC110"}, sites="*h.*.resid_post")
def gradient_of_a_copy(model, input_ids):
    """A detached copy gets no gradient, and zeros stand in for it."""
    copies = []

    def keep(module, args, output):
        copies.append(output.detach().requires_grad_(True))

    with frozen(model), hooked([(block, keep) for block in model.transformer.h]):
        embedded = model.transformer.wte(input_ids).detach().requires_grad_(True)
        target(model(inputs_embeds=embedded).logits).backward()
    return {
        f"resid_post_{i}_grad": torch.zeros_like(one) if one.grad is None else one.grad
        for i, one in enumerate(copies)
    }


@wrong(row="new", rules={"RC101"}, sites="*h.*.mlp.post")
def gradient_before_the_activation(model, input_ids):
    """The gradient at c_fc's output, called that at the activation's."""
    _, gradients = tapped(model, input_ids, lambda block: block.mlp.c_fc)
    return {f"blocks.{i}.mlp.hook_post_grad": one for i, one in enumerate(gradients)}


@wrong(row="new", rules={"RC101"}, sites="*h.*.attn.k")
def gradient_of_queries_for_keys(model, input_ids):
    """Of the gradient at c_attn's output the first third is taken for that of keys."""
    _, gradients = tapped(model, input_ids, lambda block: block.attn.c_attn)
    return {
        f"grad_h.{i}.attn.k": heads_of(one.chunk(3, -1)[0], model)
        for i, one in enumerate(gradients)
    }


@wrong(row="new", rules={"RC103"}, sites="*h.*.attn.q")
def gradient_by_head_not_transposed(model, input_ids):
    """view(B, H, T, d) takes the tokens' gradients for the heads'."""
    batch, heads = len(input_ids), model.config.n_head
    _, gradients = tapped(model, input_ids, lambda block: block.attn.c_attn)
    return {
        f"h.{i}.attn.q.grad": one.chunk(3, -1)[0].reshape(
            batch, heads, input_ids.shape[1], -1
        )
        for i, one in enumerate(gradients)
    }


@wrong(row="new", rules={"RC105"}, sites="*h.*.resid_post")
def gradient_times_value(model, input_ids):
    """An attribution, gradient times value, under the name of the gradient."""
    taps, gradients = tapped(model, input_ids, lambda block: block)
    both = zip(taps, gradients, strict=True)
    return {f"grad_h.{i}.resid_post": a * g for i, (a, g) in enumerate(both)}


@wrong(row="new", rules={"RC102"}, sites="*h.*.resid_post")
def gradient_by_a_late_closure(model, input_ids):
    """Each hook of a tensor has the loop's last number."""
    states, kept = [], {}
    with torch.enable_grad():
        out = model(input_ids, output_hidden_states=True)
        states = out.hidden_states[1:-1]
        for i, _ in enumerate(states):
            late = lambda gradient: kept.update({f"h.{i}.resid_post.grad": gradient})  # noqa: B023, E731 - the fault
            states[0].register_hook(late)
        torch.autograd.grad(target(out.logits), states)
    return kept


@wrong(row="new", rules={"RC107"}, sites="*h.*.resid_post")
def gradients_of_other_tokens(model, input_ids):
    """The gradients are those of the corrupted prompt, not of the given one."""
    other = input_ids.clone()
    other[:, 0] = (other[:, 0] + 1) % model.config.vocab_size
    _, gradients = tapped(model, other, lambda block: block)
    return {f"grad.h.{i}.resid_post": one for i, one in enumerate(gradients)}


@wrong(row="new", rules={"RC101"}, sites="h.*.mlp_out")
def gradients_under_plain_names(model, input_ids):
    """Gradients of the MLPs' outputs, under the names of the outputs."""
    _, gradients = tapped(model, input_ids, lambda block: block.mlp)
    return {f"h.{i}.mlp_out": one for i, one in enumerate(gradients)}
