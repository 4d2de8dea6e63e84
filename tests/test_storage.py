"""A directory of captures is whole at every moment, whatever kills its writer."""

import json
import os
from itertools import count

import pytest
import torch

from recon.errors import UsageError
from recon.sites import site
from recon.storage import index, shards
from recon.storage.captures import load_captures
from recon.storage.index import Run, Source
from recon.storage.shards import Captured
from recon.storage.writer import Writer
from tests.dying import Disk, Kill

SITES = ("h.0.ln_1", "ln_f")
PROMPTS = 5
SHARD = 200


def run_of(**changes):
    """Say what ran."""
    return Run(
        model="m",
        revision=None,
        architecture="GPT2Model",
        weights="0" * 64,
        torch="2",
        transformers="5",
        device="cpu",
        attention="eager",
        training=False,
        run_dtype="float32",
        dtype=None,
        sites=dict.fromkeys(SITES, "captured"),
    ).model_copy(update=changes)


def source_of(name="a", prompts=PROMPTS):
    return Source(name=name, digest=name, prompts=prompts, field=None, crop=None)


def prompt(name, number):
    """Return captures that no other prompt of any source has; T is 1, 2 or 3."""
    seed = torch.Generator().manual_seed(1000 * ord(name) + number)
    tokens = 1 + number % 3
    tensors = {site(s): torch.randn(1, tokens, 5, generator=seed) for s in SITES}
    ids = torch.arange(tokens)[None] + number
    return Captured(ids, tensors, text=f"{name}{number}", found=tokens)


def write(folder, name="a", mode="resume", writer=Writer, prompts=PROMPTS):
    """Write the captures of a source, or what is not there of it."""
    with writer(
        folder, run_of(), source_of(name, prompts), mode=mode, shard_bytes=SHARD
    ) as out:
        if not out.complete:
            for number in range(out.done, prompts):
                out.add(prompt(name, number))
            out.finish()


def held(folder):
    """Return the texts of a directory's prompts, every byte of it checked."""
    captures = load_captures(folder).check()
    for stored in captures:
        name, number = stored.text[0], int(stored.text[1:])
        wanted = prompt(name, number)
        assert torch.equal(stored.ids, wanted.ids)
        for place, tensor in wanted.tensors.items():
            assert torch.equal(stored[place], tensor)
    return [stored.text for stored in captures]


def texts(name, prompts=PROMPTS):
    return [f"{name}{number}" for number in range(prompts)]


def files(folder):
    """Return what is in a directory, by name, the lock apart."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".lock"}


def looks(folder):
    """Return the names, and the index: it has the digest of each shard.

    Of the bytes of a shard only the order of its header's fields is left to chance.
    """
    return sorted(files(folder)), (folder / index.NAME).read_bytes()


def is_begin_of(some, all_of_it):
    return some == all_of_it[: len(some)]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Do not wait for the disk, which matters when power fails, not in a kill."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


# -- killed at every single step ------------------------------------------------


def resumed_at_every_step(tmp_path, half, writer=Writer):
    """Kill a writer at step 1, then at 2 and so on; look, and go on each time."""
    write(tmp_path / "whole")
    for last in count(1):
        folder = tmp_path / f"{last}"
        disk = Disk(last, half=half)
        try:
            with disk.installed():
                write(folder, writer=writer)
        except Kill:
            there = held(folder) if (folder / index.NAME).exists() else []
            assert is_begin_of(there, texts("a"))
            write(folder, writer=writer)
            assert held(folder) == texts("a")
            assert looks(folder) == looks(tmp_path / "whole")
        else:
            break
    return last


@pytest.mark.parametrize("half", [False, True])
def test_killed_at_any_step_nothing_is_lost_doubled_or_half_there(tmp_path, half):
    # Shards of some prompts, each with a touch, a save, syncs, a rename and a line.
    assert resumed_at_every_step(tmp_path, half) > 15


class Hasty(Writer):
    """Adds a shard's line before its file is there."""

    def flush(self):
        if self._held:
            first = self._before + self._stored
            entry = shards.write(self.folder, self._number, first, self._held)
            (self.folder / entry.file).rename(self.folder / "aside")
            self._commit([entry])
            os.replace(self.folder / "aside", self.folder / entry.file)  # noqa: PTH105
            self._number += 1
            self._stored += len(self._held)
            self._drop()


