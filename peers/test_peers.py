"""Each library's captures are what their names say, and planted faults are found."""

import pytest
from torchlens.backends.torch.wrappers import unwrap_torch, wrap_torch

from peers import (
    with_baukit,
    with_captum,
    with_nnsight,
    with_pyvene,
    with_torchlens,
    with_transformer_lens,
)

RIGHT = [
    (with_baukit.capture, "hf"),
    (with_captum.capture, "hf"),
    (with_nnsight.capture, "nnsight"),
    (with_nnsight.capture_cached, "nnsight"),
    (with_pyvene.capture, "pyvene"),
    (with_pyvene.capture_paths, "pyvene"),
    (with_torchlens.capture, "torchlens"),
    (with_transformer_lens.capture, "transformer-lens"),
    (with_transformer_lens.capture_processed, "transformer-lens"),
    (with_transformer_lens.capture_split, "transformer-lens"),
]
# A site of block 1 and another that a swap of the two must show, by library.
SWAPS = [
    (with_captum.capture, "hf", "transformer.h.1.mlp", "transformer.h.1.ln_2"),
    (
        with_nnsight.capture_cached,
        "nnsight",
        "model.transformer.h.1.mlp",
        "model.transformer.h.1.ln_2",
    ),
    (
        with_pyvene.capture_paths,
        "pyvene",
        "comp_transformer_h[1]_mlp_output_unit_pos_nunit_1#0",
        "comp_transformer_h[1]_ln_2_output_unit_pos_nunit_1#0",
    ),
    (
        with_torchlens.capture,
        "torchlens",
        "transformer.h.1.mlp",
        "transformer.h.1.ln_2",
    ),
    (
        with_transformer_lens.capture_processed,
        "transformer-lens",
        "blocks.1.attn.hook_q",
        "blocks.1.attn.hook_k",
    ),
]


def named(case):
    return f"{case.__module__.partition('.with_')[2]}-{case.__name__}"


@pytest.mark.parametrize(
    ("function", "names"), RIGHT, ids=[named(function) for function, _ in RIGHT]
)
def test_what_a_library_captures_is_what_its_names_say(audited, function, names):
    report = audited(function, names).check()
    statuses = {tensor.status for tensor in report.tensors}
    assert "right" in statuses
    assert "wrong" not in statuses


@pytest.mark.parametrize(
    ("function", "names"), RIGHT, ids=[named(function) for function, _ in RIGHT]
)
def test_no_vocabulary_need_be_chosen(audited, function, names):
    assert audited(function).verdict == "clean"


@pytest.mark.parametrize(
    ("function", "names", "one", "other"),
    SWAPS,
    ids=[named(function) for function, *_ in SWAPS],
)
def test_two_captures_that_changed_places_are_found(
    audited, function, names, one, other
):
    def swapped(model, input_ids):
        found = dict(function(model, input_ids).items())
        found[one], found[other] = found[other], found[one]
        return found

    report = audited(swapped, names)
    places = {p for f in report.counting for p in f.places}
    assert {one, other} <= places
    assert {f.rule.name for f in report.counting} <= {
        "wrong-site",
        "wrong-formula",
        "wrong-terms",
    }


def test_processed_weights_are_explained_and_not_called_broken(audited):
    report = audited(with_transformer_lens.capture_processed, "transformer-lens")
    notes = [f for f in report.check().findings if f.rule.name == "by-design"]
    explained = {place for note in notes for place in note.places}
    assert {"blocks.1.hook_resid_post", "blocks.1.attn.hook_v"} <= explained
    assert {"blocks.1.ln2.hook_out", "unembed.hook_out"} <= explained


def test_weights_as_they_are_need_no_explanation(audited):
    report = audited(with_transformer_lens.capture, "transformer-lens")
    names = {place for f in report.findings for place in f.places}
    assert not any(name.endswith("hook_resid_post") for name in names)


def test_blocks_that_count_from_one_are_found(audited):
    def shifted(model, input_ids):
        found = with_baukit.capture(model, input_ids)
        last = len(model.transformer.h) - 1
        return {
            f"transformer.h.{n + 1}": found[f"transformer.h.{n}"].output
            for n in range(last)
        }

    (finding,) = audited(shifted, "hf").counting
    assert finding.rule.name == "wrong-layer"


def test_the_output_of_a_block_indexed_as_a_tuple_is_found(audited):
    report = audited(with_nnsight.capture_first_row, "nnsight")
    assert {f.rule.name for f in report.counting} == {"dropped-batch"}


def test_labels_of_torchlens_promise_nothing_and_are_identified(audited):
    report = audited(with_torchlens.capture_operations, "torchlens").check()
    assert {tensor.status for tensor in report.tensors} == {"unclaimed"}
    said = " ".join(tensor.sentence for tensor in report.tensors)
    assert "h.1.attn.qkv (bit-identical)" in said


def test_the_first_trace_of_torchlens_wraps_torch_for_good(audited):
    unwrap_torch()
    try:
        report = audited(with_torchlens.capture, "torchlens")
    finally:
        unwrap_torch()
        wrap_torch()
    (finding,) = report.counting
    assert finding.rule.name == "forward-replaced"
    assert all(place.startswith("torch.") for place in finding.places)
