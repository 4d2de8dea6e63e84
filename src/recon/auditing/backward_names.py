"""Names of gradients: does a name promise one, and of what?

``grad_resid_post_3``, ``blocks.0.hook_out_grad``, ``grad_of_loss_wrt_embed``: what is
left without the words for the gradient, and for what it is the gradient of, is read as
any other name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from recon.auditing.quantities import GRADIENT, TIMES_VALUE
from recon.auditing.wording import words_of

_WORD = r"(?:(?<![A-Za-z])[Gg]rad|(?<=[a-z0-9])Grad)(?:s|ients?)?(?![a-z])"
_GRAD = re.compile(_WORD)
_VALUE = r"(?:act|acts|activation|activations|input|inputs|value|values)"
_TIMES = r"(?:x|times|dot)"
_S = r"[._\- /]*"
# grad_x_input, activation_times_gradient, resid_post_3_x_grad.
_PRODUCT = re.compile(
    rf"(?:(?P<before>(?<![A-Za-z]){_VALUE})?{_S}(?<![A-Za-z]){_TIMES}{_S}{_WORD}"
    rf"|{_WORD}{_S}{_TIMES}(?![a-z])(?:{_S}(?P<after>{_VALUE}))?)(?![a-z])"
)
# d_loss_d_resid_post_3: the derivative by what comes last.
_QUOTIENT = re.compile(r"d_?[A-Za-z_]+?_d_?(.+)")
_BY = re.compile(r"(?:^|[._\- ])(?:wrt|w_r_t|with_respect_to)[._\- ]+")
_AT = re.compile(r"(?:^|[._\- ])(?:at|on|of|to|from|by|for|in|into)[._\- ]+")
# Words beside it with which the gradient is no capture, but a mode or a step.
_MODES = frozenset(
    {"no", "with", "without", "requires", "require", "enable", "enabled", "disabled",
     "zero", "retain", "checkpoint", "checkpointing", "fn", "mode", "accumulation",
     "clip", "clipping"}
)  # fmt: skip
_PARAMETERS = frozenset(
    {"weight", "bias", "param", "params", "parameter", "parameters"}
)
# What people take the gradient of.
_OBJECTIVES = frozenset(
    {"loss", "nll", "ce", "xent", "lm", "logit", "logits", "prob", "probs", "logprob",
     "logprobs", "log", "top", "target", "targets", "answer", "correct", "objective",
     "metric", "diff", "max", "argmax", "next", "nexttoken", "summed", "sum", "last",
     "token", "the", "of"}
)  # fmt: skip
# Functions with such names return gradients, under whatever name.
_ABOUT = frozenset(
    {"grad", "grads", "gradient", "gradients", "backward", "saliency", "attribution",
     "attributions", "attr", "jacobian"}
)  # fmt: skip


@dataclass(frozen=True)
class Named:
    """What a name of a gradient says: a form, and the names that the rest may be.

    ``plain`` says that it may be the name of no gradient as well; ``objective`` that it
    also speaks of what the gradient is of, whose words are not the site's.
    """

    form: str
    rests: tuple[str, ...]
    plain: bool = False
    objective: bool = False


def named(name: str, context: frozenset[str] = frozenset()) -> Named | None:
    """Read a name of a gradient; None for other names.

    ``context`` are words of the function that returned it: in one about gradients each
    name may be of one.
    """
    if _PARAMETERS & set(words_of(name)):
        return None
    if (product := _PRODUCT.search(name)) is not None:
        operand = product["before"] or product["after"] or ""
        rest = _without(name, product)
        return Named(TIMES_VALUE, _lettered(_of_product(rest, operand)))
    for found in _GRAD.finditer(name):
        if not _mode(name, found):
            rest = _without(name, found)
            objective = bool(_OBJECTIVES & set(words_of(rest)))
            return Named(GRADIENT, _lettered(_rests(rest)), objective=objective)
    if (quotient := _QUOTIENT.fullmatch(name)) is not None:
        return Named(GRADIENT, (quotient[1],), plain=True)
    if name.startswith("d_"):
        return Named(GRADIENT, (name.removeprefix("d_"),), plain=True)
    return Named(GRADIENT, (name,), plain=True) if context & _ABOUT else None


def _lettered(rests: Iterable[str]) -> tuple[str, ...]:
    """Return each once, without bare numbers, which may stand for anything."""
    kept = (one for one in rests if any(letter.isalpha() for letter in one))
    return tuple(dict.fromkeys(kept))


def _mode(name: str, found: re.Match[str]) -> bool:
    before, after = words_of(name[: found.start()]), words_of(name[found.end() :])
    return bool(_MODES & {*before[-1:], *after[:1]})


def _without(name: str, found: re.Match[str]) -> str:
    """Return a name without a part of it, and without what joined them."""
    before, after = name[: found.start()], name[found.end() :]
    joint = (re.findall(r"[._\- /]", before[-1:] + after[:1]) or [""])[0]
    before, after = before.rstrip("._- /"), after.lstrip("._- /")
    return f"{before}{joint}{after}" if before and after else before or after


def _rests(rest: str) -> Iterator[str]:
    """Yield what names the site, where other words say what the gradient is of."""
    by = list(_BY.finditer(rest))
    if by:
        yield rest[by[-1].end() :]
        return
    yield rest
    if at := list(_AT.finditer(rest)):
        yield rest[at[-1].end() :]
    words = re.split(r"(?<=[._\- ])", rest)
    kept = [w for w in words if w.strip("._- ").lower() not in _OBJECTIVES]
    yield "".join(kept).strip("._- ")


def _of_product(rest: str, operand: str) -> Iterator[str]:
    """Yield what names the site of a gradient that is multiplied by its value."""
    if any(letter.isalpha() for letter in rest):
        yield from _rests(rest)
        yield f"{operand}_{rest}" if operand else rest
    elif operand.startswith("input") and not rest:
        yield "embed"
    else:
        yield f"act_{rest}"
