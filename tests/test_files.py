"""A file is replaced whole or not at all, whoever else writes it."""

import os
import threading
from pathlib import Path

import pytest

import recon
from recon.files import UNFINISHED, replace_bytes, replacing

ROUNDS = 40
CONTENT = b"whole" * 99_999


def rest(folder):
    return [one.name for one in folder.iterdir() if UNFINISHED.fullmatch(one.name)]


def in_threads(number, call):
    """Call from several threads at once; return what they raised."""
    errors = []

    def often():
        for _ in range(ROUNDS):
            try:
                call()
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=often) for _ in range(number)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return errors


def test_threads_that_write_one_file_do_not_meet(tmp_path):
    # 2026-11: names carried the process only, and one thread renamed another's file.
    path = tmp_path / "report"
    assert in_threads(4, lambda: replace_bytes(path, CONTENT)) == []
    assert path.read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_file_have_two_drafts(tmp_path):
    path = tmp_path / "report"
    with replacing(path) as first, replacing(path) as second:
        assert first != second
        first.write_bytes(b"first")
        second.write_bytes(b"second")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_threads_that_save_one_run_do_not_meet(recorded, tmp_path, model):
    path = tmp_path / "run.safetensors"
    assert in_threads(2, lambda: recorded.trace.save(path)) == []
    assert len(recon.load_trace(path, model)) == len(recorded.trace)


def test_a_block_that_raises_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "report"
    path.write_bytes(b"old")

    def by_half():
        with replacing(path) as draft:
            draft.write_bytes(b"half")
            assert rest(tmp_path) == [draft.name]
            raise KeyError

    with pytest.raises(KeyError):
        by_half()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_went_wrong_is_told_though_its_rest_stays(tmp_path, monkeypatch):
    def refused(self, missing_ok=False):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(OSError, match="No space left"), replacing(tmp_path / "report"):
        raise OSError(28, "No space left on device")
    assert len(rest(tmp_path)) == 1


@pytest.mark.parametrize("length", [250, 255])
def test_a_name_as_long_as_names_may_be_can_be_written(recorded, tmp_path, length):
    # 2026-11: the temporary name was longer than the name, and so too long.
    path = tmp_path / ("x" * length)
    recorded.trace.save(path)
    replace_bytes(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_longer_name_is_told_in_one_line(recorded, tmp_path):
    with pytest.raises(recon.UsageError, match="File name too long"):
        recorded.trace.save(tmp_path / ("x" * 256))
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda h: (done.append("fsync"), fsync(h)))
    monkeypatch.setattr(
        os, "replace", lambda *names: (done.append("replace"), replace(*names))
    )
    replace_bytes(tmp_path / "report", b"new")
    assert done == ["fsync", "replace", "fsync"]


def test_a_device_is_written_to_and_never_replaced():
    replace_bytes(Path("/dev/null"), b"new")
    assert Path("/dev/null").is_char_device()
