"""What did code do to a model and the process? Looked at before and after; put back.

Hooks and overrides, modules, modes, plain attributes, weights and buffers, config,
random generators, gradient mode, autocast: everything that a call may leave behind.
"""

from recon.watch.changes import Change, changes
from recon.watch.keeper import Keeper, hooks_put_back
from recon.watch.state import State

__all__ = ["Change", "Keeper", "State", "changes", "hooks_put_back"]
