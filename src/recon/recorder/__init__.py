"""Capture: the only package that registers hooks. It knows no model.

A recorder puts one forward hook on each module of a ``Plan`` and keeps what the hook
sees, by reference or as its options say. ``recording`` is its life, ``listening`` what
a hook does, ``keeping`` what is kept of a tensor, within a budget, ``passes`` what is
kept of a pass, and ``threads`` whose it is, ``assembling`` how that becomes a trace;
``onward`` notes what goes on after the hooks of others, ``gradients`` what comes back.
"""

from recon.recorder.assembling import never_ran
from recon.recorder.gradients import GradientRecorder, of_gradients
from recon.recorder.onward import Edit, Onward
from recon.recorder.options import Keep, Options, Positions
from recon.recorder.passes import Consumer
from recon.recorder.recording import Recorder

__all__ = [
    "Consumer",
    "Edit",
    "GradientRecorder",
    "Keep",
    "Onward",
    "Options",
    "Positions",
    "Recorder",
    "never_ran",
    "of_gradients",
]
