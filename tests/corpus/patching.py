"""Activations of one run put into another, right and wrong."""

from __future__ import annotations

from contextlib import suppress

import torch

from tests.corpus.cases import right, wrong


class _Stop(Exception):  # noqa: N818 - no error, but a way out
    """Thrown by a hook when all that is wanted has been seen."""


def state(model, input_ids, layer=1):
    """What a block puts out."""
    with torch.no_grad():
        return model(input_ids, output_hidden_states=True).hidden_states[layer + 1]


def patched(model, input_ids, put):
    """The logits with another tensor for what block 1 puts out."""
    block = model.transformer.h[1]
    with torch.no_grad(), block.register_forward_hook(lambda m, args, output: put):
        return {"patched_logits": model(input_ids).logits}


@right("the whole stream of other rows, patched in", notes={"RC204"})
def stream_of_other_rows(model, input_ids):
    return patched(model, input_ids, state(model, input_ids.flip(0)))


@right("the whole stream of corrupted tokens, patched in", notes={"RC204"})
def stream_of_corrupted_tokens(model, input_ids):
    corrupted = (input_ids + 7) % model.config.vocab_size
    return patched(model, input_ids, state(model, corrupted))


@right("the whole stream of one fixed text, run anew each time", notes={"RC204"})
def stream_of_a_fixed_text(model, input_ids):
    text = torch.arange(input_ids.numel()).view_as(input_ids)
    return patched(model, input_ids, state(model, text % model.config.vocab_size))


@right("the stream of a fixed text, whose run is stopped", notes={"RC204"})
def stream_of_a_stopped_run(model, input_ids):
    seen = []

    def stop(module, args, output):
        seen.append(output)
        raise _Stop

    text = torch.zeros_like(input_ids) + 3
    hook = model.transformer.h[1].register_forward_hook(stop)
    with torch.no_grad(), hook, suppress(_Stop):
        model(text)
    return patched(model, input_ids, seen[0])


@right("the whole stream ablated", notes={"RC204"})
def stream_of_zeros(model, input_ids):
    shape = (*input_ids.shape, model.config.n_embd)
    return patched(model, input_ids, torch.zeros(shape))


@wrong(row="D9", rules={"RC206"}, maker=True)
def donor_of_the_first_prompt():
    """The donor's state is computed once, of the first prompt, and kept."""
    donors = {}

    def capture(model, input_ids):
        if input_ids.shape not in donors:
            donors[input_ids.shape] = state(model, input_ids.flip(0))
        return patched(model, input_ids, donors[input_ids.shape])

    return capture


@wrong(row="D9", rules={"RC206"}, maker=True)
def replays_in_each_of_two_passes():
    """setdefault returns the first prompt's output, in a pass and in the one after."""
    store = {}

    def capture(model, input_ids):
        def keep(module, args, output):
            return store.setdefault(output.shape, output)

        with torch.no_grad(), model.transformer.h[1].register_forward_hook(keep):
            model(input_ids)
            return {"logits": model(input_ids).logits}

    return capture


@wrong(row="new", rules={"RC204"})
def heads_halved_in_place(model, input_ids):
    """A pre-hook edits what c_proj is given in place."""

    def halve(module, args):
        args[0].mul_(0.5)

    projection = model.transformer.h[1].attn.c_proj
    with torch.no_grad(), projection.register_forward_pre_hook(halve):
        return {"logits": model(input_ids).logits}
