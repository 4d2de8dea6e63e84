"""What is said of one tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from recon.auditing.claims import Claim, Reading
from recon.auditing.rules import Severity


@dataclass(frozen=True, eq=False)
class Judgement:
    """What is said of one tensor: right or wrong, by which rule, and why.

    ``notes`` are (rule, sentence) pairs that hold for a right tensor, too; ``exact``
    says that it is something bit for bit, ``held`` at which index of an axis (B, T, H)
    its site is taken, ``form`` how it is made of its site (a mean
    over tokens, say), ``by`` what captures from elsewhere were
    judged by: the model's own ``run``, or ``certify``. Judgements of one ``cause`` are
    told as one finding; ``mend`` is advice that fits better than the rule's. A gradient
    is that of the backward ``passes`` with these numbers, from 1. A wrong capture that
    ``follows`` is what the model makes of others that are wrong.
    """

    name: str
    tensor: Tensor
    claim: Claim
    reading: Reading | None = None
    rule: str = ""
    sentence: str = ""
    found: str = ""
    severity: Severity | None = None
    evidence: Mapping[str, float | int | str] = field(default_factory=dict)
    notes: tuple[tuple[str, str], ...] = ()
    exact: bool = False
    held: Mapping[str, int] = field(default_factory=dict)
    form: str = ""
    by: Literal["", "certify", "run"] = ""
    cause: str = ""
    mend: str = ""
    passes: tuple[int, ...] = ()
    follows: bool = False

    @property
    def right(self) -> bool:
        """Whether the tensor is what its name says."""
        return not self.rule
