"""A disk that a process stops writing to at a chosen step, as if it were killed there.

Every call that changes a disk is a step. At the chosen one the process "dies": ``Kill``
is raised, the call is done by half where it can be, and all later calls do nothing but
raise again, so that no ``finally`` can tidy up what a killed process would leave.
"""

import os
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from recon import saving

CALLS = ("open", "write", "fsync", "replace", "unlink", "truncate", "mkdir")


class Kill(BaseException):
    """The process is no more."""


class Disk:
    """Counts steps; at number ``last`` it is over. ``half``: that step is begun."""

    def __init__(self, last=None, *, half=False):
        self.last, self.half, self.steps = last, half, 0

    def step(self, call, by_half, args, kwargs):
        """Do one step, or die."""
        self.steps += 1
        if self.last is None or self.steps < self.last:
            return call(*args, **kwargs)
        if self.steps == self.last and self.half:
            by_half(*args, **kwargs)
        raise Kill

    @contextmanager
    def installed(self):
        """Let os and safetensors go through this disk."""
        wrong = {name: self._wrapped(getattr(os, name)) for name in CALLS}
        wrong["write"] = self._wrapped(os.write, half_of_the_bytes(os.write))
        wrong["open"] = self._opening(os.open)
        whole = saving.save_file
        with (
            mock.patch.multiple(os, **wrong),
            mock.patch.object(
                saving, "save_file", self._wrapped(whole, half_of_a_file(whole))
            ),
        ):
            yield self

    def _wrapped(self, call, by_half=lambda *args, **kwargs: None):
        return lambda *args, **kwargs: self.step(call, by_half, args, kwargs)

    def _opening(self, call):
        """Opening changes a disk only where it may make a file."""

        def opened(path, flags, *args, **kwargs):
            # A lock is no part of what is stored, and goes with its process.
            if flags & os.O_CREAT and not str(path).endswith(".lock"):
                return self.step(call, call, (path, flags, *args), kwargs)
            return call(path, flags, *args, **kwargs)

        return opened


def half_of_the_bytes(write):
    """Return a ``write`` that the disk was too slow for."""
    return lambda handle, text: write(handle, text[: len(text) // 2])


def half_of_a_file(save):
    """Return a ``save_file`` that left half of its file."""

    def half(tensors, path, metadata):
        save(tensors, path, metadata)
        os.truncate(path, Path(path).stat().st_size // 2)

    return half
