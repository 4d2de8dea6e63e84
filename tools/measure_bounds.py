"""Measure how sharp the bounds are, and write the tables of docs/numerics.md.

python -m tools.measure_bounds            # all models, some minutes
python -m tools.measure_bounds --quick    # the small ones
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import transformers

import recon
from recon import gpt2
from recon.certify import check as certified
from recon.checks import LEVELS
from recon.compare import Check
from recon.facts import Identity
from recon.models import DTYPES, Loaded
from recon.ops import Activation, Add, Fused, LayerNorm, Linear, Unembed
from recon.sites import Site
from recon.trace import Trace
from tests.planted import EVERYWHERE, Fault

PAGE = Path(__file__).resolve().parents[1] / "docs" / "numerics.md"
BEGIN, END = "<!-- tables -->", "<!-- /tables -->"
TOKENS = 128
PLANTED = (
    "Planted faults, at every site where they can be made: error/bound of the whole "
    "fault, above 1 is caught; then the smallest power of two of the fault that is "
    "caught, and how large that is at its largest element, beside its row's root mean "
    "square. *Not seen*: it stays inside the bound, where rounding may be as large."
)
COMPUTED = (Activation, Add, Fused, LayerNorm, Linear, Unembed)
# Powers of two of a fault among which the smallest that is caught is searched.
LEAST, MOST = -60, 10
QUICK = ("bundled", "random:narrow")
ALL = (*QUICK, "random:gpt2")


def main() -> None:
    """Measure and write; prints what it is at."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    names = QUICK if parser.parse_args().quick else ALL
    lines = [_circumstances(), ""]
    for name in names:
        lines += _model_tables(name)
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    PAGE.write_text(
        f"{head}{BEGIN}\n{chr(10).join(lines)}\n{END}{tail}", encoding="utf-8"
    )


def _circumstances() -> str:
    return (
        f"Measured with torch {torch.__version__}, transformers "
        f"{transformers.__version__} on {platform.machine()} with "
        f"{torch.get_num_threads()} threads, eval mode, attention as named, "
        f"{TOKENS} tokens (or the model's context), batch 1, deterministic bounds."
    )


def _model_tables(name: str) -> list[str]:
    tables: dict[str, dict[str, Check]] = {}
    faults: dict[str, dict[str, str]] = defaultdict(dict)
    smallest: dict[str, dict[str, str]] = defaultdict(dict)
    for dtype in DTYPES:
        for attention in ("eager", "sdpa"):
            print(name, dtype, attention, file=sys.stderr)
            trace = _trace(name, dtype, attention)
            tables[f"{dtype} {attention}"] = _worst(trace)
            if attention == "sdpa":
                for fault, ratio in _planted(trace):
                    faults[fault][dtype] = ratio
                for place, size in _smallest_caught(trace):
                    smallest[place][dtype] = size
    return [
        f"### {name}",
        "",
        "error/bound, then sharpness, by identity:",
        "",
        *_identity_table(tables),
        "",
        PLANTED,
        "",
        *_by_dtype("fault, site", faults),
        "",
        "The smallest power of two, times the root mean square of its row, that is "
        "caught when added to one element in the middle of a site (middle block, "
        "sdpa):",
        "",
        *_by_dtype("site", smallest),
        "",
    ]


def _by_dtype(title: str, rows: dict[str, dict[str, str]]) -> Iterator[str]:
    yield f"| {title} | " + " | ".join(DTYPES) + " |"
    yield "|---|" + "---|" * len(DTYPES)
    for name, row in rows.items():
        yield f"| {name} | " + " | ".join(row[dtype] for dtype in DTYPES) + " |"


def _load(name: str, dtype: str, attention: str) -> Loaded:
    if name != "random:narrow":
        return recon.load_model(name, dtype=DTYPES[dtype], attention=attention)
    config = transformers.GPT2Config(
        n_layer=12,
        n_embd=48,
        n_head=4,
        vocab_size=997,
        n_positions=TOKENS,
        bos_token_id=0,
        eos_token_id=0,
    )
    config._attn_implementation = attention
    model = transformers.GPT2LMHeadModel(config).train(False)
    recon.models.perturb(model)
    return Loaded(name, model.to(DTYPES[dtype]), None)


