"""Hook code of every kind, right and wrong: what an audit is measured on.

``RIGHT``, ``EDITS`` and ``WRONG`` are lists of cases, filled by the modules of the
same names and by ``formulas``, ``gradients``, ``packed`` and ``patching`` when they
are imported, which is done here.
"""

from tests.corpus import edits, formulas, gradients, packed, patching, right, wrong
from tests.corpus.cases import EDITS, RIGHT, WRONG, Case, Edit, Fault, Right, Wrong

__all__ = [
    "EDITS",
    "RIGHT",
    "WRONG",
    "Case",
    "Edit",
    "Fault",
    "Right",
    "Wrong",
    "edits",
    "formulas",
    "gradients",
    "packed",
    "patching",
    "right",
    "wrong",
]
