"""Hypothesis strategies for tests of code that captures; needs hypothesis itself."""

from recon.testing.faults import Faulty, faulty
from recon.testing.strategies import (
    Prompt,
    Recipe,
    Run,
    gpt2_configs,
    gpt2_inputs,
    models,
    runs,
)

__all__ = [
    "Faulty",
    "Prompt",
    "Recipe",
    "Run",
    "faulty",
    "gpt2_configs",
    "gpt2_inputs",
    "models",
    "runs",
]
