"""Whatever kills come in whatever order, captures are those of a run without any."""

import os
import tempfile
from pathlib import Path
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from recon.storage import index
from recon.storage.captures import load_captures
from recon.storage.writer import Writer
from tests.dying import Disk, Kill
from tests.test_storage import held, is_begin_of, prompt, run_of, source_of, texts

# When to die, and whether halfway into that step.
DEATHS = st.lists(st.tuples(st.integers(1, 60), st.booleans()), max_size=6)


def write(folder, name, prompts, mode, shard):
    with Writer(
        folder, run_of(), source_of(name, prompts), mode=mode, shard_bytes=shard
    ) as out:
        if not out.complete:
            for number in range(out.done, prompts):
                out.add(prompt(name, number))
            out.finish()


def killed(folder, death, *args):
    """Write until the disk dies; say whether it did."""
    try:
        with Disk(*death[:1], half=death[1]).installed():
            write(folder, *args)
    except Kill:
        return True
    return False


@given(
    first=st.integers(1, 6),
    second=st.integers(1, 6),
    shard=st.integers(1, 500),
    mode=st.sampled_from(["accumulate", "overwrite"]),
    deaths=st.tuples(DEATHS, DEATHS),
)
def test_any_kills_leave_what_was_stored_and_cost_nothing(
    first, second, shard, mode, deaths
):
    with (
        tempfile.TemporaryDirectory() as place,
        mock.patch.object(os, "fsync", return_value=None),
    ):
        folder = Path(place) / "captures"
        for death in deaths[0]:
            killed(folder, death, "a", first, "resume", shard)
            if (folder / index.NAME).exists():
                assert is_begin_of(held(folder), texts("a", first))
        write(folder, "a", first, "resume", shard)
        assert held(folder) == texts("a", first)

        old, new = texts("a", first), texts("b", second)
        for death in deaths[1]:
            killed(folder, death, "b", second, mode, shard)
            there = held(folder)
            if mode == "accumulate":
                assert is_begin_of(there, old + new)
                assert is_begin_of(old, there)
            else:
                assert there == old or is_begin_of(there, new)
        write(folder, "b", second, mode, shard)
        assert held(folder) == (old + new if mode == "accumulate" else new)
        assert load_captures(folder).complete
        named = {entry.file for entry in load_captures(folder).shards}
        assert {path.name for path in folder.iterdir()} == {*named, index.NAME, ".lock"}
