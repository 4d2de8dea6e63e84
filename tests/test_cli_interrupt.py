"""Ctrl-C in a real process: exit code 130, one line, no half file."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import recon

LINES = 3000


def test_ctrl_c_in_a_capture_ends_with_130_and_leaves_whole_files_only(tmp_path):
    prompts, out = tmp_path / "prompts.txt", tmp_path / "captures"
    prompts.write_text("A name is bound.\n" * LINES, encoding="utf-8")
    running = subprocess.Popen(
        [
            *(sys.executable, "-m", "recon", "capture", "bundled"),
            *("--prompts", str(prompts), "--sites", "h.*.mlp.post"),
            *("--shard-size", "1", "--out", str(out)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        # A shell's background job, which may run this test, ignores SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    # A shard counts once the index names it.
    index, until = out / "index.jsonl", time.monotonic() + 120
    while not (index.exists() and "captures-00000" in index.read_text("utf-8")):
        time.sleep(0.05)
        assert time.monotonic() < until
        assert running.poll() is None, running.communicate()
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert err.splitlines()[-1] == "recon: interrupted"
    assert "Traceback" not in err
    stored = recon.load_captures(out)
    assert 0 < len(stored) < LINES


def test_ctrl_c_while_the_commands_are_imported_ends_with_130_in_one_line(tmp_path):
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt", encoding="utf-8")
    source = Path(recon.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "recon", "verify"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{source}"},
    )
    assert done.returncode == 130
    assert (done.stdout, done.stderr) == ("", "recon: interrupted\n")
