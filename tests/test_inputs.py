"""Where inputs come from: files of token ids in every format, prompts, text."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import recon
from recon.inputs import batches, read_ids
from recon.models import Loaded

IDS = torch.tensor([[5, 0, 41], [7, 96, 2]])


class Words:
    """A tokenizer that counts letters, for models that come without one."""

    def __call__(self, text):
        return {"input_ids": [len(word) for word in text.split()]}


@pytest.fixture
def loaded(model):
    return Loaded("of mine", model, Words())


def write_json(path, ids):
    path.write_text(json.dumps(ids.tolist()))


def write_npy(path, ids):
    np.save(path, ids.numpy())


def write_npz(path, ids):
    np.savez(path, input_ids=ids.numpy(), other=np.zeros(2))


def write_safetensors(path, ids):
    save_file({"ids": ids.contiguous()}, path)


def write_pt(path, ids):
    torch.save(ids, path)


def write_text(path, ids):
    path.write_text(" ".join(map(str, ids.flatten().tolist())))


WRITERS = {
    "ids.json": write_json,
    "ids.npy": write_npy,
    "ids.npz": write_npz,
    "ids.safetensors": write_safetensors,
    "ids.pt": write_pt,
    "ids.pth": write_pt,
    "IDS.JSON": write_json,
}


# -- formats -------------------------------------------------------------------


@pytest.mark.parametrize("ids", [IDS, IDS[0]], ids=["two rows", "one row"])
@pytest.mark.parametrize(("name", "write"), WRITERS.items(), ids=WRITERS)
def test_ids_come_back_from_every_format(tmp_path, name, write, ids):
    write(tmp_path / name, ids)
    found = read_ids(tmp_path / name)
    assert found.dtype == torch.long
    assert found.tolist() == torch.atleast_2d(ids).tolist()


@pytest.mark.parametrize("text", ["5 0 41", "5,0,41", " 5, 0\n41\n", "+5 00 41"])
@pytest.mark.parametrize("name", ["ids.txt", "ids", "ids.csv"])
def test_ids_come_back_from_text(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_ids(tmp_path / name).tolist() == [[5, 0, 41]]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint16, np.int32, np.uint64])
def test_any_integers_will_do(tmp_path, dtype):
    np.save(tmp_path / "ids.npy", IDS.numpy().astype(dtype))
    assert read_ids(tmp_path / "ids.npy").tolist() == IDS.tolist()


def test_an_array_called_input_ids_is_preferred(tmp_path):
    save_file({"a": IDS + 1, "input_ids": IDS}, tmp_path / "ids.safetensors")
    assert read_ids(tmp_path / "ids.safetensors").tolist() == IDS.tolist()


# -- refusals ------------------------------------------------------------------


def write(name, content):
    def put(folder):
        path = folder / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content)
        return path

    return put


def array(name, value):
    def put(folder):
        np.save(folder / name, value)
        return folder / name

    return put


def tensors(name, value):
    def put(folder):
        torch.save(value, folder / name)
        return folder / name

    return put


def several(folder):
    save_file({"a": IDS, "b": IDS + 1}, folder / "ids.safetensors")
    return folder / "ids.safetensors"


BAD = {
    "no file": (lambda folder: folder / "ids.json", "no such file"),
    "a directory": (lambda folder: folder, "no such file"),
    "broken json": (write("ids.json", "[1, 2"), "cannot be read as token ids"),
    "ragged json": (write("ids.json", "[[1, 2], [3]]"), "cannot be read as token ids"),
    "words in json": (write("ids.json", '["a"]'), "token ids"),
    "a json object": (write("ids.json", '{"ids": [1]}'), "token ids"),
    "null": (write("ids.json", "[null]"), "token ids"),
    "floats": (write("ids.json", "[1.5, 2]"), "expected integer token ids .*float32"),
    "booleans": (write("ids.json", "[true, false]"), "expected integer .*bool"),
    "one number": (write("ids.json", "5"), r"of shape \(\)"),
    "three axes": (write("ids.json", "[[[1]]]"), r"of shape \(1, 1, 1\)"),
    "an empty list": (write("ids.json", "[]"), "token id"),
    "huge numbers": (write("ids.json", "[99999999999999999999]"), "token ids"),
    "words": (write("ids.txt", "1 two 3"), "cannot be read as token ids: .*two"),
    "an empty file": (write("ids.txt", ""), "token id"),
    "bytes": (write("ids.txt", b"\xff\xfe\x00"), "cannot be read as text"),
    "a float array": (array("ids.npy", np.ones(3)), "expected integer token ids"),
    "no array": (write("ids.npy", "nothing"), "cannot be read as token ids"),
    "a cut array": (write("ids.npy", b"\x93NUMPY\x01\x00"), "cannot be read as token"),
    "no archive": (write("ids.npz", "nothing"), "cannot be read as token ids"),
    "no safetensors": (write("ids.safetensors", b"\0" * 20), "cannot be read as token"),
    "no tensors": (write("ids.pt", "nothing"), "refused|cannot be read as token ids"),
    "two arrays": (several, r"one array called input_ids, found \['a', 'b'\]"),
    "a list of tensors": (tensors("ids.pt", [IDS]), "expected a tensor, found list"),
    "a text in a tensor file": (tensors("ids.pt", {"a": "x"}), "tensor"),
    "float tensors": (tensors("ids.pt", torch.ones(3)), "expected integer token ids"),
    "complex tensors": (tensors("ids.pt", torch.ones(3) * 1j), "expected integer"),
}


@pytest.mark.parametrize(("make", "words"), BAD.values(), ids=BAD)
def test_a_file_without_ids_is_one_clear_line(tmp_path, make, words):
    path = make(tmp_path)
    with pytest.raises(recon.UsageError, match=words) as caught:
        read_ids(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


class Malicious:
    """Unpickled, this makes a directory: proof that code ran."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def pickled_object(path, payload):
    path.write_bytes(pickle.dumps(payload))


