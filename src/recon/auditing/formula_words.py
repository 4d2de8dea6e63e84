"""Names that promise what a well-known formula makes of a site: an entropy, a rollout.

Each rule says which words ask for a formula, by its key in ``derivations``, and of
which parts it may be. Words such as ``prev`` stand for attention paid only beside a
word that says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

_ATTENTION = frozenset(
    {"attn", "attention", "attentions", "attns", "pattern", "patterns"}
)
_PAID = _ATTENTION | {"score", "scores", "mass"}
_PREDICTED = frozenset(
    {"logit", "logits", "lens", "pred", "preds", "prediction", "predictions", "vocab",
     "output", "next"}
)  # fmt: skip
_STREAM = frozenset({"resid", "residuals", "hidden", "states", "mlp", "tokens"})
_ENTROPY = frozenset({"entropy", "entropies"})
_PROBABLE = frozenset({"prob", "probs", "probability", "probabilities", "softmax"})
_LOG = frozenset({"log", "logs"})
_LOGPROBS = frozenset(
    {"logprob", "logprobs", "lprobs", "logprobability", "logprobabilities",
     "logsoftmax"}
)  # fmt: skip
_NORMS = {
    **dict.fromkeys(("lnone", "normone", "layernormone"), ("ln_1",)),
    **dict.fromkeys(("lntwo", "normtwo", "layernormtwo"), ("ln_2",)),
    "lnf": ("ln_f",),
    **dict.fromkeys(("ln", "layernorm"), ("ln_1", "ln_2")),
}
_DIVISOR = frozenset({"divisor", "denominator", "denom"})
_SCALE = frozenset({"scale", "scales", "scaling"})
_SPREAD = frozenset({"std", "stds", "sigma", "stdev", "rstd", "rsigma"})
_NORMALIZED = frozenset(
    {"normalized", "normalised", "normed", "xhat", "hat", "standardized",
     "standardised", "whitened"}
)  # fmt: skip
_UNSCALED = frozenset(
    {"before", "pre", "without", "no", "xhat", "hat", "unscaled", "raw"}
)
_AFFINE = frozenset({"weight", "gain", "gamma"})
_CENTERED = frozenset(
    {"centered", "centred", "demeaned", "debiased", "recentered", "recentred"}
)
_COLUMNS = frozenset({"column", "columns", "col", "cols", "cka", "cca", "svcca"})
_DEQUANTIZED = frozenset(
    {"dequantized", "dequantised", "dequant", "dequantize", "dequantise",
     "undequantized"}
)  # fmt: skip
_LOSS = frozenset({"loss", "losses"})
_OF_TEXT = frozenset(
    {"token", "tokens", "next", "lm", "ce", "cross", "per", "position", "nll", "model"}
)
_OTHER_LOSS = frozenset(
    {"sae", "recon", "reconstruction", "kl", "mse", "aux", "probe", "recovered"}
)
_SURPRISE = frozenset({"nll", "surprisal", "surprisals"})
_SHARE = frozenset({"attribution", "attributions", "contribution", "contributions"})
_VECTORS = frozenset(
    {"norm", "normed", "normalized", "normalised", "vector", "vectors", "vec", "vecs",
     "direction", "directions", "dir", "dirs", "length"}
)  # fmt: skip
_STATES = frozenset({"resid", "residual", "stream", "embed", "state", "states"})
# Words that say how a form was made, and not of what.
FORMULA_WORDS = (
    _CENTERED | _COLUMNS | _DEQUANTIZED | _SHARE
    | {"matrix", "matrices", "unit", "dla", "direct", "logit", "vector", "vectors",
       "vec", "vecs", "direction", "directions", "dir", "dirs"}
)  # fmt: skip

_ENTERING = frozenset({"in", "input", "inp", "pre", "before"})

Promised = tuple[str, tuple[str, ...]]


def formulas_meant(words: Sequence[str]) -> list[Promised]:
    """Return the formulas that a name may promise, each with the parts it may be of.

    No parts: of those that the name's other words mean.
    """
    bare = frozenset(word for word in words if not word.isdigit())
    if bare & {"grad", "grads", "gradient", "gradients"}:
        return []
    return [
        *_of_patterns(words, bare),
        *_of_predictions(bare),
        *_of_norms(bare),
        *_of_any(words, bare),
    ]


def only_formulas(promised: Sequence[Promised], words: Sequence[str]) -> bool:
    """Whether no site as it is, nor a mean of it, may be what a name promises.

    ``first_token_attn`` may well be the attention's output at the first token.
    """
    forms = {form for form, _ in promised}
    site_too = forms & {"weight on the first token"} and "first" in words
    return bool(forms) and not site_too and "deviation of what enters" not in forms


def _of_patterns(order: Sequence[str], words: frozenset[str]) -> Iterator[Promised]:
    of = ("attn.pattern",)
    if words & _ENTROPY and not words & _PREDICTED:
        unit = next((f" in {u}" for u in ("nats", "bits") if u in words), "")
        yield f"entropy of each query{unit}", of
    if "rollout" in words and not words & (_PREDICTED | _STREAM):
        kept = words & {"residual", "identity", "skip"} and "without" not in words
        yield f"rollout{' with the residual' if kept else ''}", of
    # Weighted values are what attention mixes.
    by_value = set(pairwise(order)) & {("value", "weighted"), ("values", "weighted")}
    if by_value and words & (_ATTENTION | {"norm"}):
        yield "times the norm of each value", of
    heads = "token" in words and bool(words & {"head", "heads"})
    if words & {"prev", "previous"} and (words & _PAID or heads):
        yield "weight on the previous token", of
    if words & {"sink", "sinks"} or (words & {"first", "bos"} and words & _PAID):
        yield "weight on the first token", of
    own = words & {"diag", "diagonal", "own", "current", "itself"} and words & _PAID
    if "induction" in words:
        yield "induction score", of
    # self_attn is the module.
    if own or ("self" in words and words & {"score", "scores", "mass"}):
        yield "weight on the token itself", of


def _of_predictions(words: frozenset[str]) -> Iterator[Promised]:
    if words & (_ATTENTION | _ENTERING | {"router", "probe", "scores", "head"}):
        return
    of = ("resid_post",) if "lens" in words else ("logits", "resid_post")
    if "kl" in words and not words & _LOSS and "lens" in words:
        yield "as divergence from the prediction", ("resid_post",)
        return
    told = words & _LOSS and (words & _OF_TEXT or words <= _LOSS)
    if words & _SURPRISE or (told and not words & _OTHER_LOSS):
        yield "as loss of the next token", of
        return
    if words & _LOGPROBS or (words & _LOG and words & _PROBABLE):
        yield "as log-probabilities", of
    elif words & _PROBABLE:
        yield "as probabilities", of
    elif words & _ENTROPY:
        yield "entropy of the prediction", of


def _of_norms(words: frozenset[str]) -> Iterator[Promised]:
    of = next((parts for word, parts in _NORMS.items() if word in words), ())
    of = ("ln_f",) if of and words & {"f", "final"} else of
    # Names of gradients never come here.
    if not of or "resid" in words or (words & _AFFINE and not words & _UNSCALED):
        return
    if words & _DIVISOR:
        yield "divisor of the LayerNorm", of
    elif words & _NORMALIZED:
        plain = bool(words & _UNSCALED)
        yield f"normalised{' before weight and bias' if plain else ''}", of
    elif words & _SCALE:
        yield "scale of the LayerNorm", of
    elif words & _SPREAD:
        yield "deviation of what enters", of


def _of_any(order: Sequence[str], words: frozenset[str]) -> Iterator[Promised]:
    # A unit is a neuron, too.
    unit = any(one == "unit" and after in _VECTORS for one, after in pairwise(order))
    if unit or (list(order[-1:]) == ["unit"] and words & _STATES):
        yield "at unit length", ()
    direct = "direct" in words or "logit" in words
    if "dla" in words or (direct and words & _SHARE and words & {"logit", "logits"}):
        yield "as its share of a logit", ()
    if "cka" in words and words & {"linear", "matrix", "states", "layers", "blocks"}:
        yield "linear CKA of all states", ("resid_post",)
    elif words & _DEQUANTIZED:
        yield "after quantisation", ()
    elif words & _CENTERED and not words & {"unembed", "logits", "weights", *_NORMS}:
        if "features" not in words and (words & _COLUMNS or "feature" in words):
            yield "centred over the samples", ()
        else:
            yield "centred", ()
