"""Does the audit notice whatever is done to a site, and leave honest captures alone?

How often it also names what was done: pytest --hypothesis-show-statistics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812 - as torch's own documentation has it
from hypothesis import assume, event, example, given, note, settings
from hypothesis import strategies as st
from torch import Tensor

import recon
from property_tests.observing import record, same_bits
from recon import Site, Trace, gpt2
from recon.testing.strategies import Prompt, Recipe, models
from tests.corpus import RIGHT, Right
from tests.corpus.containing import contained

Capture: TypeAlias = Callable[..., Mapping[str, Any]]

# -- what may be done to a tensor ------------------------------------------------


@dataclass(frozen=True)
class Step:
    """A wrong transformation that keeps the shape, and the rules that name it.

    ``by_design`` says that TransformerLens does as much to what it captures.
    """

    name: str
    rules: frozenset[str]
    make: Callable[[Tensor], Tensor]
    by_design: bool = False


# The axis of the tokens in B T D as in B H T d.
TOKEN_AXIS = -2


def cut_wrongly(x: Tensor) -> Tensor:
    """What a view makes of the axes that a transpose would have moved."""
    if x.ndim == 4:
        return x.transpose(1, 2).reshape(x.shape)
    return x.reshape(x.shape[0], x.shape[2], x.shape[1]).transpose(1, 2)


def ramp(x: Tensor) -> Tensor:
    """One constant vector, added at every token."""
    return x + torch.linspace(-1, 1, x.shape[-1] + 1)[:-1]


def noise(x: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return x + 0.1 * torch.randn(x.shape, generator=generator)


def first_row(x: Tensor) -> Tensor:
    return x[:1].expand_as(x).clone()


def centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def normed(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


FORMULA, TERMS = frozenset({"RC105"}), frozenset({"RC106"})
LAYOUT, TOKENS = frozenset({"RC103"}), frozenset({"RC114"})
STEPS = (
    Step("rows reversed", TOKENS, lambda x: x.flip(0)),
    Step("first row for all", TOKENS | {"RC104"}, first_row),
    Step("tokens reversed", TOKENS, lambda x: x.flip(TOKEN_AXIS)),
    Step("tokens rolled", TOKENS, lambda x: x.roll(1, TOKEN_AXIS)),
    Step("heads reversed", LAYOUT, lambda x: x.flip(1) if x.ndim == 4 else x),
    Step("features reversed", LAYOUT, lambda x: x.flip(-1)),
    Step("cut without a transpose", LAYOUT, cut_wrongly),
    Step("halved", FORMULA, lambda x: 0.5 * x),
    Step("scaled", FORMULA, lambda x: x / math.sqrt(x.shape[-1])),
    Step("gelu by erf", FORMULA, F.gelu),
    Step("relu", FORMULA, F.relu),
    Step("softmax", FORMULA, lambda x: x.softmax(-1)),
    Step("to unit length", FORMULA, lambda x: F.normalize(x, dim=-1)),
    Step("centred", FORMULA | TERMS, centred, by_design=True),
    Step("normed", FORMULA, normed, by_design=True),
    Step("a bias added", TERMS, ramp, by_design=True),
    Step("doubled", TERMS | FORMULA, lambda x: x + x),
    Step("noise", frozenset({"RC108"}), noise),
    Step("zeroed", frozenset({"RC108", "RC110"}), torch.zeros_like),
)


@dataclass(frozen=True)
class Chain:
    """A capture: what is taken, what is done to it, and what it is called.

    ``readings`` are the sites that the name may honestly be read as.
    """

    source: Site
    steps: tuple[str, ...]
    claim: Site
    name: str
    readings: tuple[Site, ...]

    def value(self, trace: Trace) -> Tensor:
        found = trace[self.source]
        for name in self.steps:
            found = _STEP[name].make(found)
        return found

    def capture(self) -> Capture:
        def capture(model, input_ids):
            with torch.no_grad(), recon.capture(model) as recorder:
                model(input_ids)
            return {self.name: self.value(recorder.trace).clone()}

        return capture

    @property
    def rules(self) -> frozenset[str]:
        """The rules that name some part of what was done."""
        told = frozenset().union(*(_STEP[name].rules for name in self.steps))
        if self.source.part != self.claim.part:
            return told | {"RC101"}
        return told | {"RC102"} if self.source != self.claim else told


_STEP = {step.name: step for step in STEPS}


# -- random models, and random captures of them ----------------------------------


def tame(recipe: Recipe) -> Recipe:
    """Leave no room for ties that come from one head, one block or few features."""
    options = {k: v for k, v in recipe.options.items() if k != "add_cross_attention"}
    heads = max(2, options["n_head"])
    width = max(4, options["n_embd"] // options["n_head"])
    options |= {"n_head": heads, "n_embd": heads * width}
    options["n_layer"] = max(2, options["n_layer"])
    return replace(recipe, options=options)


def recipes() -> st.SearchStrategy[Recipe]:
    return models(max_layer=3, dtypes=("float32",)).map(tame)


# Names with several honest readings, by the site that they are drawn for.
LOOSE = {
    "resid_post": ("layer_{}", "block{}_out", "layers.{}"),
    "mlp_out": ("mlp_{}",),
    "attn_out": ("attn_{}",),
}
READINGS = {
    "resid_post": ("resid_pre", "resid_post"),
    "mlp_out": ("mlp.pre", "mlp.post", "mlp.out", "mlp_out"),
    "attn_out": ("attn.out", "attn_out", "attn.z", "attn.pattern"),
}


def readings(claim: Site, trace: Trace) -> tuple[Site, ...]:
    """The sites that a loose name for ``claim`` may mean, counted from 0 or 1."""
    assert claim.layer is not None
    layers = [claim.layer - 1, claim.layer]
    parts = READINGS[claim.part]
    sites = [Site(part, layer) for part in parts for layer in layers if layer >= 0]
    return tuple(site for site in sites if site in trace)


def shown(trace: Trace) -> list[Site]:
    """The sites that were captured, and not computed from others on demand."""
    return [s for s in trace if trace.origin(s) in ("captured", "view")]


def draw_chain(data: st.DataObject, trace: Trace) -> Chain:
    """Draw a source, up to two steps, a claim and a name for it."""
    sites = shown(trace)
    claim = data.draw(st.sampled_from(sites), label="claim")
    # Likelier than chance: the right site itself, or one of the same shape.
    alike = [s for s in sites if trace[s].shape == trace[claim].shape]
    pools = [[claim], alike, sites]
    pool = data.draw(st.sampled_from(pools), label="source among")
    source = data.draw(st.sampled_from(pool), label="source")
    least = 1 if source == claim else 0
    some = st.lists(st.sampled_from(sorted(_STEP)), min_size=least, max_size=2)
    steps = data.draw(some, label="steps")
    by_design = any(_STEP[name].by_design for name in steps)
    names = [n for n in claim.names if not (by_design and n == claim.lens)]
    names += [f"module.{claim.hf}"] if claim.hf else []
    loose = [name.format(claim.layer) for name in LOOSE.get(claim.part, ())]
    name = data.draw(st.sampled_from([*names, *loose]), label="name")
    meant = readings(claim, trace) if name in loose else (claim,)
    return Chain(source, tuple(steps), claim, name, meant)


def probe(recipe: Recipe) -> Trace:
    """A pass over three rows, to see what a chain makes of the sites."""
    inputs = Prompt(batch=3, tokens=7, seed=1).tensors(recipe)
    return record(recipe.build(), inputs)[0]


def harmless(chain: Chain, trace: Trace) -> bool:
    """Whether the chain yields the claim after all, in all bits or as certified."""
    value = chain.value(trace)
    if any(same_bits(value, trace[site]) for site in chain.readings):
        return True
    if value.shape != trace[chain.claim].shape:
        return False
    replaced = trace.replace(chain.claim, value)
    return recon.verify_trace(replaced, levels=("certify",)).verdict == "reconciled"


def findings(chain: Chain, recipe: Recipe) -> list[Any]:
    report = recon.audit(chain.capture(), recipe.build())
    found = [f for f in report.findings if f.severity == "error"]
    note("\n".join(f"{f.severity} {f.rule.code} {f.message}" for f in report.findings))
    return found


# -- the laws --------------------------------------------------------------------


@given(recipe=recipes(), data=st.data())
def test_a_wrong_composition_is_noticed(recipe: Recipe, data: st.DataObject):
    trace = probe(recipe)
    assume(all(trace[site].isfinite().all() for site in shown(trace)))
    chain = draw_chain(data, trace)
    if harmless(chain, trace):
        event("harmless")
        return
    found = findings(chain, recipe)
    assert found
    codes = {finding.rule.code for finding in found}
    event("named" if codes & chain.rules else f"called {sorted(codes)} instead")


PLAIN = Recipe({"n_layer": 2, "n_head": 2, "n_embd": 16})


@given(recipe=st.just(PLAIN), step=st.sampled_from(STEPS), data=st.data())
@example(PLAIN, _STEP["cut without a transpose"], Site("attn.q", 1))
@example(PLAIN, _STEP["gelu by erf"], Site("mlp.post", 0))
def test_one_wrong_step_is_noticed_under_the_plain_name(
    recipe: Recipe, step: Step, data: st.DataObject | Site
):
    trace = probe(recipe)
    claim = data
    if not isinstance(claim, Site):
        claim = data.draw(st.sampled_from(shown(trace)), label="claim")
    chain = Chain(claim, (step.name,), claim, str(claim), (claim,))
    assume(not harmless(chain, trace))
    found = findings(chain, recipe)
    assert found
    assert any(str(claim) in finding.sites for finding in found)
    named = {finding.rule.code for finding in found} & step.rules
    event(f"{step.name}: {'named' if named else 'found only'}")


# -- what an honest person does to a tensor ----------------------------------------


def merged(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


HONEST: dict[str, Callable[[Tensor], Any]] = {
    "as it is": lambda x: x,
    "cloned": lambda x: x.clone(),
    "contiguous": lambda x: x.contiguous(),
    "numpy": lambda x: x.numpy(),
    "float64": lambda x: x.double(),
    "half precision": lambda x: x.to(torch.bfloat16),
    "squeezed": lambda x: x.squeeze(0),
}
HEADED = {
    "tokens before heads": lambda x: x.transpose(1, 2),
    "heads merged": merged,
}


# -- every site under its own names ---------------------------------------------


def everything(names: Callable[[Site], str], sites: frozenset[Site]) -> Capture:
    """Return what captures all of some sites, and calls them what ``names`` says."""

    def capture(model, input_ids):
        with torch.no_grad(), recon.capture(model) as recorder:
            model(input_ids)
        trace = recorder.trace
        return {names(s): trace[s].clone() for s in sites if names(s)}

    return capture


# Code that computes attention by itself takes the usual scale for granted.
ATTENTION = {"scale_attn_weights", "scale_attn_by_inverse_layer_idx"}


def fitted(recipe: Recipe, case: Right) -> Recipe:
    """Give a model what the code of a case takes for granted."""
    wanted = {"attention": "eager", "n_layer": 3, "n_positions": 64, **case.model}
    attention = wanted.pop("attention")
    usual = {k: v for k, v in recipe.options.items() if k not in ATTENTION}
    options = {**usual, **wanted}
    return replace(recipe, options=options, headed=case.headed, attention=attention)


@settings(max_examples=max(8, settings().max_examples // 2))
@given(recipe=recipes(), case=st.sampled_from(RIGHT))
def test_correct_code_of_any_style_is_left_alone(recipe: Recipe, case: Right):
    model = fitted(recipe, case).build()
    if case.prepare is not None:
        case.prepare(model)
    with contained():
        report = recon.audit(case.fresh(), model)
    above = [found for found in report.findings if found.severity != "note"]
    note("\n".join(f"{f.rule.code} {f.message} {f.places}" for f in above))
    event("left alone" if not above else "false alarm")
    assert above == []


# -- captures beside an edit -------------------------------------------------------


def beside(path: str, name: str, *, captured_first: bool) -> Capture:
    """Return what halves a module's output, and captures it before or after that."""

    def capture(model, input_ids):
        kept = {}

        def keep(module, args, output):
            kept[name] = output[0] if isinstance(output, tuple) else output

        def halve(module, args, output):
            whole = isinstance(output, tuple)
            return (output[0] * 0.5, *output[1:]) if whole else output * 0.5

        module = model.get_submodule(path)
        hooks = (keep, halve) if captured_first else (halve, keep)
        with ExitStack() as stack, torch.no_grad():
            for hook in hooks:
                stack.callback(module.register_forward_hook(hook).remove)
            model(input_ids)
        return kept

    return capture