def _trace(name: str, dtype: str, attention: str) -> Trace:
    model = _load(name, dtype, attention).model
    generator = torch.Generator().manual_seed(0)
    tokens = min(TOKENS, model.config.n_positions)
    ids = torch.randint(model.config.vocab_size, (1, tokens), generator=generator)
    with recon.capture(model) as recorder, torch.no_grad():
        model(ids, use_cache=False)
    return recorder.trace


def _worst(trace: Trace) -> dict[str, Check]:
    """Return, for each identity and for the sketch, the largest ratio and sharpness."""
    worst: dict[str, Check] = {}
    report = recon.verify_trace(trace, levels=[x for x in LEVELS if x != "replay"])
    for check in report.check().checks:
        if check.bound_ratio is None:
            continue
        name = (
            check.identity if check.level == "certify" else f"{check.identity} (sketch)"
        )
        held = worst.get(name, check)
        worst[name] = replace(
            check,
            bound_ratio=max(held.bound_ratio or 0.0, check.bound_ratio),
            sharpness=max(held.sharpness or 0.0, check.sharpness or 0.0),
        )
    return worst


def _identity_table(tables: dict[str, dict[str, Check]]) -> Iterator[str]:
    inexact = (
        name
        for table in tables.values()
        for name, check in table.items()
        if check.bound_ratio
    )
    names = list(dict.fromkeys(inexact))
    yield "| identity | " + " | ".join(tables) + " |"
    yield "|---|" + "---|" * len(tables)
    for name in names:
        cells = [_cell(table.get(name)) for table in tables.values()]
        yield f"| {name} | " + " | ".join(cells) + " |"


def _cell(check: Check | None) -> str:
    if check is None:
        return "-"
    exact = not check.bound_ratio
    return "exact" if exact else f"{check.bound_ratio:.2g}, {check.sharpness:.1g}"


def _smallest_caught(trace: Trace) -> Iterator[tuple[str, str]]:
    """Search, for one element of each computed site, the smallest fault caught."""
    layer = trace.facts.depth // 2
    for identity in gpt2.identities(trace):
        place = identity.site
        computed = isinstance(identity.op, COMPUTED) and place in trace.tensors
        if computed and place.layer in (None, layer):
            exponent = _least(partial(_one_off, trace, place), identity)
            yield str(place), f"2^{exponent}"


def _one_off(trace: Trace, place: Site, size: float) -> Trace:
    tensor = trace[place].clone(memory_format=torch.contiguous_format)
    row = tensor.view(-1, tensor.shape[-1])[tensor.numel() // tensor.shape[-1] // 2]
    row[len(row) // 2] += size * row.double().square().mean().sqrt().to(row.dtype)
    return trace.replace(place, tensor)


def _planted(trace: Trace) -> Iterator[tuple[str, str]]:
    """Say of each fault how far beyond its bound it is, and the least of it caught."""
    for fault in EVERYWHERE:
        identity = _identity(trace, fault.place(trace))
        with torch.no_grad():
            whole = certified(fault.plant(trace)[1], identity)
            share = _least(lambda size, f=fault: f.plant(trace, size)[1], identity)
            text = _said(fault, trace, share)
        yield f"{fault.name}, {identity.site}", f"{whole.bound_ratio:.2g}: {text}"


def _identity(trace: Trace, place: Site) -> Identity:
    return next(i for i in gpt2.identities(trace) if i.site == place)


def _least(damage: Callable[[float], Trace], identity: Identity) -> int:
    """Return the exponent of the smallest power of two of a damage that is caught."""
    low, high = LEAST, MOST  # the smaller is not caught, the larger is
    while high - low > 1:
        middle = (low + high) // 2
        caught = not certified(damage(2.0**middle), identity).passed
        low, high = (low, middle) if caught else (middle, high)
    return high


def _said(fault: Fault, trace: Trace, share: int) -> str:
    """Say a share of a fault, and how large it is beside its row at most."""
    if share > 0:
        return "not seen"
    place, damaged = fault.plant(trace, 2.0**share)
    right = trace[place].double()
    gap = (damaged[place].double() - right).abs().amax(-1)
    size = float((gap / right.square().mean(-1).sqrt()).amax())
    return f"2^{share}, {size:.1g}"


if __name__ == "__main__":
    main()
