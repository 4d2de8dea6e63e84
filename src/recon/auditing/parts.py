"""Which part of a model the words of a loose name may mean, the likeliest first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from recon.auditing.wording import (
    ANY,
    ATTENTION,
    FINAL,
    HEADS,
    IN,
    LN_ONE,
    LN_TWO,
    MEMORY,
    MLP,
    NORM,
    OUT,
    POSITIONS,
    REDUCTIONS,
    RESIDUAL,
    STATES,
    STREAM,
    TABLE,
    WEAK,
)

# The linear maps of a block, as GPT-2 and other models call them: sets of words that
# each name one, what it reads, and what it computes.
_LINEAR: Sequence[tuple[Sequence[frozenset[str]], tuple[str, ...], tuple[str, ...]]]
_LINEAR = (
    ([frozenset({"proj", word}) for word in sorted(ATTENTION)],
     ("attn.z",), ("attn.out", "attn_out", "attn.qkv")),
    ([frozenset({"c", "attn"})], ("ln_1",), ("attn.qkv",)),
    ([frozenset({"o", "proj"}), frozenset({"w", "o"})],
     ("attn.z",), ("attn.out", "attn_out")),
    ([frozenset(words) for words in (
        ("proj", "up"), ("w", "up"), ("mlp", "w", "in"), ("fcone",), ("linearone",)
     )], ("ln_2",), ("mlp.pre",)),
    ([frozenset(words) for words in (
        ("proj", "down"), ("w", "down"), ("mlp", "w", "out"), ("fctwo",),
        ("lineartwo",), *(("proj", word) for word in sorted(MLP)),
     )], ("mlp.post",), ("mlp.out", "mlp_out")),
    ([frozenset({"fc"})], ("ln_2",), ("mlp.pre",)),
)  # fmt: skip


def _linear(words: frozenset[str]) -> tuple[str, ...]:
    """Return what a name that holds a linear map's name may mean."""
    for names, entering, leaving in _LINEAR:
        # What is before the last map of a part is not what it does with it.
        last = entering in (("attn.z",), ("mlp.post",))
        name = next((name for name in names if name <= words), None)
        if name == frozenset({"fc"}) and words & _ACT:
            continue  # the activation after it, or before
        if name is not None:
            # Whoever calibrates keeps a map's input under its weight's name.
            weight = "w" in name
            said = bool((words - name) & (_ENTERS | (_BEFORE if last else set())))
            return entering if said else (*leaving, *(entering if weight else ()))
    return ()


_ENTERS = frozenset({"in", "input", "inp", "inputs"})
_BEFORE = frozenset({"pre", "before"})
_AFTER = frozenset({"post", "after"})
_NORMED = NORM | {"normed", "normalized", "normalised", "layernormed"}
_ACT = frozenset(
    {"act", "acts", "activation", "activations", "neurons", "neuron", "gelu"}
)
_NEURON = frozenset({"act", "neurons", "neuron", "gelu"})
_EMBEDDED = frozenset({"embed", "embeds", "embedding", "embeddings", "emb"})
_CONTEXT = frozenset({"context", "contextual", "ctx"})
_KEY = frozenset({"k", "key", "keys"})
_VALUE = frozenset({"v", "value", "values"})
_MEANT = frozenset({"repr", "representation", "representations"})
_NORM_OF = {"resid_pre": ("ln_1",), "resid_mid": ("ln_2",)}


class _Rule(NamedTuple):
    """Parts that words mean which have one of each set, and none of ``lacks``."""

    parts: tuple[str, ...]
    needs: tuple[frozenset[str], ...]
    lacks: frozenset[str] = frozenset()


def _rule(
    parts: str, *needs: frozenset[str] | str, lacks: frozenset[str] = frozenset()
) -> _Rule:
    sets = (frozenset(n.split()) if isinstance(n, str) else n for n in needs)
    return _Rule(tuple(parts.split()), tuple(sets), lacks)


