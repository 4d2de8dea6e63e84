"""torchlens: the output of every module and operation of a pass."""

from collections import defaultdict

import torch
import torchlens
from torchlens.backends.torch.wrappers import wrap_torch

# The first trace of a process wraps torch's functions for good. Done here, it is no
# effect of the function that happens to trace first.
wrap_torch()


def logged(model, input_ids):
    with torch.no_grad():
        return torchlens.trace(model, input_ids)


def capture(model, input_ids):
    """Outputs by the address of the module that gave them, of all that gave one.

    torchlens counts the tensors of a key-value cache among the outputs of attention and
    block, so that these have several.
    """
    given = defaultdict(list)
    for op in logged(model, input_ids).ops:
        for address in op.output_of_modules:
            if op.out.is_floating_point() and address.startswith("transformer.h."):
                given[address].append(op.out)
    return {address: outs[0] for address, outs in given.items() if len(outs) == 1}


def capture_operations(model, input_ids):
    """Outputs of all operations, by label; a cache begins with empty tensors."""
    outs = {op.label: op.out for op in logged(model, input_ids).ops}
    return {
        label: out
        for label, out in outs.items()
        if out.is_floating_point() and out.numel()
    }
