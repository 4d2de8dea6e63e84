"""Token ids out of files of every format, and what stands beside them."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import recon
from recon.input_files import read_inputs

IDS = torch.tensor([[5, 0, 41], [7, 96, 2]])


def read_ids(path):
    (ids,) = read_inputs(path).values()
    return ids


def write_json(path, ids):
    path.write_text(json.dumps(ids.tolist()))


def write_npy(path, ids):
    np.save(path, ids.numpy())


def write_npz(path, ids):
    np.savez(path, input_ids=ids.numpy())


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


@pytest.mark.parametrize(
    "text", ["5 0 41", "[[5, 0, 41]]", '{"input_ids": [5, 0, 41]}']
)
def test_ids_come_from_a_pipe(text):
    reader, writer = os.pipe()
    os.write(writer, text.encode())
    os.close(writer)
    try:
        assert torch.equal(read_ids(Path(f"/dev/fd/{reader}")), IDS[:1])
    finally:
        os.close(reader)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint16, np.int32, np.uint64])
def test_any_integers_will_do(tmp_path, dtype):
    np.save(tmp_path / "ids.npy", IDS.numpy().astype(dtype))
    assert read_ids(tmp_path / "ids.npy").tolist() == IDS.tolist()


# -- what stands beside the ids ------------------------------------------------


def json_of(path, tensors):
    path.write_text(json.dumps({k: v.tolist() for k, v in tensors.items()}))


def npz_of(path, tensors):
    np.savez(path, **{k: v.numpy() for k, v in tensors.items()})


SEVERAL = {
    "inputs.json": json_of,
    "inputs.npz": npz_of,
    "inputs.safetensors": lambda path, tensors: save_file(tensors, path),
    "inputs.pt": lambda path, tensors: torch.save(tensors, path),
}
MASK = torch.tensor([[0, 1, 1], [1, 1, 1]])
PLACES = torch.tensor([[0, 0, 1], [0, 1, 2]])


@pytest.mark.parametrize(("name", "put"), SEVERAL.items(), ids=SEVERAL)
def test_what_stands_beside_the_ids_is_read_by_name(tmp_path, name, put):
    given = {
        "attention_mask": MASK,
        "input_ids": IDS,
        "position_ids": PLACES,
        "token_type_ids": MASK + 4,
    }
    put(tmp_path / name, given)
    found = read_inputs(tmp_path / name)
    assert next(iter(found)) == "input_ids"
    assert {k: v.tolist() for k, v in found.items()} == {
        k: v.tolist() for k, v in given.items()
    }


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_a_mask_may_be_of_any_dtype(tmp_path, dtype):
    path = tmp_path / "inputs.pt"
    torch.save({"input_ids": IDS, "attention_mask": MASK.to(dtype)}, path)
    mask = read_inputs(path)["attention_mask"]
    assert (mask.dtype, mask.tolist()) == (torch.long, MASK.tolist())


def test_one_row_beside_the_ids_serves_every_row_of_them(tmp_path):
    path = tmp_path / "inputs.safetensors"
    save_file({"input_ids": IDS, "position_ids": PLACES[0].clone()}, path)
    assert read_inputs(path)["position_ids"].tolist() == [PLACES[0].tolist()] * 2


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"labels": IDS + 1}, "'labels' is no input that recon runs: expected"),
        ({"attention_mask": MASK * 2}, "attention_mask: expected 0 and 1 only"),
        ({"attention_mask": MASK * -1e9}, "attention_mask: expected 0 and 1 only"),
        ({"attention_mask": MASK * float("nan")}, "attention_mask: expected 0 and 1"),
        (
            {"attention_mask": MASK[:, :2].clone()},
            r"attention_mask: shape \(2, 2\), but input_ids has \(2, 3\)",
        ),
        ({"attention_mask": MASK[None, None]}, "attention_mask: expected integers of"),
        ({"position_ids": PLACES.float()}, "position_ids: expected integers of shape"),
        ({"token_type_ids": MASK.repeat(2, 1)}, r"token_type_ids: shape \(4, 3\)"),
    ],
)
def test_what_does_not_fit_the_ids_is_refused_by_name(tmp_path, more, words):
    path = tmp_path / "inputs.safetensors"
    save_file({"input_ids": IDS} | more, path)
    with pytest.raises(recon.UsageError, match=words) as caught:
        read_inputs(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_mask_without_ids_is_not_taken_for_ids(tmp_path):
    save_file({"attention_mask": MASK}, tmp_path / "inputs.safetensors")
    with pytest.raises(recon.UsageError, match=r"found \['attention_mask'\]"):
        read_inputs(tmp_path / "inputs.safetensors")


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
    "a json object": (write("ids.json", '{"ids": "x"}'), "token ids"),
    "nothing": (write("ids.json", "{}"), r"expected input_ids .* found \[\]"),
    "null": (write("ids.json", "[null]"), "token ids"),
    "floats": (write("ids.json", "[1.5, 2]"), "expected integers of .*float32"),
    "booleans": (write("ids.json", "[true, false]"), "expected integers .*bool"),
    "one number": (write("ids.json", "5"), r"of shape \(\)"),
    "three axes": (write("ids.json", "[[[1]]]"), r"of shape \(1, 1, 1\)"),
    "an empty list": (write("ids.json", "[]"), "token id"),
    "huge numbers": (write("ids.json", "[99999999999999999999]"), "token ids"),
    "words": (write("ids.txt", "1 two 3"), "cannot be read as token ids: .*two"),
    "an empty file": (write("ids.txt", ""), "token id"),
    "bytes": (write("ids.txt", b"\xff\xfe\x00"), "cannot be read as text"),
    "a float array": (array("ids.npy", np.ones(3)), "expected integers"),
    "no array": (write("ids.npy", "nothing"), "cannot be read as token ids"),
    "a cut array": (write("ids.npy", b"\x93NUMPY\x01\x00"), "cannot be read as token"),
    "no archive": (write("ids.npz", "nothing"), "cannot be read as token ids"),
    "no safetensors": (write("ids.safetensors", b"\0" * 20), "cannot be read as token"),
    "no tensors": (write("ids.pt", "nothing"), "refused|cannot be read as token ids"),
    "two arrays": (several, r"expected input_ids .*, found \['a', 'b'\]"),
    "a list of tensors": (tensors("ids.pt", [IDS]), "expected a tensor, found list"),
    "a text in a tensor file": (tensors("ids.pt", {"a": "x"}), "tensor"),
    "float tensors": (tensors("ids.pt", torch.ones(3)), "expected integers"),
    "complex tensors": (tensors("ids.pt", torch.ones(3) * 1j), "expected integers"),
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
