"""Real processes, really killed, at random moments: nothing is lost or doubled."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import recon
from recon.storage import index
from tests.capture_worker import rows

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
ROOT = Path(__file__).parents[1]
KILLS = 50
PROMPTS = 16


class Worker:
    """Has jobs done in processes of their own."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.capture_worker"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(Path(recon.__file__).parents[1])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def do(self, folder, name, mode, delay=None):
        """Capture, and return the exit code and the seconds; -9: it was killed."""
        job = {
            "folder": str(folder),
            "name": name,
            "mode": mode,
            "delay": delay,
            "prompts": PROMPTS,
        }
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return tuple(json.loads(self._process.stdout.readline()))

    def close(self):
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait(timeout=30) == 0


@pytest.fixture(scope="module")
def worker():
    one = Worker()
    yield one
    one.close()


@pytest.fixture(scope="module")
def whole(worker, tmp_path_factory):
    """Captures that nothing disturbed, and how long they took."""
    folder = tmp_path_factory.mktemp("whole")
    taken = {}
    for name in "ab":
        worker.do(folder / f"warm-{name}", name, "resume")
        code, taken[name] = worker.do(folder / name, name, "resume")
        assert code == 0
    captures = {name: recon.load_captures(folder / name).check() for name in "ab"}
    return captures, max(taken.values())


def held(folder, whole):
    """Name each prompt that is there, by its source; every tensor is compared."""
    known = {name: rows(name, PROMPTS) for name in "ab"}
    found = []
    for prompt in recon.load_captures(folder).check():
        ids = prompt.ids[0].tolist()
        name = next(name for name in "ab" if ids in known[name])
        number = known[name].index(ids)
        wanted = whole[name][number]
        assert prompt.sites == wanted.sites
        assert all(torch.equal(prompt[s], wanted[s]) for s in wanted.sites)
        found.append((name, number))
    return found


def all_of(name):
    return [(name, place) for place in range(PROMPTS)]


def may_be_there(mode, found):
    """Whether a directory in which b came to a, by that mode, may hold this."""
    a, b = all_of("a"), all_of("b")
    if mode == "accumulate":
        return found[: len(a)] == a and found[len(a) :] == b[: len(found) - len(a)]
    return found == a or found == b[: len(found)]


@pytest.mark.parametrize("mode", ["resume", "accumulate", "overwrite"])
def test_processes_killed_at_random_moments_lose_and_double_nothing(
    worker, whole, tmp_path, mode
):
    captures, seconds = whole
    delays = random.Random(f"{mode} 1")
    kills, stages, attempt = 0, set(), 0
    while kills < KILLS // 3 + 1:
        attempt += 1
        assert attempt < 20 * KILLS
        folder = tmp_path / f"{attempt}"
        name = "a"
        if mode != "resume":
            assert worker.do(folder, "a", "resume")[0] == 0
            name = "b"
        while True:
            delay = delays.uniform(0, 1.2 * seconds)
            code, _ = worker.do(folder, name, mode, delay)
            assert code in (0, -signal.SIGKILL), (folder.with_suffix(".error"), code)
            kills += code != 0
            there = []
            if (folder / index.NAME).exists():
                there = held(folder, captures)
                fits = there == all_of("a")[: len(there)]
                assert fits if mode == "resume" else may_be_there(mode, there)
            stages.add(len(there))
            if code == 0:
                break
        whole_of_it = (
            all_of("a") + all_of("b") if mode == "accumulate" else all_of(name)
        )
        assert there == whole_of_it
        assert recon.load_captures(folder).complete
        assert not list(folder.glob("*.part*")) + list(folder.glob(".*.part*"))
    # They did not all hit one moment.
    assert len(stages) > 3


def test_a_lost_a_doubled_and_a_changed_prompt_would_be_seen(worker, whole, tmp_path):
    captures, _ = whole
    a, b = all_of("a"), all_of("b")
    assert may_be_there("accumulate", a + b[:3])
    assert not may_be_there("accumulate", a[:-1] + b[:3])
    assert not may_be_there("accumulate", a + b[:3] + b[2:4])
    assert not may_be_there("overwrite", a + b[:1])
    worker.do(tmp_path / "a", "a", "resume")
    assert held(tmp_path / "a", captures) == a
    with pytest.raises(AssertionError):
        held(tmp_path / "a", {"a": captures["b"], "b": captures["a"]})
