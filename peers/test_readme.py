"""Every cell of README's table of libraries: the installed version, and an audit."""

import re
from importlib.metadata import version
from pathlib import Path

import pytest

import recon
from peers import with_captum, with_nnsight, with_pyvene, with_transformer_lens

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
ROWS = re.findall(r"^\| ([a-z-]+) (\d[\d.]*) \| (.*) \|$", README, flags=re.MULTILINE)
CAPTURES = {
    "transformer-lens": with_transformer_lens.capture,
    "nnsight": with_nnsight.capture,
    "pyvene": with_pyvene.capture,
    "captum": with_captum.capture,
}


def cells(library):
    """Return what README's table must say of a library, from an audit of it."""
    report = recon.audit(CAPTURES[library], recon.load_model().model, effort="quick")
    statuses = [tensor.status for tensor in report.tensors]
    counts = [statuses.count(kind) for kind in ("right", "wrong", "unclaimed")]
    return " | ".join(map(str, [len(statuses), *counts, report.verdict]))


def test_the_readme_has_a_row_for_each_library():
    assert [library for library, _, _ in ROWS] == list(CAPTURES)


@pytest.mark.parametrize(("library", "installed", "told"), ROWS)
def test_a_row_of_the_readme_is_what_an_audit_finds(library, installed, told):
    assert version(library) == installed
    assert cells(library) == told
