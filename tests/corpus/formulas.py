"""Captures named after a well-known formula of a site, computed rightly and wrongly.

Each formula stands here in right ways of several styles and in a wrong one or two.
"""

from __future__ import annotations

import math
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F  # noqa: N812 - as torch's own documentation has it

from tests.corpus.cases import right, wrong
from tests.corpus.wrong import IN, OUT, collect, layers_of, numbered, split, states_of


@contextmanager
def eager(model):
    """Have the attention's weights computed, and no fused kernel, for a while."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def weights_of(model, input_ids):
    with eager(model), torch.no_grad():
        return model(input_ids, output_attentions=True).attentions


def values_of(model, input_ids):
    made = layers_of(model, input_ids, "attn.c_attn")
    heads = model.config.n_head
    return [split(x.chunk(3, -1)[2], heads) for x in made.values()]


def lens(model, x):
    return model.lm_head(model.transformer.ln_f(x))


def each(made, name):
    return {name.format(i): x for i, x in enumerate(made)}


# -- entropies -----------------------------------------------------------------


@right("entropy of each attention row, by hand")
def row_entropies(model, input_ids):
    made = [-(w * (w + 1e-12).log()).sum(-1) for w in weights_of(model, input_ids)]
    return each(made, "layer_{}_attention_entropy")


@right("entropy by head in bits, averaged, layers from 1")
def head_entropies(model, input_ids):
    made = weights_of(model, input_ids)
    bits = [torch.special.entr(w).sum(-1).mean((0, 2)) / math.log(2) for w in made]
    return {f"block{i}.head_entropy_bits": x for i, x in enumerate(bits, start=1)}


@right("entropy of one query's attention by head, stacked over layers")
def last_query_entropies(model, input_ids):
    made = weights_of(model, input_ids)
    return {
        "attn_entropies": torch.stack(
            [torch.distributions.Categorical(w[:, :, -1]).entropy() for w in made]
        )
    }


@right("entropy of the lens's prediction at each block")
def lens_entropies(model, input_ids):
    with torch.no_grad():
        made = [lens(model, x) for x in states_of(model, input_ids)[1:-1]]
    soft = [torch.distributions.Categorical(logits=x).entropy() for x in made]
    return each(soft, "lens_entropy_{}")


@wrong(row="new", rules={"RC105"}, sites="h.*.attn.pattern*")
def entropy_over_the_queries(model, input_ids):
    """The sum of p log p is over the queries, not over the keys."""
    made = [torch.special.entr(w).sum(-2) for w in weights_of(model, input_ids)]
    return each(made, "attention_entropy_layer{}")


@wrong(row="new", rules={"RC105"}, sites="h.*.attn.pattern*")
def entropy_of_softmax_of_weights(model, input_ids):
    """Weights go through softmax once more before their entropy is taken."""
    twice = [w.softmax(-1) for w in weights_of(model, input_ids)]
    made = [-(p * p.log()).sum(-1).mean(-1) for p in twice]
    return each(made, "L{}_head_entropy")


@wrong(row="new", rules={"RC105"}, sites="h.*.attn.pattern*")
def entropy_in_the_other_unit(model, input_ids):
    """Named as bits, computed with the natural logarithm."""
    made = [torch.special.entr(w).sum(-1) for w in weights_of(model, input_ids)]
    return each(made, "attn_entropy_bits.{}")


@wrong(row="new", rules={"RC102"}, sites="h.*.attn.pattern*")
def entropies_of_the_last_layer(model, input_ids):
    """All entropies are those of the last block, whose weights the loop ended with."""
    made = weights_of(model, input_ids)
    return each([torch.special.entr(made[-1]).sum(-1) for _ in made], "attn_entropy_{}")


# -- weight on one token -----------------------------------------------------------


@right("weight on the token before, by query and averaged")
def previous_tokens(model, input_ids):
    store = {}
    for i, w in enumerate(weights_of(model, input_ids)):
        band = torch.stack([w[..., q, q - 1] for q in range(1, w.shape[-1])], -1)
        store[f"prev_token_attn_{i}"] = band
        store[f"previous_token_head_score_{i}"] = band.mean(-1).mean(0)
    return store


@right("weight on the first token and on its own, by head")
def sinks(model, input_ids):
    store = {}
    for i, w in enumerate(weights_of(model, input_ids)):
        store[f"attn_sink.{i}"] = w[..., 0].mean(-1)
        store[f"bos_attention_mass.{i}"] = w[:, :, 1:, 0].mean((0, 2))
        store[f"self_attention_score.{i}"] = w.diagonal(dim1=2, dim2=3).mean(-1)
    return store


@wrong(row="new", rules={"RC105"}, sites="h.*.attn.pattern*")
def previous_token_over_all_queries(model, input_ids):
    """A sum over the T-1 queries that have a token before, divided by T."""
    made = weights_of(model, input_ids)
    tokens = input_ids.shape[1]
    scores = [w.diagonal(-1, 2, 3).sum(-1) / tokens for w in made]
    return each(scores, "layer_{}_prev_token_head_scores")


@wrong(row="new", rules={"RC105"}, sites="h.*.attn.pattern*")
def sink_of_the_wrong_axis(model, input_ids):
    """The row of query 0 is taken, not the column of key 0."""
    made = [w[:, :, 0, :] for w in weights_of(model, input_ids)]
    return each(made, "attention_sink_{}")


@wrong(row="new", rules={"RC105"}, sites="h.*.attn.pattern*")
def own_token_for_the_previous_one(model, input_ids):
    """The main diagonal, not the one below it."""
    made = [w.diagonal(0, -2, -1).mean((0, 2)) for w in weights_of(model, input_ids)]
    return each(made, "prev_token_attention_{}")


def repeated(model, input_ids):
    return weights_of(model, torch.cat([input_ids, input_ids], 1))


@right("induction scores by head, on a text that stands there twice")
def inductions(model, input_ids):
    made, tokens = repeated(model, input_ids), input_ids.shape[1]
    scores = [w.diagonal(1 - tokens, -2, -1).mean((0, -1)) for w in made]
    return each(scores, "induction_score_layer_{}")


@wrong(row="new", rules={"RC105"}, sites="h.*.attn.pattern*")
def weight_on_the_copy(model, input_ids):
    """Weight on the same token's first copy, not on the one after it."""
    made, tokens = repeated(model, input_ids), input_ids.shape[1]
    scores = [w.diagonal(-tokens, -2, -1).mean((0, -1)) for w in made]
    return {"induction_scores": torch.stack(scores)}