def test_a_writer_that_names_a_shard_too_early_is_caught(tmp_path):
    with pytest.raises(UsageError, match="is damaged"):
        resumed_at_every_step(tmp_path, half=False, writer=Hasty)


class Forgetful(Writer):
    """Begins again where the directory begins."""

    @property
    def done(self):
        return 0


def test_a_writer_that_begins_again_is_caught(tmp_path):
    with pytest.raises((AssertionError, UsageError)):
        resumed_at_every_step(tmp_path, half=False, writer=Forgetful)


@pytest.mark.parametrize("half", [False, True])
def test_killed_while_overwriting_the_old_captures_or_the_new_are_there(tmp_path, half):
    for last in count(1):
        folder = tmp_path / f"{last}"
        write(folder, "a")
        try:
            with Disk(last, half=half).installed():
                write(folder, "b", "overwrite")
        except Kill:
            there = held(folder)
            assert there == texts("a") or is_begin_of(there, texts("b"))
            write(folder, "b", "overwrite")
            assert held(folder) == texts("b")
            assert len(files(folder)) == len(files(tmp_path / "1"))
        else:
            break
    assert last > 15


@pytest.mark.parametrize("half", [False, True])
def test_killed_while_accumulating_the_old_captures_stay(tmp_path, half):
    for last in count(1):
        folder = tmp_path / f"{last}"
        write(folder, "a", prompts=3)
        try:
            with Disk(last, half=half).installed():
                write(folder, "b", "accumulate")
        except Kill:
            assert is_begin_of(held(folder)[3:], texts("b"))
            write(folder, "b", "accumulate")
            assert held(folder) == texts("a", 3) + texts("b")
        else:
            break
    assert last > 15


# -- modes ---------------------------------------------------------------------


def test_to_capture_again_what_is_there_changes_no_byte(tmp_path):
    write(tmp_path)
    before = files(tmp_path)
    write(tmp_path)
    assert files(tmp_path) == before


def test_to_accumulate_what_is_there_doubles_nothing(tmp_path):
    write(tmp_path)
    write(tmp_path, "b", "accumulate")
    write(tmp_path, "a", "accumulate")
    assert held(tmp_path) == texts("a") + texts("b")


def test_other_prompts_are_refused_unless_they_are_to_be_added(tmp_path):
    write(tmp_path)
    with pytest.raises(UsageError, match="captures of a, and not of b; add to them"):
        write(tmp_path, "b")
    assert held(tmp_path) == texts("a")


def test_nothing_is_added_to_a_run_that_is_not_finished(tmp_path):
    with Writer(tmp_path, run_of(), source_of(), shard_bytes=1) as out:
        out.add(prompt("a", 0))
    with pytest.raises(UsageError, match="holds 1 of 5 prompts of a; finish those"):
        write(tmp_path, "b", "accumulate")
    assert not load_captures(tmp_path).complete
    write(tmp_path)
    assert held(tmp_path) == texts("a")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights": "1" * 64}, "with weights 0000"),
        ({"weights": "1" * 64, "run_dtype": "float16"}, "run_dtype float32, this run"),
        ({"torch": "3"}, "torch 2, this run has 3"),
        ({"sites": {"ln_f": "captured"}}, "sites h.0.ln_1, ln_f, this run has ln_f"),
        ({"dtype": "float16"}, "dtype None, this run has float16"),
    ],
)
def test_captures_of_another_run_are_never_mixed_in(tmp_path, change, words):
    write(tmp_path)
    for mode in ("resume", "accumulate"):
        writer = Writer(tmp_path, run_of(**change), source_of("b"), mode=mode)
        with pytest.raises(UsageError, match=words), writer:
            pass
    assert held(tmp_path) == texts("a")


