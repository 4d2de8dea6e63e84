"""Captures that are no plain tensors: sparse, nested, quantized, complex."""

from __future__ import annotations

import torch

from tests.corpus.cases import right, wrong
from tests.corpus.patching import state


def _jagged(rows):
    return torch.nested.nested_tensor(rows, layout=torch.jagged)


def _texts(model, input_ids, attention_mask, layer):
    """What a block puts out for the text of each row, without its padding."""
    pairs = zip(input_ids, attention_mask, strict=True)
    return [state(model, row[seen.bool()][None], layer)[0] for row, seen in pairs]


@right("sparse tensors of states, in three layouts")
def sparse_states(model, input_ids):
    first, second = (state(model, input_ids, layer) for layer in (0, 1))
    return {
        "h.0.resid_post": first.to_sparse(),
        "h.1.resid_post": second.to_sparse(2),
        "row": {"h.1.resid_post": second[0].to_sparse_csr()},
    }


@right("a nested tensor of the texts' states", notes={"RC121"})
def nested_texts(model, input_ids, attention_mask):
    return {"h.1.resid_post": _jagged(_texts(model, input_ids, attention_mask, 1))}


@right("a spectrum beside a state", notes={"RC120"})
def spectrum(model, input_ids):
    second = state(model, input_ids)
    return {"spectrum_1": torch.fft.fft(second), "h.1.resid_post": second}


@wrong(row="A5", rules={"RC102"}, sites="h.0.resid_post")
def sparse_state_of_another_layer(model, input_ids):
    """A sparse tensor of the next block's output, beside a right one."""
    second = state(model, input_ids)
    return {"h.0.resid_post": second.to_sparse(), "h.1.resid_post": second}


@wrong(row="A5", rules={"RC102"}, sites="h.1.resid_post")
def nested_texts_of_another_layer(model, input_ids, attention_mask):
    """A nested tensor of the block's input."""
    return {"h.1.resid_post": _jagged(_texts(model, input_ids, attention_mask, 0))}


@wrong(row="A5", rules={"RC102"}, sites="h.1.resid_post")
def rows_of_another_layer(model, input_ids):
    """A list of rows of the block's input."""
    return {"h.1.resid_post": list(state(model, input_ids, 0))}


@wrong(row="new", rules={"RC120"})
def quantized_state(model, input_ids):
    """What recon cannot look at under the name of a site is no pass."""
    second = state(model, input_ids)
    codes = torch.quantize_per_tensor(second, 0.1, 0, torch.qint8)
    return {"h.0.resid_post": codes, "h.1.resid_post": second}
