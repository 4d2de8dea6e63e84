"""The words of loose names: which part they may mean, and what else they promise."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

NUMBER = re.compile(r"\d+")
WORD = re.compile(r"[A-Za-z]+|\d+")


def plain(name: str) -> str:
    """Write the numbers that belong to a part, as in ``ln_1``, in letters."""

    def spelt(found: re.Match[str]) -> str:
        return f"{found[1]}{'one' if found[2] == '1' else 'two'}"

    told = re.sub(r"(?i)(?<![a-z])l[12]_?norm", "lpnorm", name)
    told = re.sub(r"(?i)(ln)_?([12])(?!\d)", spelt, told)
    told = re.sub(r"(?i)(norm|layernorm)([12])(?!\d)", spelt, told)
    # fc_2 alone, or q_norm_2, may well be that of block 2.
    if len(NUMBER.findall(told)) > 1:
        told = re.sub(r"(?i)(norm|layernorm)_([12])(?!\d)", spelt, told)
        told = re.sub(r"(?i)(fc|linear)_?([12])(?!\d)", spelt, told)
    return told


def words_of(name: str) -> list[str]:
    """Split ``hL3_attnOut`` into lower-case words and numbers."""
    return [word.lower() for word in WORD.findall(split(name))]


def split(name: str) -> str:
    """Put spaces between the words of ``attnOut``."""
    return re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", plain(name))


STATES = frozenset(
    (
        "layer", "layers", "block", "blocks", "h", "l", "hidden", "hiddens", "hs",
        "state", "states", "resid", "residual", "stream", "acts", "activation",
        "activations",
    )
)  # fmt: skip
STREAM = frozenset({"resid", "residual", "stream", "hidden", "state", "states"})
FINAL = frozenset({"last", "final"})
RESIDUAL = frozenset({"resid", "residual", "stream"})
NORM = frozenset({"ln", "norm", "layernorm", "lnf"})
LN_ONE = frozenset({"lnone", "normone", "layernormone"})
LN_TWO = frozenset({"lntwo", "normtwo", "layernormtwo"})
TABLE = frozenset({"wte", "tok"})
POSITIONS = frozenset({"wpe", "pos", "position", "positional"})
# Where a token stands, in a name that says which block.
PLACES = frozenset({"pos", "position", "positions"})
# Words for whatever a block computes.
ANY = frozenset({"act", "acts", "activation", "activations"})
# Words that name a block, and not what of it.
WEAK = frozenset({"layer", "layers", "block", "blocks", "h", "l", "head", "heads"})
HEADS = ("attn.z", "attn.pattern", "attn.q", "attn.k", "attn.v", "attn.scores")
# There are probabilities and weights of attention, and of much else.
WEIGHTS = frozenset({"prob", "probs", "weights", "softmax"})
_OF_ANYTHING = WEIGHTS | {"preds", "predictions"}
ATTENTION = frozenset({"attn", "att", "attention", "attentions", "attns", "sa", "mha"})
MLP = frozenset({"mlp", "ffn", "ff", "feedforward", "mlps"})
# Feed-forward layers are key-value memories (Geva et al., 2021), which ROME edits.
MEMORY = MLP | {"memory", "memories", "rome", "memit", "fact", "facts"}
IN = frozenset({"in", "input", "inp", "inputs", "pre", "before"})
OUT = frozenset({"out", "output", "outputs", "post", "after"})


def of_anything(words: frozenset[str]) -> bool:
    """Whether words such as ``probs`` stand without any for attention."""
    return bool(words & _OF_ANYTHING) and not words & (ATTENTION | IN)


# Words for a pass that nothing was done to.
CLEAN = frozenset(
    {"clean", "original", "unedited", "unsteered", "unablated", "unpatched"}
)
# All words whose meaning is known; a name that holds others may mean anything.
KNOWN = (
    STATES
    | WEAK
    | ATTENTION
    | MLP
    | IN
    | OUT
    | CLEAN
    | frozenset(
        (
            "text", "logits", "logit", "wpe", "pos", "position", "positional", "wte",
            "tok", "token", "tokens", "embed", "embedding", "embeddings", "emb", "lnf",
            "ln", "f", "final", "lnone", "normone", "layernormone", "lntwo",
            "normtwo", "layernormtwo", "fc", "c", "proj", "qkv", "pattern",
            "patterns", "probs", "weights", "scores", "score", "q", "query",
            "queries", "k", "key", "keys", "v", "value", "values", "z", "mid",
            "middle", "act", "acts", "neurons", "neuron", "gelu", "norm",
            "layernorm", "last", "first", "mean", "avg", "average", "pooled", "max",
            "min", "var", "variance", "std",
            "row", "rows", "sample", "example", "prompt", "batch", "b", "t", "d",
            "transformer", "gpt", "model", "decoder", "hook", "feature", "features",
            "feat", "feats", "vector", "vec", "vectors", "repr", "representation",
            "representations", "cache", "captured", "capture", "store", "stored",
            "tensor", "tensors", "data", "result", "results", "number", "num", "no",
            "idx", "index", "w", "o", "up", "down", "fcone", "fctwo", "linearone",
            "lineartwo", "intermediate", "lens", "lpnorm", "prob",
            "over", "across", "along", "of", "the", "per", "all", "each",
            "at", "in", "from", "for", "softmax", "normed", "normalized", "feed",
            "forward", "write", "update", "matrix", "context", "mixed",
            "weighted",
        )
    )
)  # fmt: skip


TOKEN = frozenset({"tok", "token", "pos", "position"})
_ENDS = {"last": "last", "final": "last", "first": "first"}
REDUCTIONS = {
    "mean": "averaged", "avg": "averaged", "average": "averaged",
    "averaged": "averaged", "max": "largest", "maximum": "largest",
    "sum": "summed", "summed": "summed", "min": "smallest", "minimum": "smallest",
    "var": "variance", "variance": "variance", "std": "deviation",
    "lpnorm": "as the norm",
}  # fmt: skip


def promised_token(words: Sequence[str]) -> str:
    """Return which token ``last_token_resid`` and its like promise, if any."""
    pairs = pairwise(words)
    return next((_ENDS[a] for a, b in pairs if a in _ENDS and b in TOKEN), "")


def promised_reduction(words: Sequence[str]) -> str:
    """Return the one kind of reduction that a name promises, if any."""
    kinds = {REDUCTIONS[word] for word in words if word in REDUCTIONS}
    return kinds.pop() if len(kinds) == 1 else ""


_AXES = {
    **dict.fromkeys(("row", "rows", "batch", "prompt", "prompts", "sample"), "rows"),
    **dict.fromkeys(("samples", "example", "examples"), "rows"),
    **dict.fromkeys(("token", "tokens", "pos", "positions", "seq", "time"), "tokens"),
    **dict.fromkeys(("head", "heads"), "heads"),
}


def promised_axis(words: Sequence[str]) -> str:
    """Return what ``mean_over_heads`` and its like are to be taken over, if said."""
    after = ("over", "across", "along")
    said = {_AXES[b] for a, b in pairwise(words) if a in after and b in _AXES}
    return said.pop() if len(said) == 1 else ""