# -- weighted by values, rolled out ------------------------------------------------


@right("patterns times the norm of each value")
def weighted_by_values(model, input_ids):
    values = values_of(model, input_ids)
    made = zip(weights_of(model, input_ids), values, strict=True)
    weighted = [torch.einsum("bhqk,bhk->bhqk", w, v.norm(dim=-1)) for w, v in made]
    return each(weighted, "attn_{}_value_weighted")


@right("patterns times the norm of what each head writes (Kobayashi et al.)")
def weighted_by_outputs(model, input_ids):
    values, store = values_of(model, input_ids), {}
    for i, w in enumerate(weights_of(model, input_ids)):
        matrix = model.transformer.h[i].attn.c_proj.weight.detach()
        out = values[i] @ matrix.view(values[i].shape[1], -1, matrix.shape[1])
        store[f"norm_value_weighted_attention_{i}"] = w * out.norm(dim=-1)[:, :, None]
    return store


@right("attention rollout up to each block, and through all")
def rolled_out(model, input_ids):
    joint, store = None, {}
    for i, w in enumerate(weights_of(model, input_ids)):
        mixed = w.mean(1) + torch.eye(w.shape[-1])
        mixed = mixed / mixed.sum(-1, keepdim=True)
        joint = mixed if joint is None else torch.bmm(mixed, joint)
        store[f"rollout_after_block_{i}"] = joint
    return store | {"attention_rollout": joint}


@wrong(row="new", rules={"RC105"}, sites="h.*.attn.pattern*")
def values_at_the_query(model, input_ids):
    """The norms of values stand along the queries, which mix them, not the keys."""
    made = zip(weights_of(model, input_ids), values_of(model, input_ids), strict=True)
    weighted = [w * v.norm(dim=-1, keepdim=True) for w, v in made]
    return each(weighted, "layers.{}.value_weighted_attn")


@wrong(row="new", rules={"RC105"}, sites="h.*.attn.pattern*")
def norms_of_keys(model, input_ids):
    """The second third of what c_attn makes are the keys."""
    heads = model.config.n_head
    qkv = layers_of(model, input_ids, "attn.c_attn").values()
    keys = [split(x.chunk(3, -1)[1], heads) for x in qkv]
    made = zip(weights_of(model, input_ids), keys, strict=True)
    weighted = [w * k.norm(dim=-1)[:, :, None] for w, k in made]
    return each(weighted, "value_weighted_attention.{}")


@wrong(row="new", rules={"RC105"}, sites="h.*.attn.pattern*")
def rolled_out_backwards(model, input_ids):
    """Later blocks are multiplied on the right."""
    joint = torch.eye(input_ids.shape[1])
    for w in weights_of(model, input_ids):
        joint = joint @ (w.mean(1) + torch.eye(w.shape[-1])).div(2)
    return {"attn_rollout": joint}


