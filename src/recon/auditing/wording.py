"""The words of loose names: which part they may mean, and what else they promise."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

_NUMBER = re.compile(r"\d+")


def plain(name: str) -> str:
    """Write the numbers that belong to a part, as in ``ln_1``, in letters."""

    def spelt(found: re.Match[str]) -> str:
        return f"{found[1]}{'one' if found[2] == '1' else 'two'}"

    spelt_out = re.sub(r"(?i)(?<![a-z])l[12]_?norm", "lpnorm", name)
    spelt_out = re.sub(r"(?i)(ln|norm|layernorm)_?([12])(?!\d)", spelt, spelt_out)
    # fc_2 alone may well be that of block 2.
    if len(_NUMBER.findall(spelt_out)) > 1:
        spelt_out = re.sub(r"(?i)(fc|linear)_?([12])(?!\d)", spelt, spelt_out)
    return spelt_out


def words_of(name: str) -> list[str]:
    """Split ``hL3_attnOut`` into lower-case words and numbers."""
    spaced = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", plain(name))
    return [word.lower() for word in re.findall(r"[A-Za-z]+|\d+", spaced)]


STATES = frozenset(
    (
        "layer", "layers", "block", "blocks", "h", "l", "hidden", "hiddens", "hs",
        "state", "states", "resid", "residual", "stream", "acts", "activation",
        "activations",
    )
)  # fmt: skip
_STREAM = frozenset({"resid", "residual", "stream", "hidden", "state", "states"})
FINAL = frozenset({"last", "final"})
RESIDUAL = frozenset({"resid", "residual", "stream"})
_NORM = frozenset({"ln", "norm", "layernorm", "lnf"})
_LN_ONE = frozenset({"lnone", "normone", "layernormone"})
_LN_TWO = frozenset({"lntwo", "normtwo", "layernormtwo"})
_TABLE = frozenset({"wte", "tok"})
_POSITIONS = frozenset({"wpe", "pos", "position", "positional"})
# Words for whatever a block computes.
_ANY = frozenset({"act", "acts", "activation", "activations"})
# Words that name a block, and not what of it.
WEAK = frozenset({"layer", "layers", "block", "blocks", "h", "l", "head", "heads"})
HEADS = ("attn.z", "attn.pattern", "attn.q", "attn.k", "attn.v", "attn.scores")
# There are probabilities and weights of attention, and of much else.
WEIGHTS = frozenset({"prob", "probs", "weights"})
_OF_ANYTHING = WEIGHTS | {"preds", "predictions"}
_ATTENTION = frozenset({"attn", "attention", "attentions", "attns", "sa", "mha"})
_MLP = frozenset({"mlp", "ffn", "ff", "feedforward", "mlps"})
IN = frozenset({"in", "input", "inp", "inputs", "pre", "before"})
_OUT = frozenset({"out", "output", "outputs", "post", "after"})


def of_anything(words: frozenset[str]) -> bool:
    """Whether words such as ``probs`` stand without any for attention."""
    return bool(words & _OF_ANYTHING) and not words & _ATTENTION


# All words whose meaning is known; a name that holds others may mean anything.
KNOWN = (
    STATES
    | WEAK
    | _ATTENTION
    | _MLP
    | IN
    | _OUT
    | frozenset(
        (
            "logits", "logit", "wpe", "pos", "position", "positional", "wte", "tok",
            "token", "tokens", "embed", "embedding", "embeddings", "emb", "lnf",
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
            "lineartwo", "intermediate", "lens", "lpnorm", "plus", "prob",
            "over", "across", "along", "of", "the", "per", "all", "each",
            "at", "in", "from", "for",
        )
    )
)  # fmt: skip


_TOKEN = frozenset({"tok", "token", "pos", "position"})
_ENDS = {"last": "last", "final": "last", "first": "first"}
_REDUCTIONS = {
    "mean": "averaged", "avg": "averaged", "average": "averaged",
    "averaged": "averaged", "max": "largest", "maximum": "largest",
    "sum": "summed", "summed": "summed", "min": "smallest", "minimum": "smallest",
    "var": "variance", "variance": "variance", "std": "deviation",
    "lpnorm": "as the norm",
}  # fmt: skip


def promised_token(words: Sequence[str]) -> str:
    """Return which token ``last_token_resid`` and its like promise, if any."""
    pairs = pairwise(words)
    return next((_ENDS[a] for a, b in pairs if a in _ENDS and b in _TOKEN), "")


def promised_reduction(words: Sequence[str]) -> str:
    """Return the one kind of reduction that a name promises, if any."""
    kinds = {_REDUCTIONS[word] for word in words if word in _REDUCTIONS}
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


# The linear maps of a block, as GPT-2 and other models call them: sets of words that
# each name one, what it reads, and what it computes.
_LINEAR: Sequence[tuple[Sequence[frozenset[str]], tuple[str, ...], tuple[str, ...]]]
_LINEAR = (
    ([frozenset({"proj", word}) for word in sorted(_ATTENTION)],
     ("attn.z",), ("attn.out", "attn_out", "attn.qkv")),
    ([frozenset({"c", "attn"})], ("ln_1",), ("attn.qkv",)),
    ([frozenset({"o", "proj"}), frozenset({"w", "o"})],
     ("attn.z",), ("attn.out", "attn_out")),
    ([frozenset(words) for words in (
        ("proj", "up"), ("w", "up"), ("mlp", "w", "in"), ("fcone",), ("linearone",)
     )], ("ln_2",), ("mlp.pre",)),
    ([frozenset(words) for words in (
        ("proj", "down"), ("w", "down"), ("mlp", "w", "out"), ("fctwo",),
        ("lineartwo",), *(("proj", word) for word in sorted(_MLP)),
     )], ("mlp.post",), ("mlp.out", "mlp_out")),
    ([frozenset({"fc"})], ("ln_2",), ("mlp.pre",)),
)  # fmt: skip


def _linear(words: frozenset[str]) -> tuple[str, ...]:
    """Return what a name that holds a linear map's name may mean."""
    for names, entering, leaving in _LINEAR:
        name = next((name for name in names if name <= words), None)
        if name is not None:
            # Whoever calibrates keeps a map's input under its weight's name.
            weight = "w" in name
            said = bool((words - name) & {"in", "input", "inp", "inputs"})
            return entering if said else (*leaving, *(entering if weight else ()))
    return ()


