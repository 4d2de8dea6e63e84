"""Prompts of files come one by one, in order, and a bad one is named by its place."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recon.errors import UsageError
from recon.prompts import listed, prompts_of

TEXTS = ["one", "two words", "drei", "cuatro"]
IDS = [[1, 2], [3], [4, 5, 6], [7]]


def text(folder):
    path = folder / "p.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\r\n  two words\ndrei\n \ncuatro")
    return path, TEXTS


def json_lines(folder):
    path = folder / "p.jsonl"
    rows = [{"text": TEXTS[0], "n": 1}, TEXTS[1], {"text": TEXTS[2]}, TEXTS[3]]
    path.write_text("\n\n".join(map(json.dumps, rows)))
    return path, TEXTS


def json_ids(folder):
    path = folder / "p.jsonl"
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in IDS))
    return path, IDS


def parquet(folder):
    path = folder / "p.parquet"
    pq.write_table(pa.table({"n": [1, 2, 3, 4], "text": TEXTS}), path, row_group_size=3)
    return path, TEXTS


def parquet_ids(folder):
    path = folder / "p.parquet"
    pq.write_table(pa.table({"text": IDS}), path)
    return path, IDS


def dataset(folder):
    path = folder / "set"
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(path))
    return path, TEXTS


EVERY = [text, json_lines, json_ids, parquet, parquet_ids, dataset]


@pytest.mark.parametrize("make", EVERY)
def test_every_prompt_comes_once_and_from_any_place_on(tmp_path, make):
    path, wanted = make(tmp_path)
    prompts = prompts_of(path)
    assert prompts.total == len(wanted)
    for start in range(len(wanted) + 1):
        assert [words for _, words in prompts.read(start)] == wanted[start:]


@pytest.mark.parametrize("make", EVERY)
def test_the_digest_is_of_what_the_prompts_are(tmp_path, make):
    path, _ = make(tmp_path)
    assert prompts_of(path).digest == prompts_of(path).digest


def test_other_prompts_have_another_digest(tmp_path):
    path, _ = text(tmp_path)
    before = prompts_of(path).digest
    path.write_text("one\ntwo words\ndrei\nfour")
    assert prompts_of(path).digest != before
    assert listed(["a"], "x").digest == listed(["a"], "y").digest
    assert listed(["a"], "x").digest != listed(["a", "a"], "x").digest


def test_a_prompt_is_read_only_when_it_is_reached(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"text": "good"}\n{"text": \n')
    rows = prompts_of(path).read(0)
    assert next(rows)[1] == "good"
    with pytest.raises(UsageError, match=r"p.jsonl, line 2: is no JSON"):
        next(rows)


def test_another_field_can_be_chosen(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "x"}')
    assert [words for _, words in prompts_of(path, "prompt").read(0)] == ["x"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.txt", b"", r"p\.txt holds no prompt; expected one prompt a line"),
        ("p.txt", b"a\n\xff\n", "line 2: is no UTF-8 text"),
        ("p.jsonl", b'{"a": 1, "b": 2}', "no field 'text'; found a, b"),
        ("p.jsonl", b'{"text": 5}', "line 1: expected text or a list of token ids"),
        ("p.jsonl", b'{"text": [1, true]}', "line 1: expected text or a list"),
        ("p.jsonl", b'{"text": null}', "no field 'text'"),
        ("p.parquet", b"PAR1", r"p\.parquet: cannot be read as Parquet"),
    ],
)
def test_what_is_no_prompt_is_one_line(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UsageError, match=words) as error:
        list(prompts_of(path).read(0))
    assert len(str(error.value).splitlines()) == 1


def test_a_table_without_the_field_or_without_rows_is_one_line(tmp_path):
    path, _ = parquet(tmp_path)
    with pytest.raises(UsageError, match="no field 'body'; found n, text"):
        prompts_of(path, "body")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    with pytest.raises(UsageError, match="holds no prompt"):
        prompts_of(path)
    pq.write_table(pa.table({"text": [None, "a"]}), path)
    with pytest.raises(UsageError, match="row 0: expected text or a list of token ids"):
        list(prompts_of(path).read(0))


def test_what_is_not_there_or_no_dataset_is_one_line(tmp_path):
    with pytest.raises(UsageError, match="no such file; expected a file of prompts"):
        prompts_of(tmp_path / "nowhere.txt")
    with pytest.raises(UsageError, match=r"made by Dataset\.save_to_disk"):
        prompts_of(tmp_path)
    _, rows = text(tmp_path)
    splits = datasets.DatasetDict(
        {name: datasets.Dataset.from_dict({"text": rows}) for name in ("train", "test")}
    )
    splits.save_to_disk(str(tmp_path / "splits"))
    with pytest.raises(UsageError, match="several splits; name the folder of one"):
        prompts_of(tmp_path / "splits")


def test_a_library_that_is_not_installed_is_named(tmp_path, monkeypatch):
    path, _ = parquet(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(UsageError, match="needs pyarrow, which is not installed: pip"):
        prompts_of(path)


def test_no_prompt_in_memory_is_refused():
    with pytest.raises(UsageError, match="x: holds no prompt"):
        listed([], "x")