_RULES = (
    _rule("logits", "logits logit", lacks=ATTENTION),
    _rule("embed", POSITIONS, TABLE | {"plus", "sum"}),
    _rule("wpe", POSITIONS),
    _rule("wte", TABLE, lacks=_MEANT),
    _rule("wte", "token", "embed embedding"),
    _rule("resid_post embed", _EMBEDDED, _CONTEXT | WEAK),
    _rule("embed wte resid_post", _EMBEDDED),
    _rule("ln_f", FINAL, STATES, _NORMED),
    _rule("resid_post", FINAL, STATES),
    _rule("ln_f", "lnf final", _NORMED | {"lnf"}, lacks=ATTENTION | MLP),
    _rule("resid_post ln_f", "final", lacks=ATTENTION | MLP),
    _rule("ln_f", "ln", "f"),
    _rule("resid_pre", LN_ONE, IN),
    _rule("ln_1", LN_ONE),
    _rule("resid_mid", LN_TWO, IN),
    _rule("ln_2", LN_TWO),
    _rule("ln_1", "qkv", _ENTERS),
    _rule("attn.qkv", "qkv"),
    _rule("attn.scores", "softmax", _BEFORE | {"raw"}),
    _rule("attn.pattern", "softmax", ATTENTION | {"score", "scores", "qk"}),
    _rule("attn.pattern", "pattern patterns probs weights attentions"),
    _rule("attn.scores", "scores score"),
    _rule("attn.scores", "logits logit"),
    _rule("mlp.post attn.k", MEMORY, _KEY),
    _rule("mlp_out mlp.out attn.v", MEMORY, _VALUE),
    _rule("attn.z attn.v", _VALUE, "mixed weighted"),
    _rule("attn.q", "q query queries"),
    _rule("attn.k", _KEY),
    _rule("attn.v", _VALUE),
    _rule(" ".join((*HEADS, "attn.out", "attn_out")), "head heads", "sum summed"),
    _rule("attn.z", "z"),
    _rule("attn.z attn.out attn_out", "head heads", OUT),
    _rule(" ".join(HEADS), "head heads"),
    _rule("attn.z", _CONTEXT),
    _rule("resid_mid", ATTENTION, MLP),
    _rule("mlp.post mlp.pre", MLP, "mid middle"),
    _rule("resid_mid", "mid middle", lacks=_NORMED),
    _rule("resid_mid resid_post resid_pre", "intermediate", STREAM,
          lacks=MLP),
    _rule("mlp.post mlp.pre", "intermediate", lacks=STREAM),
    _rule("ln_2 mlp_out mlp.out", MLP, _NORMED),
    _rule("resid_mid", RESIDUAL, MLP, IN),
    _rule("mlp.pre ln_2 resid_mid", MLP, IN),
    _rule("resid_post mlp_out mlp.out", MLP, RESIDUAL),
    _rule("mlp.post mlp_out mlp.out", MLP, "post"),
    _rule("mlp.pre", "preact preacts preactivation"),
    _rule("mlp.pre resid_pre", _ACT, _BEFORE),
    _rule("mlp.post", "gelu", _AFTER),
    _rule("mlp.post mlp.pre mlp_out mlp.out", MLP | _NEURON, _ACT | {"hidden"}),
    _rule("mlp_out mlp.out", MLP, OUT),
    _rule("mlp_out mlp.out mlp.post mlp.pre", MLP),
    _rule("ln_2", ATTENTION, _NORMED, _AFTER),
    _rule("ln_1 attn_out attn.out", ATTENTION, _NORMED),
    _rule("resid_pre", RESIDUAL, ATTENTION, IN),
    _rule("ln_1 resid_pre", ATTENTION, IN),
    _rule("resid_mid attn_out attn.out", ATTENTION, STREAM),
    _rule("attn_out attn.out resid_mid", ATTENTION, _AFTER),
    _rule("attn_out attn.out", ATTENTION, OUT),
    _rule("attn_out attn.out attn.pattern attn.z", ATTENTION),
    _rule("ln_1 ln_2 resid_post", NORM, STATES),
    _rule("ln_1 ln_2", NORM),
    _rule("resid_pre", STATES, IN),
    _rule("resid_post", STATES),
)  # fmt: skip


def parts_meant(words: frozenset[str]) -> tuple[str, ...]:
    """Return the parts of the vocabulary that words may mean, the likeliest first."""
    words -= REDUCTIONS.keys() - {"sum", "summed"}
    if {"feed", "forward"} <= words:
        words |= {"feedforward"}
    if linear := _linear(words):
        return linear
    if words & _NORMED and words & RESIDUAL and not words & FINAL:
        # The length of the stream, or the stream after its normalisation.
        of = parts_meant(words - _NORMED)
        return (*of, *_NORM_OF.get(of[0], ("ln_1", "ln_2")))
    if words & ANY and words <= ANY | WEAK and not words & {"head", "heads"}:
        every = "resid_post mlp.post mlp_out mlp.out mlp.pre attn_out attn.out"
        return tuple(every.split())
    for rule in _RULES:
        if all(words & some for some in rule.needs) and not words & rule.lacks:
            return rule.parts
    return ()
