"""Every rule of an audit: what a finding of it means, and how it is usually mended.

Codes are stable. RC1 asks whether a tensor is what its name says, RC2 what the code did
to the model, RC3 how the captures are stored, RC4 how they behave over several runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, TypeAlias

from recon.errors import UsageError

Severity: TypeAlias = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Rule:
    """One thing that may be said about hook code; ``severity`` is the usual one."""

    code: str
    name: str
    severity: Severity
    meaning: str
    mend: str


RULES = (
    # -- RC1: is it what its name says? ------------------------------------------
    Rule(
        "RC101",
        "wrong-site",
        "error",
        "The tensor is another site of the model than its name says.",
        "Hook the module (and read the side, input or output) that holds the site.",
    ),
    Rule(
        "RC102",
        "wrong-layer",
        "error",
        "The tensor is the right site of another block.",
        "Check what the loop counts from, and that closures bind the layer's number.",
    ),
    Rule(
        "RC103",
        "wrong-layout",
        "error",
        "The values are those of the site, in a scrambled order.",
        "Split heads with view(B, T, H, d).transpose(1, 2); undo it the same way.",
    ),
    Rule(
        "RC104",
        "dropped-batch",
        "error",
        "Of a batch only one row was kept.",
        "Of a tensor, which MLPs and (from transformers 5 on) blocks return, output[0] "
        "is row 0: use output[0] if isinstance(output, tuple) else output.",
    ),
    Rule(
        "RC105",
        "wrong-formula",
        "error",
        "The tensor was computed from the right inputs by another formula.",
        "Read the tensor off the model, or use the formula of its config.",
    ),
    Rule(
        "RC106",
        "wrong-terms",
        "error",
        "The tensor lacks a term of the site, or has one too many.",
        "Add the missing term (residual, bias, position), or name what is stored.",
    ),
    Rule(
        "RC107",
        "other-run",
        "error",
        "The tensor comes from another forward pass than the one asked for.",
        "Clear the store before each pass, and fail if a key was not written.",
    ),
    Rule(
        "RC108",
        "unexplained",
        "error",
        "The tensor is none of what the model computed, as far as recon can tell.",
        "Compare with the nearest site that is named, and with the pass it came from.",
    ),
    Rule(
        "RC109",
        "wrong-count",
        "error",
        "There are more or fewer entries than the model has sites of that name.",
        "Check the filter that selects modules, and that keys do not overwrite.",
    ),
    Rule(
        "RC110",
        "nothing-captured",
        "error",
        "A capture is empty or None: its hook never fired, or saw no tensor.",
        "Check that the hooked module runs in this version and attention kernel.",
    ),
    Rule(
        "RC111",
        "not-finite",
        "error",
        "The capture holds NaN or infinity where the model computed finite numbers.",
        "Look for a cast to a narrower dtype, or memory read before it was written.",
    ),
    Rule(
        "RC112",
        "reduced-precision",
        "note",
        "The tensor is the site, rounded to a narrower dtype.",
        "Keep the model's dtype if later comparisons are to be exact.",
    ),
    Rule(
        "RC113",
        "padding-taken",
        "warning",
        "Padding was taken for text: a last token or a mean counts padded positions.",
        "Find each row's last token in attention_mask, and weigh means with it.",
    ),
    Rule(
        "RC114",
        "wrong-tokens",
        "error",
        "The tensor holds other token positions, or another order of rows, than it "
        "should.",
        "Check slices along the token axis, and whether a tokenizer adds a token.",
    ),
    Rule(
        "RC115",
        "wrong-shape",
        "error",
        "The tensor has axes that its site does not have, or lacks some.",
        "Compare shapes strictly; allclose broadcasts.",
    ),
    Rule(
        "RC116",
        "wrong-edit",
        "error",
        "The name promises a pass with an edit or without, and it is of the other.",
        "Return the new tensor from the hook; take edits off before a clean run.",
    ),
    Rule(
        "RC120",
        "unclaimed",
        "note",
        "The name promises nothing that recon can read; the tensor is only identified.",
        "Say what it is meant to be with --claim 'name=site'.",
    ),
    Rule(
        "RC121",
        "generous-reading",
        "note",
        "The name has several honest readings; the tensor is right under this one.",
        "Say in the name which piece or reading it is, so that readers need not guess.",
    ),
    Rule(
        "RC122",
        "by-design",
        "note",
        "The tensor is what the library that names it shows in place of the site.",
        "Say so where the captures are used; or load the weights as they are.",
    ),
    Rule(
        "RC123",
        "edited-here",
        "note",
        "The code edits the model at this very site: the tensor is of before the edit, "
        "or of after it.",
        "Hooks run in the order in which they were made: say which side is meant.",
    ),
    # -- RC2: what did the code do to the model? ---------------------------------
    Rule(
        "RC201",
        "hooks-left",
        "error",
        "Hooks stayed on the model after the code had ended.",
        "Remove every handle in a finally block, or use a context manager.",
    ),
    Rule(
        "RC202",
        "hooks-removed",
        "error",
        "Hooks of others were removed, or put in another order.",
        "Remove the handles that you made, never clear a module's hooks.",
    ),
    Rule(
        "RC203",
        "hooks-left-after-error",
        "error",
        "After a pass that raised, hooks stayed on the model.",
        "Remove every handle in a finally block, or use a context manager.",
    ),
    Rule(
        "RC204",
        "changes-result",
        "warning",
        "The model computes something else while the code captures.",
        "Return None from hooks, and clone before editing in place.",
    ),
    Rule(
        "RC205",
        "changes-some-rows",
        "error",
        "The code changes the result of some rows of a batch only.",
        "output[0] of a tensor is row 0: edit the whole tensor.",
    ),
    Rule(
        "RC206",
        "replays-earlier-run",
        "error",
        "The model returns what it had returned for an earlier input.",
        "A hook returns a stored value (dict.setdefault does): return None.",
    ),
    Rule(
        "RC207",
        "mode-changed",
        "error",
        "Modules are in another mode (train or eval) than before.",
        "Put the mode back, also after an exception.",
    ),
    Rule(
        "RC208",
        "weights-changed",
        "error",
        "Parameters or buffers changed, or were replaced.",
        "Work on a copy of the model, or restore the values.",
    ),
    Rule(
        "RC209",
        "config-changed",
        "error",
        "The model's config, or an attribute of a module, is another one than before.",
        "Pass options to the call, or put the config back.",
    ),
    Rule(
        "RC210",
        "random-state-changed",
        "note",
        "Random numbers were drawn, or a seed was set, for the whole process.",
        "Use a torch.Generator of your own, or torch.random.fork_rng.",
    ),
    Rule(
        "RC211",
        "forward-replaced",
        "error",
        "Modules run another forward than before, or are other modules.",
        "Put the original forward back, also after an exception.",
    ),
    Rule(
        "RC212",
        "global-state-changed",
        "error",
        "Global hooks or settings of the process are not as they were.",
        "Use context managers, and remove global hooks.",
    ),
    Rule(
        "RC213",
        "requires-grad-changed",
        "error",
        "Parameters require gradients or none, or hold others, unlike before.",
        "Use torch.no_grad, or put requires_grad back; zero_grad() after backward().",
    ),
    Rule(
        "RC214",
        "unpicklable",
        "warning",
        "The model could be pickled before, and cannot be any more.",
        "Remove closures and lambdas from the model.",
    ),
    Rule(
        "RC215",
        "hidden-states-broken",
        "error",
        "output_hidden_states does not return what it returned before.",
        "Leave the hooks of transformers on the model.",
    ),
    Rule(
        "RC216",
        "tensor-left",
        "warning",
        "Tensors stayed on the model, as attributes of its modules.",
        "Keep captures in a dict of the function's own, or delete the attribute.",
    ),
    Rule(
        "RC217",
        "graph-cut",
        "warning",
        "The result stays the same, but gradients stop on their way back.",
        "Return None from hooks: the output itself, not a detached copy, goes on.",
    ),
    Rule(
        "RC218",
        "inputs-changed",
        "error",
        "The tensors that the function was given hold other values than before.",
        "Clone what you edit: input_ids = input_ids.clone().",
    ),
    Rule(
        "RC219",
        "padding-counted",
        "note",
        "In a batch padded on the left, the model counts positions from the padding.",
        "Give position_ids, as generate does: (attention_mask.cumsum(1) - 1).clamp(0).",
    ),
    # -- RC3: how are the captures stored? ---------------------------------------
    Rule(
        "RC301",
        "overwritten",
        "error",
        "The capture changed after it was taken: it is a view of memory that was "
        "edited in place.",
        "Clone what you keep, before anything edits it.",
    ),
    Rule(
        "RC302",
        "graph-kept",
        "note",
        "The capture keeps the autograd graph of its pass alive.",
        "Detach what you keep, or run under torch.no_grad.",
    ),
    Rule(
        "RC303",
        "memory-held",
        "note",
        "The captures keep more memory alive than they need: views of larger tensors.",
        "Clone small slices of large tensors.",
    ),
    Rule(
        "RC304",
        "live-object",
        "warning",
        "The code returned an object that later passes change, not tensors.",
        "Copy the tensors out of a cache or model output.",
    ),
    Rule(
        "RC305",
        "inference-tensor",
        "note",
        "The capture was made under inference_mode: autograd cannot use it.",
        "Use torch.no_grad if a probe is to be trained on it.",
    ),
    # -- RC4: how does the code behave over several runs? ------------------------
    Rule(
        "RC401",
        "grows",
        "error",
        "Captures of earlier passes stay in the store and are returned again.",
        "Make the store anew in each call, or clear it.",
    ),
    Rule(
        "RC402",
        "not-repeatable",
        "warning",
        "The same prompt gives other captures the second time.",
        "Seed the generators, and put the model into eval mode.",
    ),
    Rule(
        "RC403",
        "raises",
        "error",
        "The code raises.",
        "See the traceback.",
    ),
    Rule(
        "RC404",
        "raises-sometimes",
        "error",
        "The code works with one prompt, and raises in another situation.",
        "See the traceback; check what is assumed of batch, length or mode.",
    ),
    Rule(
        "RC405",
        "keys-vary",
        "error",
        "The code returns other names in some runs.",
        "Fail if a hook did not fire; clear the store before each pass.",
    ),
    Rule(
        "RC406",
        "never-ends",
        "error",
        "The code was still running when its time was up.",
        "Look at what its loop waits for; if it is slow, give it more with --timeout.",
    ),
)


def rule(word: str, among: Sequence[Rule] = RULES) -> Rule:
    """Return the rule of a code (``RC101``) or name; raises UsageError for another."""
    by_name = {name: one for one in among for name in (one.code, one.name)}
    found = by_name.get(word) or by_name.get(word.upper())
    if found is None:
        # All codes look alike, so a guess at one would tell nothing.
        near = get_close_matches(word, [one.name for one in among], n=3, cutoff=0.6)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise UsageError(
            f"unknown rule {word!r}{hint} (recon explain lists all of them)"
        )
    return found
