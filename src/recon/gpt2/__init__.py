"""GPT-2 in Hugging Face transformers: the only package that knows that library.

It says where each site lives, which weights and constants make it, what the running
version does differently, and what the model itself returns as its hidden states.
A second architecture is a second package like this one.
"""

from recon.gpt2.hooking import passages, plan
from recon.gpt2.interruption import InterruptionError, interrupted
from recon.gpt2.known import of_its_own
from recon.gpt2.laws import identities, identity_of, stage_identities
from recon.gpt2.modules import base
from recon.gpt2.passes import SUPPORTED_ATTENTION, with_weights
from recon.gpt2.reference import (
    Reference,
    hidden_states_problem,
    hooks_of_its_own,
    is_own_capture,
    reference,
    require_inputs,
    require_names,
    sparing,
)

__all__ = [
    "SUPPORTED_ATTENTION",
    "InterruptionError",
    "Reference",
    "base",
    "hidden_states_problem",
    "hooks_of_its_own",
    "identities",
    "identity_of",
    "interrupted",
    "is_own_capture",
    "of_its_own",
    "passages",
    "plan",
    "reference",
    "require_inputs",
    "require_names",
    "sparing",
    "stage_identities",
    "with_weights",
]
