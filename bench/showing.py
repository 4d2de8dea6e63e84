"""Print ratios, and keep them with the benchmark's own figures."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from recon.profiling.timing import Ratio

STAT = Path("/proc/stat")


def show(title: str, ratios: Sequence[Ratio], benchmark: object) -> None:
    """Print a table and keep it with the benchmark's own figures."""
    print(f"\n{title}\n{circumstances()}")
    for ratio in ratios:
        print(f"  {ratio}")
    keep(
        benchmark,
        title=title,
        ratios={
            r.name: {
                "seconds": r.seconds,
                "ratio": r.ratio,
                "interval": [r.low, r.high],
            }
            for r in ratios
        },
    )


def keep(benchmark: object, **figures: object) -> None:
    """Keep figures with a benchmark, and with what they were measured."""
    extra = benchmark.extra_info  # type: ignore[attr-defined]
    extra.update(figures, circumstances=circumstances())


def circumstances() -> str:
    """Say with what the figures were measured, and how busy the machine was."""
    return (
        f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{torch.get_num_threads()} threads of {os.cpu_count()} CPUs, "
        f"{platform.machine()} {platform.processor() or platform.system()}, "
        f"{_sharing.words()}"
    )


class Sharing:
    """How much of the machine other processes took, from when it is made."""

    def __init__(self) -> None:
        self._begun, self._busy, self._own = time.time(), busy(), time.process_time()

    def words(self) -> str:
        """Say whether the machine was shared; not where there is no /proc/stat."""
        now = busy()
        if now is None or self._busy is None:
            return "shared or not is not known"
        passed = (time.time() - self._begun) * (os.cpu_count() or 1)
        others = now - self._busy - (time.process_time() - self._own)
        return f"other processes took {max(0.0, others / passed):.0%} of the machine"


def busy() -> float | None:
    """Return the seconds that all processes have run since the machine started."""
    if not STAT.exists():
        return None
    user, nice, system, _, _, irq, softirq, *_ = STAT.read_text("ascii").split()[1:]
    ticks = sum(map(int, (user, nice, system, irq, softirq)))
    return ticks / os.sysconf("SC_CLK_TCK")


_sharing = Sharing()