def torch_object(path, payload):
    torch.save(payload, path)


def torch_old_object(path, payload):
    torch.save(payload, path, _use_new_zipfile_serialization=False)


def numpy_object(path, payload):
    with path.open("wb") as file:
        np.save(file, np.array([payload], dtype=object), allow_pickle=True)


def numpy_objects(path, payload):
    with path.open("wb") as file:
        np.savez(file, input_ids=np.array([payload], dtype=object))


@pytest.mark.parametrize(
    ("name", "put"),
    [
        ("ids.pt", pickled_object),
        ("ids.pt", torch_object),
        ("ids.pt", torch_old_object),
        ("ids.bin", pickled_object),
        ("ids.pth", torch_object),
        ("ids.npy", numpy_object),
        ("ids.npy", pickled_object),
        ("ids.npz", numpy_objects),
        ("ids.npz", pickled_object),
        ("ids.safetensors", pickled_object),
        ("ids.json", pickled_object),
        ("ids.pkl", pickled_object),
        ("ids.txt", pickled_object),
    ],
)
def test_nothing_is_ever_unpickled(tmp_path, name, put):
    harm, path = tmp_path / "harm", tmp_path / name
    put(path, Malicious(harm))
    with pytest.raises(recon.UsageError) as caught:
        read_ids(path)
    assert not harm.exists()
    assert "\n" not in str(caught.value)


def test_the_malicious_object_would_do_harm_if_it_were_unpickled(tmp_path):
    harm = tmp_path / "harm"
    pickle.loads(pickle.dumps(Malicious(harm)))
    assert harm.is_dir()


# -- batches -------------------------------------------------------------------


def only(loaded, **options):
    (batch,) = batches(loaded, **options)
    return batch


def test_a_text_is_encoded_by_the_models_tokenizer(loaded):
    batch = only(loaded, text="this is it")
    assert batch.inputs["input_ids"].tolist() == [[4, 2, 2]]
    assert list(batch.inputs) == ["input_ids"]


def test_a_file_of_ids_needs_no_tokenizer(model, tmp_path):
    write_json(tmp_path / "ids.json", IDS)
    loaded = Loaded("of mine", model, None)
    batch = only(loaded, ids_file=tmp_path / "ids.json")
    assert batch.inputs["input_ids"].tolist() == IDS.tolist()
    assert batch.source == str(tmp_path / "ids.json")


def test_prompts_are_padded_on_the_right_and_masked(loaded, tmp_path):
    (tmp_path / "prompts").write_text("one two three\n\n  a bb  \n")
    batch = only(loaded, prompts_file=tmp_path / "prompts")
    assert batch.inputs["input_ids"].tolist() == [[3, 3, 5], [1, 2, 0]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


def test_prompts_of_one_length_need_no_mask(loaded, tmp_path):
    (tmp_path / "prompts").write_text("one two\nthree four\n")
    batch = only(loaded, prompts_file=tmp_path / "prompts")
    assert list(batch.inputs) == ["input_ids"]


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
        (lambda folder: {"prompts_file": folder / "none"}, "cannot be read as text"),
        (lambda folder: {"prompts_file": folder}, "cannot be read as text"),
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
