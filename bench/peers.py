"""The peers that are installed, each as one timed call that captures.

None copies what it keeps. ``TraceDict`` is baukit's idiom, on the modules that recon
hooks; nnsight and pyvene keep what these put out; TransformerLens and torchlens keep
all that they know. Those that change the model they are given get a copy.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from pathlib import Path

import torch
from transformers import AutoTokenizer

import recon
from recon import gpt2

Call = Callable[[], object]
TOKENIZER = Path(recon.__file__).parent / "data" / "gpt2-topics"


def peers(model, ids) -> Iterator[tuple[str, Call]]:
    """Yield the installed peers by name; say of the others that they are not."""
    yield "TraceDict (baukit)", lambda: trace_dict(model, ids)
    for name in installed(MAKERS):
        yield name, MAKERS[name](deepcopy(model), ids)


def validation(model, ids) -> Iterator[tuple[str, Call]]:
    """Yield torchlens' own check of a pass: it captures, and runs each operation again.

    Nothing else among the peers checks what it captured.
    """
    if not [*installed(("torchlens",))]:
        return
    import torchlens

    copy = deepcopy(model)

    def run():
        assert torchlens.validate(copy, ids, scope="forward")

    yield "torchlens' validation", run


def installed(names: Iterable[str]) -> Iterator[str]:
    """Yield the libraries that are there; say of the others that they are skipped."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            print(f"\n{name} is skipped: it is not installed")
        else:
            yield name


def paths(model) -> list[str]:
    return [tap.path for tap in gpt2.plan(model).taps]


def trace_dict(model, ids):
    """Register a hook on each module, run, remove."""
    kept = {}

    def keeper(path):
        def keep(module, args, output):
            kept[path] = output

        return keep

    handles = [
        model.get_submodule(path).register_forward_hook(keeper(path))
        for path in paths(model)
    ]
    with torch.no_grad():
        model(ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return kept


def with_nnsight(model, ids) -> Call:
    import nnsight

    wrapped, blocks = nnsight.NNsight(model), model.config.n_layer

    def run():
        with torch.no_grad(), wrapped.trace(ids, use_cache=False):
            kept = nnsight.save([])
            for number in range(blocks):
                block = wrapped.transformer.h[number]
                kept.append(block.attn.c_attn.output)
                kept.append(block.attn.c_proj.output)
                kept.append(block.attn.output)
                kept.append(block.ln_2.output)
                kept.append(block.mlp.act.output)
                kept.append(block.mlp.dropout.output)
                kept.append(block.output)
        assert len(kept) == 7 * blocks
        return kept

    return run


def with_transformer_lens(model, ids) -> Call:
    from transformer_lens.model_bridge import TransformerBridge

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    bridged = TransformerBridge.boot_transformers(
        "gpt2", hf_model=model, tokenizer=tokenizer
    )

    def run():
        with torch.no_grad():
            return bridged.run_with_cache(ids)

    return run


def with_torchlens(model, ids) -> Call:
    import torchlens

    def run():
        with torch.no_grad():
            return torchlens.trace(model, ids)

    return run


def with_pyvene(model, ids) -> Call:
    import pyvene

    settings = [
        {
            "component": f"transformer.h[{layer}].{path}",
            "intervention": pyvene.CollectIntervention(),
        }
        for layer in range(model.config.n_layer)
        for path in ("attn.c_attn.output", "ln_2.output", "mlp.act.output", "output")
    ]
    wrapped = pyvene.IntervenableModel(settings, model=model)

    def run():
        with torch.no_grad():
            return wrapped({"input_ids": ids}, unit_locations=None)

    return run


MAKERS = {
    "nnsight": with_nnsight,
    "transformer_lens": with_transformer_lens,
    "torchlens": with_torchlens,
    "pyvene": with_pyvene,
}
