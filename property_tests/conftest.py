"""Profiles of Hypothesis, and shapes checked at run time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook


def _modules_with_shapes() -> list[str]:
    """Name the modules of recon that annotate shapes.

    The hook type-checks a nested function anew at each call of its outer one: with
    all of recon hooked, one verification took 0.45 s in place of 0.03 s.
    """
    spec = find_spec("recon")
    assert spec is not None
    (package,) = spec.submodule_search_locations or ()
    return [
        ".".join(["recon", *path.relative_to(package).with_suffix("").parts])
        for path in Path(package).rglob("*.py")
        if "from jaxtyping import" in path.read_text(encoding="utf-8")
    ]


install_import_hook(_modules_with_shapes(), "beartype.beartype")

# Ours have names of their own: where CI is set, Hypothesis loads a profile "ci" that
# it brings along. Models are built while drawing, which is slow and meant to be.
_PROFILES = {"quick": (8, 15), "ci": (50, 30), "deep": (1000, 50)}
for _name, (_examples, _steps) in _PROFILES.items():
    settings.register_profile(
        f"recon-{_name}",
        max_examples=_examples,
        stateful_step_count=_steps,
        deadline=None,
        derandomize=_name == "ci",
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
settings.load_profile(f"recon-{os.environ.get('RECON_PROFILE', 'quick')}")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Compute with one thread: for tensors this small more only wait for each other.

    With two on a busy machine a forward pass took 190 ms in place of 2.
    """
    import torch  # not before the hook above is in place

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
