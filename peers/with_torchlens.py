"""torchlens: the output of every module and operation of a pass."""

import torch
import torchlens


def logged(model, input_ids):
    with torch.no_grad():
        return torchlens.trace(model, input_ids)


def capture(model, input_ids):
    """Outputs by the address of the module; of attention and the like the tensor."""
    trace = logged(model, input_ids)
    return {
        name: trace[name].out
        for name, _ in model.named_modules()
        if name and name in trace.modules.keys() and "ModuleList" not in name  # noqa: SIM118
    }


def capture_operations(model, input_ids):
    """Outputs of all operations, by label."""
    ops = logged(model, input_ids).ops
    return {op.label: op.out for op in ops if op.out.is_floating_point()}