def test_overwriting_may_change_what_ran(tmp_path):
    write(tmp_path)
    with Writer(
        tmp_path, run_of(torch="3"), source_of("b", 1), mode="overwrite"
    ) as out:
        out.add(prompt("b", 0))
        out.finish()
    assert held(tmp_path) == ["b0"]
    assert load_captures(tmp_path).run.torch == "3"
    assert len(files(tmp_path)) == 2


def test_two_processes_cannot_write_to_one_directory(tmp_path):
    with (
        Writer(tmp_path, run_of(), source_of()),
        pytest.raises(UsageError, match="another process is writing to it"),
        Writer(tmp_path, run_of(), source_of()),
    ):
        pass


def test_a_directory_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    for mode in ("resume", "overwrite"):
        with pytest.raises(UsageError, match=r"holds thesis\.tex and no index\.jsonl"):
            write(tmp_path, mode=mode)
    assert files(tmp_path) == {"thesis.tex": b""}


def test_shards_without_their_index_are_never_taken_for_leftovers(tmp_path):
    write(tmp_path)
    (tmp_path / index.NAME).unlink()
    before = files(tmp_path)
    with pytest.raises(UsageError, match=r"holds captures-00000\.safetensors and no"):
        write(tmp_path)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "append"}, "mode='append': expected one of resume, accum"),
        ({"shard_bytes": 0}, "shard_bytes=0: expected a number above 0"),
    ],
)
def test_a_wrong_option_is_told(tmp_path, options, words):
    with pytest.raises(UsageError, match=words):
        Writer(tmp_path, run_of(), source_of(), **options)


def test_memory_holds_one_shard_and_no_more(tmp_path):
    with Writer(tmp_path, run_of(), source_of(prompts=50), shard_bytes=SHARD) as out:
        for number in range(50):
            out.add(prompt("a", number))
            largest = prompt("a", 2).nbytes
            assert sum(kept.nbytes for kept in out._held) < SHARD + largest
        out.finish()
    sizes = [shard.count for shard in load_captures(tmp_path).shards]
    assert len(sizes) > 10
    assert sum(sizes) == 50


# -- a disk that refuses -------------------------------------------------------


class FullDisk(Disk):
    """From one step on, nothing can be written; taking away still works."""

    def step(self, call, by_half, args, kwargs):
        self.steps += 1
        name = getattr(call, "__name__", "")
        if self.steps < self.last or name in ("unlink", "truncate", "replace", "fsync"):
            return call(*args, **kwargs)
        if name == "write":
            by_half(*args, **kwargs)
        raise OSError(28, "No space left on device")


def test_a_full_disk_is_one_line_and_costs_nothing_that_was_stored(tmp_path):
    said = []
    for last in count(2):
        folder = tmp_path / f"{last}"
        try:
            with FullDisk(last).installed():
                write(folder)
        except UsageError as error:
            said.append(str(error))
            rest = [name for name in files(folder) if name.endswith(".part")]
            assert rest == []
            if (folder / index.NAME).exists():
                assert (folder / index.NAME).read_bytes().endswith(b"\n")
                assert is_begin_of(held(folder), texts("a"))
            write(folder)
            assert held(folder) == texts("a")
        else:
            break
    assert last > 10
    assert all("No space left on device" in words for words in said)
    assert not any("\n" in words for words in said)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX permissions")
def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file cannot be written"):
        write(tmp_path / "file")
    with pytest.raises(UsageError, match="cannot be written: Not a directory"):
        write(tmp_path / "file" / "below")


# -- damage --------------------------------------------------------------------


def shard_of(folder, number=1):
    return folder / load_captures(folder).shards[number].file


def cut(folder):
    path = shard_of(folder)
    path.write_bytes(path.read_bytes()[:-8])
    return r"captures-00001.safetensors is damaged: [\d,]+ bytes, expected [\d,]+"


def removed(folder):
    shard_of(folder).unlink()
    return "captures-00001.safetensors is damaged: No such file"