@wrong(row="new", rules={"RC105"}, sites="h.*.attn.pattern*")
def rolled_out_without_the_residual(model, input_ids):
    """The identity is never added, though the name speaks of the residual."""
    joint = torch.eye(input_ids.shape[1])
    for w in weights_of(model, input_ids):
        joint = w.mean(1) @ joint
    return {"rollout_with_residual": joint}


# -- LayerNorms --------------------------------------------------------------------


def entering(model, input_ids):
    """What enters ln_1 of each block."""
    return layers_of(model, input_ids, "ln_1", IN).values()


@right("what LayerNorms divide by, and the state so normalised")
def divisors(model, input_ids):
    store = {}
    for i, x in enumerate(entering(model, input_ids)):
        eps = model.transformer.h[i].ln_1.eps
        below = torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + eps)
        store[f"block_{i}_ln1_denominator"] = below
        store[f"block_{i}_ln1_rstd"] = 1 / below.squeeze(-1)
        store[f"block_{i}_ln1_xhat"] = (x - x.mean(-1, keepdim=True)) / below
    return store


@right("LayerNorm's gain is called its scale; its output normalized")
def gains(model, input_ids):
    places = {f"ln_2_normalized.{i}": (block.ln_2, OUT) for i, block in numbered(model)}
    store = collect(model, input_ids, places)
    norms = [block.ln_2.weight.detach().clone() for block in model.transformer.h]
    return store | each(norms, "ln_2_scale.{}")


@wrong(row="new", rules={"RC105"}, sites="h.*.ln_1*")
def divisor_over_one_less(model, input_ids):
    """torch.std divides by n-1; LayerNorm does not."""
    made = [(x.std(-1) ** 2 + 1e-5).sqrt() for x in entering(model, input_ids)]
    return each(made, "ln1_scale_layer_{}")


@wrong(row="new", rules={"RC105"}, sites="h.*.ln_1*")
def normalised_without_centring(model, input_ids):
    """The mean is not taken off what is divided."""
    made = [
        x / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        for x in entering(model, input_ids)
    ]
    return each(made, "ln_1_x_hat.{}")


@wrong(row="new", rules={"RC105"}, sites="h.*.ln_2*")
def weight_and_bias_left_on(model, input_ids):
    """What LayerNorm puts out has its weight and bias."""
    made = layers_of(model, input_ids, "ln_2").values()
    return each(made, "ln_2_normalized_pre_affine.{}")


