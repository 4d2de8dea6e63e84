"""Capture: the only package that registers hooks. It knows no model.

A recorder puts one forward hook on each module of a ``Plan`` and keeps what the hook
sees, by reference. ``recording`` is its life, ``listening`` what a hook does,
``passes`` what is kept of a pass, ``assembling`` how that becomes a trace.
"""

from recon.recorder.assembling import never_ran
from recon.recorder.options import Keep, Options, Positions
from recon.recorder.passes import Consumer
from recon.recorder.recording import Recorder

__all__ = ["Consumer", "Keep", "Options", "Positions", "Recorder", "never_ran"]