@given(recipe=recipes(), captured_first=st.booleans(), data=st.data())
def test_a_capture_beside_an_edit_is_told_to_be_of_its_side(
    recipe: Recipe, captured_first: bool, data: st.DataObject
):
    trace, model = probe(recipe), recipe.build()
    passage = data.draw(st.sampled_from(gpt2.passages(model)), label="passage")
    place = passage.gives
    assume(
        trace[place].isfinite().all()
        and not same_bits(trace[place] * 0.5, trace[place])
    )
    capture = beside(passage.path, str(place), captured_first=captured_first)
    report = recon.audit(capture, model)
    note("\n".join(f"{f.rule.code} {f.message} {f.places}" for f in report.findings))
    side = "before" if captured_first else "after"
    (told,) = (f for f in report.findings if f.rule.code == "RC123")
    assert told.found == (f"{place} {side} the code's edit",)
    assert report.verdict == "clean"


VOCABULARIES: dict[str, Callable[[Site], str]] = {
    "recon": str,
    "Hugging Face": lambda s: s.hf,
    "TransformerLens": lambda s: s.lens,
}


# Each example audits some fifty tensors.
@settings(max_examples=max(4, settings().max_examples // 10))
@given(recipe=recipes(), vocabulary=st.sampled_from(sorted(VOCABULARIES)))
def test_every_site_is_right_under_its_own_name(recipe: Recipe, vocabulary: str):
    trace = probe(recipe)
    assume(all(trace[site].isfinite().all() for site in shown(trace)))
    capture = everything(VOCABULARIES[vocabulary], frozenset(shown(trace)))
    report = recon.audit(capture, recipe.build())
    note("\n".join(f"{f.rule.code} {f.message} {f.places}" for f in report.findings))
    assert report.verdict == "clean"
    assert {tensor.status for tensor in report.tensors} == {"right"}
