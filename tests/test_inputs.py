"""What a model is run on: prompts, text, files of token ids."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import recon
from recon.inputs import batches
from recon.models import Loaded

IDS = torch.tensor([[5, 0, 41], [7, 96, 2]])


class Words:
    """A tokenizer that counts letters, for models that come without one."""

    def __call__(self, text):
        return {"input_ids": [len(word) for word in text.split()]}


@pytest.fixture
def loaded(model):
    return Loaded("of mine", model, Words())


# -- batches -------------------------------------------------------------------


def only(loaded, **options):
    (batch,) = batches(loaded, **options)
    return batch


def test_a_text_is_encoded_by_the_models_tokenizer(loaded):
    batch = only(loaded, text="this is it")
    assert batch.inputs["input_ids"].tolist() == [[4, 2, 2]]
    assert list(batch.inputs) == ["input_ids"]


def test_a_file_of_ids_needs_no_tokenizer(model, tmp_path):
    (tmp_path / "ids.json").write_text(json.dumps(IDS.tolist()))
    loaded = Loaded("of mine", model, None)
    batch = only(loaded, ids_file=tmp_path / "ids.json")
    assert batch.inputs["input_ids"].tolist() == IDS.tolist()
    assert batch.source == str(tmp_path / "ids.json")


def test_a_mask_beside_the_ids_is_what_the_model_runs_with(loaded, all_exact, tmp_path):
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    path = tmp_path / "inputs.safetensors"
    save_file({"input_ids": IDS, "attention_mask": mask}, path)
    batch = only(loaded, ids_file=path)
    report = recon.verify(loaded.model, **batch.inputs)
    all_exact(report)
    assert max(check.excluded for check in report.checks) == 1
    bare = recon.verify(loaded.model, batch.inputs["input_ids"])
    assert not any(check.excluded for check in bare.checks)


def test_prompts_are_padded_on_the_right_and_masked(loaded, tmp_path):
    (tmp_path / "prompts").write_text("one two three\n\n  a bb  \n")
    batch = only(loaded, prompts_file=tmp_path / "prompts")
    assert batch.inputs["input_ids"].tolist() == [[3, 3, 5], [1, 2, 0]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


def test_prompts_of_one_length_need_no_mask(loaded, tmp_path):
    (tmp_path / "prompts").write_text("one two\nthree four\n")
    batch = only(loaded, prompts_file=tmp_path / "prompts")
    assert list(batch.inputs) == ["input_ids"]


def test_prompts_of_json_lines_may_be_token_ids(loaded, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"q": "one two"}\n{"q": [7, 8, 9]}\n')
    batch = only(loaded, prompts_file=tmp_path / "p.jsonl", field="q")
    assert batch.inputs["input_ids"].tolist() == [[3, 3, 0], [7, 8, 9]]


def test_many_prompts_come_in_batches_that_leave_none_out(loaded, tmp_path):
    lines = [" ".join("a" * (1 + i % 3) for _ in range(2)) for i in range(19)]
    (tmp_path / "prompts").write_text("\n".join(lines))
    found = list(batches(loaded, prompts_file=tmp_path / "prompts"))
    rows = [row for batch in found for row in batch.inputs["input_ids"].tolist()]
    assert rows == [[1 + i % 3] * 2 for i in range(19)]
    assert found[-1].source.endswith("prompts 17-19")


def test_a_padded_batch_of_prompts_reconciles(loaded, tmp_path, all_exact):
    (tmp_path / "prompts").write_text("one two three\na bb\nfour\n")
    batch = only(loaded, prompts_file=tmp_path / "prompts")
    all_exact(recon.verify(loaded.model, **batch.inputs))


def test_random_weights_get_random_ids_by_seed():
    loaded = recon.load_model("random:tiny")
    first, again, other = (
        only(loaded, seed=seed).inputs["input_ids"] for seed in (1, 1, 2)
    )
    assert first.shape == (1, 128)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.unique().numel() > 100


def prompts(content):
    def options(folder):
        (folder / "prompts").write_text(content)
        return {"prompts_file": folder / "prompts"}

    return options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (lambda folder: {"text": ""}, "the prompt '' is empty: no token to run"),
        (lambda folder: {"text": "  "}, "is empty"),
        (prompts(""), "holds no prompt"),
        (prompts("\n \n"), "holds no prompt"),
        (lambda folder: {"prompts_file": folder / "none"}, "no such file"),
        (lambda folder: {"prompts_file": folder}, "expected a file of prompts"),
        (lambda folder: {"text": "a", "ids_file": Path("b")}, "give one of"),
        (lambda folder: {"ids_file": folder / "none.json"}, "no such file"),
    ],
)
def test_inputs_that_cannot_be_had_are_one_clear_line(loaded, tmp_path, options, words):
    with pytest.raises(recon.UsageError, match=words) as caught:
        list(batches(loaded, **options(tmp_path)))
    assert "\n" not in str(caught.value)


def test_text_for_a_model_without_a_tokenizer_is_refused(model):
    with pytest.raises(recon.UsageError, match="has no tokenizer; give token ids"):
        only(Loaded("of mine", model, None), text="hello")
