"""Each identity in a formula: what a cell of the map stands for."""

from __future__ import annotations

# Docs/verify.md lists the same identities, and a test compares the two lists.
LAWS = {
    "wte": "wte[ids] = wte",
    "wpe": "wpe[positions] = wpe",
    "token_type": "wte[token_type_ids] = token_type",
    "embed": "drop(wte + wpe (+ token_type)) = embed",
    "chain": "resid_post of the block before (or embed) = resid_pre",
    "ln_1": "LayerNorm(resid_pre; weight, bias, eps) = ln_1",
    "ln_2": "LayerNorm(resid_mid; weight, bias, eps) = ln_2",
    "ln_f": "LayerNorm(resid_post of the last block; weight, bias, eps) = ln_f",
    "qkv": "ln_1 W + b = attn.qkv",
    "split": "[q k v] = attn.qkv, by head",
    "cache": "k, v = the cache's entries for this step",
    "pattern": "dropout(softmax(q kᵀ scaling + mask)) = attn.pattern",
    "z": "attn.pattern v = attn.z; fused: attention(q, k, v) = attn.z",
    "attn_out": "attn.z W + b = attn.out; dropout(attn.out) = attn_out",
    "resid_cross": "attn_out + resid_pre = cross.resid_pre",
    "cross_ln": "LayerNorm(cross.resid_pre; weight, bias, eps) = cross.ln",
    "cross_q": "cross.ln W + b = cross.q",
    "cross_kv": "encoder states W + b = cross.kv",
    "cross_cache": "cross.k, cross.v = the cache's entries",
    "cross_pattern": "dropout(softmax(q kᵀ scaling + mask)) = cross.pattern",
    "cross_z": "cross.pattern v = cross.z; fused: attention(q, k, v) = cross.z",
    "cross_out": "cross.z W + b = cross.out; dropout(cross.out) = cross_out",
    "resid_mid": "attn_out (or cross_out) + the stream before it = resid_mid",
    "mlp_pre": "ln_2 W + b = mlp.pre",
    "mlp_post": "activation(mlp.pre) = mlp.post",
    "mlp_out": "mlp.post W + b = mlp.out; dropout(mlp.out) = mlp_out",
    "resid_post": "resid_mid + mlp_out = resid_post",
    "logits": "ln_f W_U = logits",
    "hidden_states": "embeddings and updates, summed in the model's order = the entry; "
    "the last through ln_f unless it is untied",
    "attentions": "the pattern that was returned = attn.pattern",
    "cross_attentions": "the pattern that was returned = cross.pattern",
    "past_key_values": "the cache that was returned = k, v",
    "last_hidden_state": "the state that was returned = ln_f",
    "undisturbed": "what the model returns with capture = what it returns without",
    "fired": "each hooked module runs once in a pass",
    "predicted": "some identity says what the captured tensor must be",
}


def law(identity: str) -> str:
    """Return an identity's formula; empty for one that has none."""
    return LAWS.get(identity, "")