def parts_meant(words: frozenset[str]) -> tuple[str, ...]:
    """Return the parts of the vocabulary that words may mean, the likeliest first."""
    if linear := _linear(words):
        return linear
    if "norm" in words and words & RESIDUAL:
        # The length of the stream, or the stream after its normalisation.
        return (*parts_meant(words - {"norm"}), "ln_1", "ln_2")
    rules: Sequence[tuple[bool, tuple[str, ...]]] = (
        (bool(words & _ANY) and words <= _ANY | WEAK,
         ("resid_post", "mlp.post", "mlp_out", "mlp.out", "mlp.pre", "attn_out",
          "attn.out")),
        (bool(words & {"logits", "logit"}), ("logits",)),
        (bool(words & _POSITIONS) and bool(words & _TABLE), ("embed",)),
        (bool(words & _POSITIONS), ("wpe",)),
        (bool(words & _TABLE), ("wte",)),
        ({"token", "embed"} <= words or {"token", "embedding"} <= words, ("wte",)),
        (bool(words & {"embed", "embedding", "embeddings", "emb"}), ("embed", "wte")),
        (bool(words & FINAL) and bool(words & STATES) and not words & _NORM,
         ("resid_post",)),
        (bool(words & {"lnf", "final"}) and not words & (_ATTENTION | _MLP),
         ("ln_f",)),
        ({"ln", "f"} <= words, ("ln_f",)),
        (bool(words & _LN_ONE), ("resid_pre",) if words & IN else ("ln_1",)),
        (bool(words & _LN_TWO), ("resid_mid",) if words & IN else ("ln_2",)),
        ("qkv" in words, ("attn.qkv",)),
        (bool(words & {"pattern", "patterns", "probs", "weights"}), ("attn.pattern",)),
        (bool(words & {"attentions"}), ("attn.pattern",)),
        (bool(words & {"scores", "score"}), ("attn.scores",)),
        (bool(words & {"q", "query", "queries"}), ("attn.q",)),
        (bool(words & {"k", "key", "keys"}), ("attn.k",)),
        (bool(words & {"v", "value", "values"}), ("attn.v",)),
        (bool(words & {"z", "head", "heads"}), HEADS),
        (bool(words & {"mid", "middle"}), ("resid_mid",)),
        ("intermediate" in words and not words & _MLP and bool(words & _STREAM),
         ("resid_mid", "resid_post", "resid_pre")),
        ("intermediate" in words and not words & _STREAM, ("mlp.post", "mlp.pre")),
        (bool(words & _MLP) and bool(words & IN), ("mlp.pre", "ln_2", "resid_mid")),
        (bool(words & _MLP) and "post" in words, ("mlp.post", "mlp_out", "mlp.out")),
        (bool(words & (_MLP | {"act", "neurons", "neuron", "gelu"})) and
         bool(words & {"act", "acts", "activation", "neurons", "neuron", "gelu",
                       "hidden", "activations"}),
         ("mlp.post", "mlp.pre", "mlp_out", "mlp.out")),
        (bool(words & _MLP) and bool(words & _OUT), ("mlp_out", "mlp.out")),
        (bool(words & _MLP), ("mlp_out", "mlp.out", "mlp.post", "mlp.pre")),
        (bool(words & _ATTENTION) and bool(words & IN), ("ln_1", "resid_pre")),
        (bool(words & _ATTENTION) and bool(words & _OUT), ("attn_out", "attn.out")),
        (bool(words & _ATTENTION), ("attn_out", "attn.out", "attn.pattern", "attn.z")),
        (bool(words & {"norm", "ln", "layernorm"}), ("ln_1", "ln_2")),
        (bool(words & STATES) and bool(words & IN), ("resid_pre",)),
        (bool(words & STATES), ("resid_post",)),
    )  # fmt: skip
    return next((parts for holds, parts in rules if holds), ())