@wrong(row="new", rules={"RC102", "RC101"}, sites="h.*.ln_1*")
def divisors_of_one_block(model, input_ids):
    """Every divisor is that of the last block."""
    below = [
        (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        for x in entering(model, input_ids)
    ]
    return each([below[-1] for _ in below], "blocks.{}.ln_1.divisor")


# -- predictions -------------------------------------------------------------------


@right("probabilities and log-probabilities, of the last token too")
def predictions(model, input_ids):
    with torch.no_grad():
        logits = model(input_ids).logits
    logs = F.log_softmax(logits.float(), dim=-1)
    return {
        "probabilities": logits.softmax(-1),
        "logprobs": logs,
        "log_probs_last_token": logs[:, -1],
        "token_logprobs": logs[:, :-1].gather(2, input_ids[:, 1:, None]).squeeze(2),
    }


@right("probabilities after a block is skipped, in a pass of its own")
def skipped_blocks(model, input_ids):
    store = {}
    for i, block in numbered(model):
        keep = block.register_forward_hook(lambda module, args, output: args[0])
        try:
            with torch.no_grad():
                logits = model(input_ids).logits
        finally:
            keep.remove()
        store[f"without_block_{i}.probs"] = logits[:, -1].softmax(-1)
    return store


@right("log-probabilities of a lens at each block, counted from 1")
def lens_predictions(model, input_ids):
    states = states_of(model, input_ids)
    with torch.no_grad():
        made = [lens(model, x).log_softmax(-1) for x in states[1:-1]]
    return {f"logit_lens_log_probs_{i}": x for i, x in enumerate(made, start=1)}


@wrong(row="new", rules={"RC105"}, sites="h.*.resid_post*")
def lens_softmax_over_tokens(model, input_ids):
    """Softmax over the positions, not over the vocabulary."""
    with torch.no_grad():
        made = [lens(model, x) for x in states_of(model, input_ids)[1:-1]]
    return each([x.softmax(1) for x in made], "lens_probs_{}")


@wrong(row="new", rules={"RC105"}, sites="h.*.resid_post*")
def lens_probabilities_without_the_norm(model, input_ids):
    """The unembedding is applied to states that ln_f never saw."""
    states = states_of(model, input_ids)[1:-1]
    with torch.no_grad():
        made = [model.lm_head(x).log_softmax(-1) for x in states]
    return each(made, "lens.{}.logprobs")


@wrong(row="new", rules={"RC105"}, sites="logits*")
def softmax_twice(model, input_ids):
    """log_softmax of what went through softmax already."""
    with torch.no_grad():
        soft = model(input_ids).logits.softmax(-1)
    return {"log_probs": F.log_softmax(soft, dim=-1)}


@wrong(row="new", rules={"RC105"}, sites="logits*")
def logits_for_probabilities(model, input_ids):
    """Logits are returned as probabilities."""
    with torch.no_grad():
        return {"probs": model(input_ids).logits}


@wrong(row="new", rules={"RC105"}, sites="logits*")
def scored_against_what_was_read(model, input_ids):
    """Each prediction is scored with the token that it was made from."""
    with torch.no_grad():
        logs = model(input_ids).logits.log_softmax(-1)
    return {"token_log_probs": logs.gather(-1, input_ids[..., None])[..., 0]}


@wrong(row="new", rules={"RC114"}, sites="logits*")
def first_token_for_the_last(model, input_ids):
    """Probabilities of the first token's prediction, named as the last's."""
    with torch.no_grad():
        soft = model(input_ids).logits.softmax(-1)
    return {"last_token_probs": soft[:, 0]}


# -- centred, quantised ------------------------------------------------------------


@right("features centred over the samples; states over the width")
def centred_states(model, input_ids):
    store = {}
    for i, x in enumerate(states_of(model, input_ids)[1:-1]):
        flat = x.flatten(0, 1)
        store[f"column_centered_resid_{i}"] = flat - flat.mean(0)
        store[f"centered_resid_post_{i}"] = x - x.mean(-1, keepdim=True)
        last = x[:, -1]
        store[f"cka_centred_last_{i}"] = last - last.mean(0)
    return store


@wrong(row="new", rules={"RC105"}, sites="h.*.resid_post*")
def centred_over_the_features(model, input_ids):
    """Rows are centred where CKA wants columns of mean zero."""
    states = [x.flatten(0, 1) for x in states_of(model, input_ids)[1:-1]]
    return each([x - x.mean(1, keepdim=True) for x in states], "cka_centered_resid_{}")


@wrong(row="new", rules={"RC105"}, sites="h.*.resid_post*")
def not_centred(model, input_ids):
    """States as they are, as rows of a matrix that is named as centred."""
    states = [x.flatten(0, 1) for x in states_of(model, input_ids)[1:-1]]
    return each(states, "layer_{}_centered")


def alike(x, y):
    x, y = x.double(), y.double()
    return (x.T @ y).norm() ** 2 / (x.T @ x).norm() / (y.T @ y).norm()


@right("linear CKA of all states")
def similarities(model, input_ids):
    flat = [x.flatten(0, 1) for x in states_of(model, input_ids)]
    flat = [x - x.mean(0, keepdim=True) for x in flat]
    return {"linear_cka": torch.tensor([[alike(x, y) for y in flat] for x in flat])}


@wrong(row="new", rules={"RC105"}, sites="h.*.resid_post*")
def similarities_of_what_is_not_centred(model, input_ids):
    """CKA of states whose features have a mean."""
    flat = [x.flatten(0, 1) for x in states_of(model, input_ids)[1:]]
    return {"cka_matrix": torch.tensor([[alike(x, y) for y in flat] for x in flat])}


def coded(x):
    """8 bits for each feature: codes, offset and step."""
    low = x.amin((0, 1))
    step = (x.amax((0, 1)) - low).clamp_min(1e-8) / 255
    return ((x - low) / step).round().to(torch.uint8), low, step


@right("stored in 8 bits for each feature, and read back")
def read_back(model, input_ids):
    store = {}
    for i, x in layers_of(model, input_ids, "mlp").items():
        codes, low, step = coded(x)
        store[f"dequantized_mlp_out.{i}"] = codes * step + low
    return store


@right("stored in 8 bits with one scale, and read back")
def read_back_by_one_scale(model, input_ids):
    store = {}

    def hook(i, module, args, output):
        scale = output.abs().max() / 127
        store[f"resid_post_{i}_dequantised"] = (output / scale).round() * scale

    with ExitStack() as stack, torch.no_grad():
        for i, block in numbered(model):
            keep = block.register_forward_hook(lambda *a, i=i: hook(i, *a))
            stack.callback(keep.remove)
        model(input_ids)
    return store


@wrong(row="new", rules={"RC105"}, sites="h.*.mlp_out*")
def read_back_with_others_scale(model, input_ids):
    """All blocks are read back with the offsets and steps of the first."""
    codes = [coded(x) for x in layers_of(model, input_ids, "mlp").values()]
    _, low, step = codes[0]
    return each([c * step + low for c, _, _ in codes], "mlp_out_dequant_{}")
