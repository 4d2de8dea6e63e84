"""Laws over whole runs: what one run says about another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import recon
import torch
from hypothesis import given
from hypothesis import strategies as st
from recon import Site, Trace
from torch import Tensor

from property_tests.observing import record, same_bits
from property_tests.strategies import VOCABULARY, Run, runs

def rows_first(place: Site, tensor: Tensor) -> Tensor:
    axis = tensor.ndim - 2
    return tensor.movedim(axis, 1)

TOKENWISE=("input_ids","inputs_embeds","token_type_ids","position_ids")

def others(inputs: dict[str, Any], seed, where: Tensor) -> dict[str, Any]:
    """other tokens at where (B T)"""
    g = torch.Generator().manual_seed(seed)
    changed = dict(inputs)
    for name in ("input_ids", "token_type_ids"):
        if name in inputs:
            some = torch.randint(VOCABULARY, where.shape, generator=g)
            changed[name] = torch.where(where, some, inputs[name])
    if "inputs_embeds" in inputs:
        e=inputs["inputs_embeds"]
        some = torch.randn(e.shape, generator=g).to(e.dtype)
        changed["inputs_embeds"] = torch.where(where[..., None], some, e)
    return changed

def plain(run):
    return replace(run, prompt=replace(run.prompt, keep=None))

SKIP=("cross.kv",)
@given(run=runs(min_tokens=2), data=st.data())
def test_causal_exact(run, data):
    run = plain(run)
    model, inputs = run.build()
    t = run.prompt.tokens
    cut = data.draw(st.integers(1, t-1))
    where = torch.zeros(run.prompt.batch, t, dtype=torch.bool); where[:, cut:] = True
    a,_ = record(model, inputs)
    b,_ = record(model, others(inputs, 77, where))
    awake = run.prompt.awake[:, :cut]
    bad=[]
    for s, x in a.tensors.items():
        y = b.tensors[s]
        if s.part in ("wpe", "cross.kv"): 
            continue
        x, y = rows_first(s,x)[:, :cut], rows_first(s,y)[:, :cut]
        if not torch.equal(x[awake], y[awake]):
            bad.append((str(s), (x[awake].double()-y[awake].double()).abs().max().item()))
    assert not bad

@given(run=runs(min_batch=2), data=st.data())
def test_rows_exact(run, data):
    run = plain(run)
    model, inputs = run.build()
    t = run.prompt.tokens
    row = data.draw(st.integers(0, run.prompt.batch-1))
    where = torch.zeros(run.prompt.batch, t, dtype=torch.bool); where[row] = True
    a,_ = record(model, inputs)
    b,_ = record(model, others(inputs, 77, where))
    rest=[i for i in range(run.prompt.batch) if i!=row]
    bad=[]
    for s, x in a.tensors.items():
        y = b.tensors[s]
        if s.part in ("wpe",): continue
        if not same_bits(x[rest], y[rest]):
            bad.append((str(s), (x[rest].double()-y[rest].double()).abs().max().item()))
    assert not bad

BATCHED=("input_ids","inputs_embeds","token_type_ids","attention_mask","encoder_hidden_states","encoder_attention_mask")
@given(run=runs(min_batch=2), data=st.data())
def test_permute(run, data):
    run = plain(run)
    model, inputs = run.build()
    order = data.draw(st.permutations(range(run.prompt.batch)))
    perm = {k: (v[order] if k in BATCHED or (k=="position_ids" and run.prompt.positions=="each") else v) for k,v in inputs.items()}
    a,_ = record(model, inputs)
    b,_ = record(model, perm)
    bad=[]
    for s, x in a.tensors.items():
        y = b.tensors[s]
        if s.part == "wpe" and run.prompt.positions!="each": continue
        if not same_bits(x[order], y):
            bad.append((str(s), (x[order].double()-y.double()).abs().max().item()))
    assert not bad

@given(run=runs(min_tokens=2), data=st.data())
def test_padding_exact(run, data):
    run = plain(run)
    model, inputs = run.build()
    a,_ = record(model, inputs)
    b,_ = record(model, others(inputs, 77, ~run.prompt.seen))
    seen = run.prompt.seen
    bad=[]
    for s, x in a.tensors.items():
        y = b.tensors[s]
        if s.part in ("wpe", "cross.kv"): 
            continue
        x, y = rows_first(s,x), rows_first(s,y)
        if not torch.equal(x[seen], y[seen]):
            bad.append((str(s), (x[seen].double()-y[seen].double()).abs().max().item()))
    assert not bad