def swapped(folder):
    one, other = shard_of(folder, 0), shard_of(folder, 1)
    first, second = one.read_bytes(), other.read_bytes()
    # Of the same size, so that only the header tells.
    second, first = (
        text.ljust(max(len(first), len(second))) for text in (first, second)
    )
    one.write_bytes(first)
    other.write_bytes(second)
    return "is damaged"


def foreign(folder):
    path = shard_of(folder)
    path.write_bytes(b"x" * path.stat().st_size)
    return "captures-00001.safetensors is damaged: "


def flipped(folder):
    path = shard_of(folder)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    return "captures-00001.safetensors is damaged: .* does not match its digest"


def no_json(folder):
    path = folder / index.NAME
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:3], "oops\n", *lines[3:]]))
    return "index.jsonl is damaged, or no index of captures: line 4"


def line_lost(folder):
    path = folder / index.NAME
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], *lines[3:]]))
    return r"index.jsonl is damaged: line 3 \(shard\) does not follow"


def line_doubled(folder):
    path = folder / index.NAME
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:3], lines[2], *lines[3:]]))
    return r"index.jsonl is damaged: line 4 \(shard\) does not follow"


def later_version(folder):
    path = folder / index.NAME
    path.write_text(path.read_text().replace('"version":1', '"version":2'))
    return "has format version 2, this recon reads 1"


def other_format(folder):
    path = folder / index.NAME
    path.write_text(path.read_text().replace("recon-captures", "other"))
    return "is no index of captures, but of 'other'"


def emptied(folder):
    (folder / index.NAME).write_text("")
    return "its first line does not say what ran"


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        removed,
        swapped,
        foreign,
        flipped,
        no_json,
        line_lost,
        line_doubled,
        later_version,
        other_format,
        emptied,
    ],
)
def test_damage_is_told_in_one_line_and_nothing_is_touched(tmp_path, damage):
    write(tmp_path)
    words = damage(tmp_path)
    before = files(tmp_path)
    with pytest.raises(UsageError, match=words) as error:
        load_captures(tmp_path).check()
    assert len(str(error.value).splitlines()) == 1
    assert files(tmp_path) == before


@pytest.mark.parametrize("damage", [cut, removed, no_json, line_lost, later_version])
def test_nothing_is_added_to_what_is_damaged(tmp_path, damage):
    write(tmp_path)
    damage(tmp_path)
    before = files(tmp_path)
    with pytest.raises(UsageError):
        write(tmp_path, "b", "accumulate")
    assert files(tmp_path) == before


def test_damage_in_one_shard_leaves_the_others_readable(tmp_path):
    write(tmp_path)
    flipped(tmp_path)
    captures = load_captures(tmp_path)
    assert [captures[n].text for n in range(3)] == texts("a", 3)
    assert torch.equal(captures[0]["ln_f"], prompt("a", 0).tensors[site("ln_f")])


def test_a_path_in_the_index_cannot_lead_out_of_the_directory(tmp_path):
    write(tmp_path)
    path = tmp_path / index.NAME
    path.write_text(path.read_text().replace("captures-00001", "../captures-00001"))
    with pytest.raises(UsageError, match=r"line 4: shard\.file"):
        load_captures(tmp_path)


def test_a_directory_without_captures_is_told(tmp_path):
    with pytest.raises(UsageError, match="no such directory; expected captures"):
        load_captures(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="holds no captures: there is no index"):
        load_captures(tmp_path)


def test_a_cut_off_line_of_the_index_says_nothing(tmp_path):
    write(tmp_path)
    path = tmp_path / index.NAME
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"kind":"source","na')
    assert held(tmp_path) == texts("a")
    write(tmp_path)
    assert path.read_bytes() == whole


def test_each_line_of_the_index_is_json(tmp_path):
    write(tmp_path)
    lines = (tmp_path / index.NAME).read_text().splitlines()
    kinds = [json.loads(line)["kind"] for line in lines]
    assert kinds == ["run", "source", *["shard"] * (len(kinds) - 3), "end"]
