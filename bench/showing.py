"""Print ratios, and keep them with the benchmark's own figures."""

from __future__ import annotations

import platform
from collections.abc import Sequence

import torch
import transformers

from recon.profiling.timing import Ratio


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
    """Say with what the figures were measured."""
    return (
        f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{torch.get_num_threads()} threads, {platform.machine()} "
        f"{platform.processor() or platform.system()}"
    )
