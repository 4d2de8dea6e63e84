"""Captures a file of prompts again and again, each time in a fork that may be killed.

torch is loaded once. A line of JSON on stdin is one job: it is forked, killed after
``delay`` seconds unless it ended before, and answered with a line on stdout.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from recon.collecting import Storing, collect
from recon.models import Loaded, perturb
from recon.prompts import listed

SITES = ["h.*.{resid_post,attn.q}", "ln_f"]


def tiny():
    """Return a model whose pass takes a few milliseconds."""
    config = GPT2Config(
        vocab_size=50,
        n_positions=16,
        n_embd=16,
        n_head=2,
        n_layer=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config)
    perturb(model)
    return Loaded("tiny", model.eval(), None)


def rows(name, number):
    """Return prompts of 2 to 10 tokens; the first two say whose, and which one."""
    return [[ord(name) - 96, 4 + place, *[7] * (place % 9)] for place in range(number)]


def capture(loaded, job):
    """Capture the prompts of one job."""
    collect(
        loaded,
        listed(rows(job["name"], job["prompts"]), job["name"]),
        job["folder"],
        sites=SITES,
        storing=Storing(mode=job["mode"], shard_bytes=4000),
    )


def in_a_fork(loaded, job):
    """Do one job and return how it ended: 0, or the signal that killed it."""
    child = os.fork()
    if child == 0:
        try:
            capture(loaded, job)
        except BaseException as error:
            Path(job["folder"] + ".error").write_text(repr(error))
            os._exit(1)
        os._exit(0)
    if job["delay"] is not None:
        time.sleep(job["delay"])
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def main():
    """Answer one job after another."""
    # The threads of one process are not in its fork.
    torch.set_num_threads(1)
    loaded = tiny()
    for line in sys.stdin:
        began = time.perf_counter()
        code = in_a_fork(loaded, json.loads(line))
        print(json.dumps([code, time.perf_counter() - began]), flush=True)


if __name__ == "__main__":
    main()
