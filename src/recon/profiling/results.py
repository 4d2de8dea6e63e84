"""What a profile found, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NoReturn

from recon.display import Displayed
from recon.errors import LeakError
from recon.facts import Environment
from recon.profiling.hooks import HookCost, TapCost
from recon.profiling.leaks import LeakWatch
from recon.profiling.memory import Memory
from recon.profiling.timing import NOISY, Ratio

BARE, AGAIN = "bare", "bare again (noise)"


@dataclass(frozen=True)
class Release:
    """What one pass captured, and what of it is alive when all was let go.

    ``captured`` and ``alive`` count storages; ``resident`` is the size of the process
    in bytes, with the captures and without, where the system tells: it proves nothing.
    """

    captured: int
    alive: int
    nbytes: int
    resident: tuple[int, int] | None


@dataclass(frozen=True)
class Profile(Displayed):
    """What capture costs in time and memory, and whether the memory comes back.

    ``times`` begins with the bare pass, against which all are compared, and that again,
    which shows the noise. ``hooks`` counts the hooks that one call makes. A profile is
    neither true nor false: call ``check()``, or read ``verdict``.
    """

    target: str
    model: str
    environment: Environment
    shape: tuple[int, ...]
    depth: int
    times: tuple[Ratio, ...]
    hooks: int
    hook: HookCost | None
    taps: tuple[TapCost, ...]
    memory: Memory
    release: Release
    watch: LeakWatch
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def noise(self) -> float:
        """How far from 1 the bare pass against itself may come out, here and now."""
        return next(one.error for one in self.times if one.name == AGAIN)

    @property
    def noisy(self) -> bool:
        """Whether the machine was too noisy to tell what capture costs in time."""
        return self.noise > NOISY

    @property
    def overhead(self) -> Ratio:
        """Time of what was profiled against the bare pass."""
        return next(one for one in self.times if one.name == self.target)

    @property
    def findings(self) -> tuple[str, ...]:
        """What is wrong, in sentences: everything that stays."""
        return self.watch.findings

    @property
    def verdict(self) -> Literal["clean", "leaks"]:
        """``clean`` if what was captured came back, with every hook."""
        return "leaks" if self.findings else "clean"

    def check(self) -> Profile:
        """Return the profile; raise LeakError, naming who holds what, if any stays."""
        if self.findings:
            raise LeakError(self.findings)
        return self

    def __repr__(self) -> str:
        return (
            f"Profile({self.verdict}, {self.target!r} of {self.model!r}: "
            f"{self.overhead.ratio:.3f} of the bare pass, {self.memory.held:,} bytes, "
            f"{len(self.findings)} findings)"
        )

    def __bool__(self) -> NoReturn:
        raise TypeError(
            "a profile is neither true nor false: call profile.check(), or read "
            "profile.verdict"
        )
