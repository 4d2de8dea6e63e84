"""Parts of an audit by themselves: passes compared, hooks noted, captures certified."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import namedtuple
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch

import recon
from recon import Site
from recon.auditing.causes import grouped
from recon.auditing.claims import Claim, Reading
from recon.auditing.formulas import other_formulas
from recon.auditing.judgement import Judgement
from recon.auditing.passes import first_changed, rows_changed
from recon.auditing.registering import registrations
from recon.auditing.situations import situations
from recon.errors import UsageError
from recon.verification import record as run
from tests.versions import CACHE

pytestmark = pytest.mark.usefixtures("without_type_checks")


def captured(model, ids):
    """Return all captures of a run by name, none of them computed on demand."""
    trace = run(model, input_ids=ids)
    held = [s for s in trace.sites if trace.origin(s) != "derived"]
    return {str(s): trace[s].clone() for s in held}


def judged(captures, model, ids):
    return recon.audit_captures(captures, model, inputs={"input_ids": ids})


# -- which situations ------------------------------------------------------------------


@pytest.mark.parametrize("context", [1, 2, 3, 12])
def test_every_situation_has_tokens_and_fits_the_context(make_model, context):
    # 2026-11: a thorough audit made up prompts of -1 and of 0 tokens.
    model = make_model(n_positions=context)
    takes = frozenset({"attention_mask", "position_ids"})
    for one in situations(model, None, takes, "thorough"):
        assert 1 <= one.inputs["input_ids"].shape[1] <= context


# -- captures from elsewhere -----------------------------------------------------------


def test_captures_are_certified_from_each_other(model, ids):
    report = judged(captured(model, ids), model, ids)
    assert report.verdict == "clean"
    assert {one.by for one in report.tensors} == {"certify"}


def test_a_capture_without_its_inputs_is_judged_by_the_models_own_run(model, ids):
    one = captured(model, ids)["h.1.mlp.pre"]
    report = judged({"h.1.mlp.pre": one}, model, ids)
    assert report.verdict == "clean"
    assert [one.by for one in report.tensors] == ["run"]


def test_certify_sees_an_error_that_is_small_enough_for_another_machine(model, ids):
    captures = captured(model, ids)
    damaged = captures["h.1.mlp.pre"].clone()
    damaged[0, 3, 4] += 5e-5 * damaged.std()
    assert judged({"h.1.mlp.pre": damaged}, model, ids).verdict == "clean"
    report = judged(captures | {"h.1.mlp.pre": damaged}, model, ids)
    (finding,) = report.findings
    assert finding.places == ("h.1.mlp.pre",)
    assert finding.evidence["bound_ratio"] > 1
    # What the model makes of the damaged capture is right by the model's own run.
    assert {one.status for one in report.tensors} == {"right", "wrong"}


def test_captures_of_a_wider_dtype_that_were_narrowed_are_clean(model, ids):
    captures = captured(model.double(), ids)
    narrow = {name: tensor.float() for name, tensor in captures.items()}
    assert judged(narrow, model.float(), ids).verdict == "clean"


def test_swapped_captures_are_named_although_their_sources_are_there(model, ids):
    captures = captured(model, ids)
    q, k = captures["h.1.attn.q"], captures["h.1.attn.k"]
    report = judged(captures | {"h.1.attn.q": k, "h.1.attn.k": q}, model, ids)
    (finding,) = report.findings
    assert finding.rule.name == "wrong-site"
    assert set(finding.places) == {"h.1.attn.q", "h.1.attn.k"}


def other_gelu(port):
    port.transformer.h[1].mlp.act = torch.nn.GELU()


def other_eps(port):
    for module in port.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-3


def no_bias(port):
    port.transformer.h[1].attn.c_attn.bias.data.zero_()


def q_for_k(port):
    for block in port.transformer.h:
        for of in (block.attn.c_attn.weight.data, block.attn.c_attn.bias.data):
            q, k, v = of.chunk(3, -1)
            of.copy_(torch.cat([k, q, v], -1))


def later_positions(port):
    table = port.transformer.wpe.weight.data
    table[:-1] = table[1:].clone()


PORTS = {
    other_gelu: {("wrong-formula", "h.1.mlp.post")},
    other_eps: {("wrong-formula", p) for p in ("h.0.ln_1", "h.0.ln_2")},
    no_bias: {("wrong-formula", f"h.1.attn.{p}") for p in "qkv"},
    q_for_k: {("wrong-site", "h.0.attn.k")},
    later_positions: {("wrong-terms", "embed")},
}


@pytest.mark.parametrize("fault", PORTS)
def test_what_follows_from_a_fault_is_counted_with_its_cause(fault, make_model, ids):
    model, port = make_model(), make_model()
    fault(port)
    captures = captured(port, ids)
    kept = {n: t for n, t in captures.items() if n.count("attn.qkv") + (n == "wpe") < 1}
    report = judged(kept, model, ids)
    told = {(f.rule.name, sorted(f.places)[0]) for f in report.findings}
    assert told == PORTS[fault]
    wrong = sum(one.status == "wrong" for one in report.tensors)
    places = sum(len(f.places) for f in report.findings)
    hence = [f.evidence["hence"] for f in report.findings if "hence" in f.evidence]
    assert [int(words.split()[0]) for words in hence] == [wrong - places] != [0]


def test_noise_is_told_as_a_gap_to_the_site_and_as_no_sum(model, ids):
    kept = captured(model, ids)["h.0.resid_post"]
    noise = torch.randn(kept.shape, generator=torch.Generator().manual_seed(0))
    report = judged({"h.0.resid_post": kept + 6e-5 * kept.std() * noise}, model, ids)
    (finding,) = report.findings
    assert finding.rule.name == "unexplained"
    assert finding.found == ("h.0.resid_post",)


def test_rows_in_another_order_are_told_up_to_rounding(model, ids):
    kept = captured(model, ids)["h.1.attn_out"].flip(0) * (1 + 2e-6)
    (finding,) = judged({"h.1.attn_out": kept}, model, ids).findings
    assert finding.rule.name == "wrong-tokens"
    assert "rows in the order [2, 1, 0]" in finding.message


def test_the_same_activation_of_another_library_is_no_other_formula(model, ids):
    trace = run(model, input_ids=ids)
    forms = [one.form for one in other_formulas(trace, Site("mlp.post", 1))]
    assert any("erf gelu" in form for form in forms)
    assert not any("tanh gelu" in form for form in forms)


def test_a_second_fault_is_no_consequence_of_the_first(make_model, ids):
    model, port = make_model(), make_model()
    other_gelu(port)
    captures = captured(port, ids)
    captures["h.2.mlp_out"] = 1.5 * captures["h.2.mlp_out"]
    report = judged(captures, model, ids)
    assert {"h.1.mlp.post", "h.2.mlp_out"} <= {
        p for f in report.findings for p in f.places
    }


def test_captures_of_other_inputs_under_unknown_names_are_refused(model, ids):
    captures = {f"{n}_x": t for n, t in captured(model, ids).items() if "h." in n}
    with pytest.raises(recon.UsageError, match="are these the inputs"):
        judged(captures, model, ids[:, :3])


def test_of_names_of_ones_own_one_that_fits_says_what_the_others_mean(model, ids):
    captures = captured(model, ids)
    own = {f"layer{n}.mlp.post_x": captures[f"h.{n}.mlp.post"] for n in range(2)}
    assert judged(own, model, ids).verdict == "clean"
    own["layer1.mlp.post_x"] = own["layer1.mlp.post_x"] * 1.5
    assert judged(own, model, ids).verdict == "findings"


# -- passes ------------------------------------------------------------------------


def test_a_pass_that_lays_its_cache_out_otherwise_is_no_other_pass(model, ids):
    with torch.no_grad(), recon.capture(model) as recorder:
        model(ids, use_cache=True)
    assert first_changed(recorder.trace, run(model, input_ids=ids)) is None


def test_rounding_that_grew_through_the_blocks_is_told_from_an_edit(model, ids):
    clean = run(model, input_ids=ids)
    place = Site("ln_f")
    far = clean[place] + 5e-5 * clean[place].std()
    grown = clean.replace(Site("resid_post", 2), clean["h.2.resid_post"])
    edited = grown.replace(place, far)
    assert first_changed(grown, clean) is None
    assert first_changed(edited, clean) == place


def test_only_the_rows_that_were_edited_count_as_changed(model, ids):
    clean = run(model, input_ids=ids)
    state = clean["h.1.resid_pre"].clone()
    state[1] += 0.1
    # All rows differ from the clean run by rounding, as with another kernel.
    other = clean.replace("h.0.resid_post", clean["h.0.resid_post"] * (1 + 1e-5))
    edited = other.replace("h.1.resid_pre", state * (1 + 1e-5))
    assert rows_changed(edited, clean, Site("resid_pre", 1)) == [1]


# -- hooks -------------------------------------------------------------------------


def test_a_hook_that_a_context_manager_registers_is_known_as_such(model):
    @contextmanager
    def hooked():
        handle = model.transformer.register_forward_hook(lambda *seen: None)
        yield handle
        handle.remove()

    with registrations() as seen:
        plain = model.register_forward_hook(lambda *seen: None)
        with hooked() as managed:
            pass
    plain.remove()
    assert seen.keys == {plain.id, managed.id}
    assert seen.managed == {managed.id}


def test_a_model_that_was_resized_is_put_back(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def capture(model, input_ids):
        model.resize_token_embeddings(model.config.vocab_size + 1)
        with torch.no_grad():
            return {"logits": model(input_ids).logits}

    report = recon.audit(capture, model, effort="quick")
    found = {finding.rule.name for finding in report.findings}
    assert "weights-changed" in found
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_gradients_and_hooks_on_parameters_are_seen_and_taken_away(model):
    weight = model.transformer.wpe.weight

    def capture(model, input_ids):
        weight.register_hook(lambda grad: None)
        out = model(input_ids, labels=input_ids)
        out.loss.backward()
        return {"logits": out.logits.detach()}

    report = recon.audit(capture, model, effort="quick")
    found = {finding.rule.name for finding in report.findings}
    assert {"hooks-left", "requires-grad-changed"} <= found
    assert weight.grad is None
    assert not weight._backward_hooks


@pytest.mark.parametrize("closure", [True, False])
def test_a_cause_names_the_findings_that_it_brings_with_it(model, closure):
    def capture(model, input_ids):
        hook = (lambda *_: None) if closure else passing
        model.transformer.h[0].register_forward_hook(hook)
        return {"logits": model(input_ids).logits.detach()}

    report = recon.audit(capture, model, effort="quick")
    left = next(f for f in report.findings if f.rule.name == "hooks-left")
    assert left.evidence.get("hence") == ("RC214 unpicklable" if closure else None)
    assert "unpicklable" not in {finding.rule.name for finding in report.findings}


@pytest.mark.parametrize("names", ["kq", "kvq", "qkv", "kqq"])
def test_what_stands_in_each_others_places_is_one_finding(model, ids, names):
    captures = captured(model, ids)
    wrong = {
        f"h.{layer}.attn.{name}": captures[f"h.{layer}.attn.{found}"]
        for layer in range(2)
        for name, found in zip("qkv", names, strict=False)
    }
    report = judged(wrong, model, ids)
    swapped = sum(a != b for a, b in zip("qkv", names, strict=False))
    expected = {"kq": [4], "kvq": [6], "qkv": [], "kqq": [4, 2]}[names]
    assert sorted((len(f.places) for f in report.findings), reverse=True) == expected
    assert sum(expected) == 2 * swapped


@pytest.mark.parametrize(
    ("name", "beyond"),
    [
        ("h.7.resid_post", "h.7.resid_post"),
        ("blocks.9.hook_resid_pre", "h.9.resid_pre"),
        ("transformer.h.12.mlp", "h.12.mlp_out"),
        ("blocks.1.hook_resid_post", ""),
    ],
)
def test_a_name_of_a_block_that_is_not_there_is_wrong(model, ids, name, beyond):
    report = judged({name: captured(model, ids)["h.1.resid_post"]}, model, ids)
    rules = [finding.rule.name for finding in report.findings]
    assert rules == (["wrong-layer"] if beyond else [])
    assert all(f"the model has no {beyond}" in f.message for f in report.findings)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ("h.1.attn.out", "h.1.attn.out (bit-identical), in layout B T D, "
         "as is h.1.attn_out"),
        ("h.1.attn.q", "h.1.attn.q (bit-identical), in layout B H T d"),
    ],
)  # fmt: skip
def test_ties_are_told_as_ties(model, ids, found, words):
    report = judged({"something": captured(model, ids)[found]}, model, ids)
    assert [one.message for one in report.findings] == [f"`something` is {words}"]


def test_one_damaged_value_is_told_by_its_place(model, ids):
    damaged = captured(model, ids)["h.1.mlp.pre"].clone()
    damaged[0, 3, 4] += damaged.std()
    report = judged({"h.1.mlp.pre": damaged}, model, ids)
    (finding,) = report.findings
    assert finding.rule.name == "unexplained"
    assert finding.found == ("h.1.mlp.pre but for the value at [0, 3, 4]",)


def test_a_capture_that_needs_no_cache_is_tried_without_one(model):
    seen = []

    def capture(model, input_ids):
        seen.append(model.config.use_cache)
        with torch.no_grad():
            out = model(input_ids)
        return {"logits": out.logits + (0 if model.config.use_cache else 1)}

    report = recon.audit(capture, model, effort="thorough")
    assert seen.count(False) == 1
    assert [f.run for f in report.findings] == ["without a cache"]
    assert model.config.use_cache


def test_a_capture_of_the_cache_is_no_wrong_one_where_there_is_none(model):
    def capture(model, input_ids):
        cache = getattr(model(input_ids), CACHE)
        return {"past_key_values.0.0": cache.layers[0].keys.detach()}

    report = recon.audit(capture, model, effort="thorough")
    assert [(f.rule.name, f.severity) for f in report.findings] == [
        ("raises-sometimes", "note")
    ]


def test_claims_about_names_that_are_not_there_are_refused(model, ids):
    captures = {"mine_1": captured(model, ids)["h.1.mlp.pre"]}
    claims = {"my_{l}": "h.{l}.mlp.pre"}
    with pytest.raises(recon.UsageError, match=r"no tensor .*; there are mine_1"):
        recon.audit_captures(captures, model, inputs={"input_ids": ids}, claims=claims)
    claims |= {"mine_{l}": "h.{l}.mlp.pre"}
    given = {"inputs": {"input_ids": ids}, "claims": claims}
    assert recon.audit_captures(captures, model, **given).verdict == "clean"


def passing(module, args, output):
    """Do nothing, as a function that pickle finds by its name."""


# -- odd functions -------------------------------------------------------------------


def found(function, model):
    report = recon.audit(function, model, effort="quick")
    return {finding.rule.name: finding for finding in report.findings}


def test_what_is_no_function_is_refused_and_not_run(model):
    with pytest.raises(UsageError, match=r"'f\.py:f' is a str; expected a function"):
        recon.audit("f.py:f", model)


def test_an_effort_that_there_is_not_is_refused(model):
    with pytest.raises(UsageError, match="effort 'full': expected one of quick, def"):
        recon.audit(lambda model, input_ids: {}, model, effort="full")


def test_a_model_that_cannot_run_is_refused_and_no_code_is_faulted(make_model):
    shortened = make_model(n_layer=3)
    del shortened.transformer.h[1]
    shortened.config.n_layer = 2
    unmade = make_model().to("meta")
    for one, words in [(shortened, "model itself raised Index"), (unmade, "'meta'")]:
        with pytest.raises(UsageError, match=words):
            recon.audit(lambda model, input_ids: {}, one)


def test_a_function_that_exits_raises(model):
    def capture(model, input_ids):
        raise SystemExit(3)

    assert "SystemExit: 3" in found(capture, model)["raises"].message


def test_a_sparse_tensor_is_told_as_one_and_judged(model):
    def capture(model, input_ids):
        with torch.no_grad():
            return {"logits": model(input_ids).logits.to_sparse()}

    (one,) = recon.audit(capture, model, effort="quick").tensors
    assert one.status == "right"
    assert one.sentence.endswith(", in a sparse tensor")


def test_a_sparse_tensor_that_is_too_large_to_write_out_is_no_pass(model):
    def capture(model, input_ids):
        with torch.no_grad():
            logits = model(input_ids).logits
        where, sizes = torch.zeros(3, 1, dtype=torch.long), (2**11, 2**10, 2**10)
        huge = torch.sparse_coo_tensor(where, torch.ones(1), sizes)
        return {"logits": logits, "h.1.resid_post": huge}

    told = found(capture, model)["unclaimed"]
    assert told.severity == "warning"
    assert "too large to be written out" in told.message


class Saved:
    def __init__(self, value):
        self.value = value


def test_a_proxy_of_a_quantized_tensor_and_a_complex_array_are_no_pass(model):
    def capture(model, input_ids):
        with torch.no_grad():
            logits = model(input_ids).logits
        codes = torch.quantize_per_tensor(logits, 0.1, 0, torch.qint8)
        spectrum = torch.fft.fft(logits).numpy()
        return {"logits": logits, "h.1.ln_1": Saved(codes), "h.1.ln_2": spectrum}

    told = recon.audit(capture, model, effort="quick").findings
    assert {(one.severity, *one.places) for one in told} == {
        ("warning", "h.1.ln_1"),
        ("warning", "h.1.ln_2"),
    }


def test_a_model_without_its_blocks_is_told_and_put_back(model):
    blocks = model.transformer.h

    def capture(model, input_ids):
        with torch.no_grad():
            out = {"logits": model(input_ids).logits}
        del model.transformer.h
        return out

    assert "forward-replaced" in found(capture, model)
    assert model.transformer.h is blocks


def test_ids_that_go_by_name_only_are_passed_so(model):
    def capture(model, *, input_ids):
        with torch.no_grad():
            return {"logits": model(input_ids).logits}

    assert not found(capture, model)


def test_a_model_whose_blocks_are_cut_for_a_pass_is_told_and_put_back(model):
    blocks = model.transformer.h

    def capture(model, input_ids):
        model.transformer.h = blocks[:1]
        with torch.no_grad():
            return {"hidden_states.0": model.transformer.wte(input_ids)}

    def shorter(model, input_ids):
        model.transformer.h = blocks[:1]
        with torch.no_grad():
            return {"logits": model(input_ids).logits}

    assert "forward-replaced" in found(capture, model)
    assert "forward-replaced" in found(shorter, model)
    assert model.transformer.h is blocks


def test_the_fields_of_a_named_tuple_are_its_names(model):
    Captured = namedtuple("Captured", "residual mlp_out")

    def capture(model, input_ids):
        with torch.no_grad(), recon.capture(model) as recorder:
            model(input_ids)
        trace, depth = recorder.trace, len(model.transformer.h)
        parts = ("resid_post", "mlp_out")
        return [Captured(*(trace[f"h.{n}.{p}"] for p in parts)) for n in range(depth)]

    assert not {one.severity for one in found(capture, model).values()} - {"note"}


def test_a_buffer_that_the_next_prompt_writes_is_told(model):
    buffers = {}

    def capture(model, input_ids):
        with torch.no_grad():
            logits = model(input_ids).logits
        kept = buffers.setdefault(logits.shape, torch.empty_like(logits))
        return {"logits": kept.copy_(logits)}

    report = recon.audit(capture, model)
    (told,) = (one for one in report.findings if one.severity != "note")
    assert (told.rule.name, told.places) == ("overwritten", ("logits",))


def test_settings_of_the_process_are_seen_and_put_back(model, tmp_path):
    before = (torch.get_num_threads(), Path.cwd())

    def capture(model, input_ids):
        torch.set_num_threads(before[0] + 1)
        os.chdir(tmp_path)
        with torch.no_grad():
            return {"logits": model(input_ids).logits}

    told = found(capture, model)["global-state-changed"]
    assert set(told.places) == {"number of threads", "working directory"}
    assert (torch.get_num_threads(), Path.cwd()) == before


def test_a_number_for_a_name_promises_nothing(model):
    def capture(model, input_ids):
        with torch.no_grad(), recon.capture(model) as recorder:
            model(input_ids)
        return (recorder.trace["h.1.mlp_out"].clone(),)

    assert set(found(capture, model)) == {"unclaimed"}


def test_a_mask_of_ones_for_zeros_is_another_run(model):
    def capture(model, input_ids):
        with torch.no_grad():
            mask = torch.zeros_like(input_ids)
            out = model(input_ids, attention_mask=mask, output_hidden_states=True)
        return {"hidden_states": out.hidden_states}

    assert "another attention mask" in found(capture, model)["other-run"].message


def test_rows_that_ran_in_another_order_must_be_put_back(model):
    def capture(model, input_ids, back=False):
        order = torch.arange(len(input_ids)).flip(0)
        with torch.no_grad(), recon.capture(model) as recorder:
            model(input_ids[order])
        state = recorder.trace["h.1.resid_post"]
        return {"h.1.resid_post": state[order] if back else state.clone()}

    assert "order" in found(capture, model)["wrong-tokens"].message
    assert not found(lambda model, input_ids: capture(model, input_ids, True), model)


# -- what names promise of tokens, heads and axes --------------------------------------


@pytest.mark.parametrize(
    ("name", "take", "rule"),
    [
        ("last_token_layer_{}", lambda t: t[:, -1], ""),
        ("last_token_layer_{}", lambda t: t[:, 0], "wrong-tokens"),
        ("last_token_layer_{}", lambda t: t[-1], "dropped-batch"),
        ("last_token_layer_{}", lambda t: t, "wrong-tokens"),
        ("last_token_layer_{}", lambda t: t.mean(1), "wrong-tokens"),
        ("first_token_layer_{}", lambda t: t[:, 0], ""),
        ("mean_layer_{}", lambda t: t.mean(1), ""),
        ("mean_layer_{}", lambda t: t.amax(1), "wrong-formula"),
        ("mean_layer_{}", lambda t: t[:, 3], "wrong-tokens"),
        ("h.{}.resid_post", lambda t: t.transpose(0, 1), "wrong-layout"),
        ("layer_{}", lambda t: t.transpose(0, 1), ""),
    ],
)
def test_a_piece_must_be_the_one_that_its_name_says(model, name, take, rule):
    def capture(model, input_ids):
        with torch.no_grad(), recon.capture(model, sites="h.*.resid_post") as recorder:
            model(input_ids)
        blocks = enumerate(model.transformer.h)
        kept = {n: recorder.trace[f"h.{n}.resid_post"] for n, _ in blocks}
        return {name.format(n): take(tensor).clone() for n, tensor in kept.items()}

    told = found(capture, model).values()
    assert {one.rule.name for one in told if one.severity != "note"} == {rule} - {""}


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t * 2, "in a pass on 2 times the tokens' embeddings"),
        (lambda t: t + t.flip(-1), "in a pass on embeddings that are not the tokens'"),
    ],
)
def test_a_pass_on_other_embeddings_is_another_run(model, edit, words):
    def capture(model, input_ids):
        embeddings = edit(model.transformer.wte(input_ids))
        with torch.no_grad():
            out = model(inputs_embeds=embeddings, output_hidden_states=True)
        return {"hidden_states": out.hidden_states}

    assert words in found(capture, model)["other-run"].message


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_copies_in_float32_and_passes_in_pieces_are_right_in_every_dtype(model, dtype):
    model.to(dtype)

    def capture(model, input_ids):
        steps, past = [], None
        with torch.no_grad():
            for token in input_ids.split(1, 1):
                given = {CACHE: past, "output_hidden_states": True}
                out = model(token, **given)
                past = out.past_key_values
                steps.append(out.hidden_states)
            with recon.capture(model, sites="h.*.attn.z") as recorder:
                model(input_ids)
        states = [torch.cat(each, 1) for each in zip(*steps, strict=True)]
        kept = {f"hidden_states.{n}": state for n, state in enumerate(states)}
        blocks = range(len(model.transformer.h))
        heads = {n: recorder.trace[f"h.{n}.attn.z"].float() for n in blocks}
        return kept | {f"L{n}H1_z": z[:, 1] for n, z in heads.items()}

    told = found(capture, model).values()
    assert not [one.message for one in told if one.severity != "note"]


# -- what it is instead ----------------------------------------------------------------


def bias(trace, part):
    return trace.facts.makers[Site(part, 1)].bias


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("h.1.mlp_out", lambda t: t["h.1.mlp_out"].abs(), "in absolute value"),
        ("h.1.mlp.post", lambda t: t["h.1.mlp.post"].square(), "h.1.mlp.post squared"),
        (
            "h.1.attn_out",
            lambda t: t["h.1.attn_out"] - bias(t, "attn.out") + bias(t, "mlp.out"),
            "without its bias plus h.1.mlp.out bias",
        ),
        ("h.1.resid_post", lambda t: t["h.1.resid_post"] - t["wpe"], "less wpe"),
        (
            "h.1.ln_2",
            lambda t: torch.cat([t["h.1.ln_2"][:, 1:] * 0, t["h.1.ln_2"]], 1)[
                :, -1 - t["h.1.ln_2"].shape[1] : -1
            ],
            "h.1.ln_2, 1 token too late",
        ),
        ("h.1.attn.v", lambda t: t["h.1.attn.v"][:, [0, 0, 0, 0]], "heads 0, 0, 0, 0"),
    ],
)
def test_a_tensor_is_named_for_what_was_made_of_the_site(model, name, make, words):
    def capture(model, input_ids):
        with torch.no_grad(), recon.capture(model) as recorder:
            model(input_ids)
        return {name: make(recorder.trace).clone()}

    told = [one for one in found(capture, model).values() if one.severity == "error"]
    assert words in " ".join(one.message for one in told)


def test_probabilities_of_anything_promise_no_attention(model):
    def capture(model, input_ids):
        with torch.no_grad():
            best = model(input_ids).logits.softmax(-1).amax(-1)
        return {"layer_0_probs": best}

    assert set(found(capture, model)) == {"unclaimed"}


def test_keys_that_see_the_future_are_another_mask(model):
    def capture(model, input_ids):
        rows, tokens = input_ids.shape
        mask = torch.zeros(rows, 1, tokens, tokens)
        with torch.no_grad():
            out = model(input_ids, attention_mask=mask, output_hidden_states=True)
        return {"hidden_states": out.hidden_states}

    assert "another attention mask" in found(capture, model)["other-run"].message


def test_a_function_that_asks_for_input_raises_and_does_not_wait(model):
    def capture(model, input_ids):
        return input("which layer? ")

    assert "EOFError" in found(capture, model)["raises"].message


# -- code that does more than to capture ----------------------------------------------


PROCESS = os.getpid()


def logits(model, input_ids):
    with torch.no_grad():
        return {"logits": model(input_ids).logits}


def test_code_that_never_ends_is_stopped_told_once_and_its_hooks_taken_back(model):
    def capture(model, input_ids):
        model.register_forward_hook(lambda *_: None)
        while True:
            model(input_ids)

    report = recon.audit(capture, model, timeout=0.5)
    (told,) = report.findings
    assert (told.rule.name, told.severity) == ("never-ends", "error")
    assert "had not ended after 0.5 s; it stood at test_auditing.py" in told.message
    assert "in capture, with a batch of" in told.message
    assert told.traceback.splitlines()[0].endswith("in capture")
    assert len(report.runs) == 1
    assert not model._forward_hooks


def test_code_that_tries_for_ever_when_a_pass_raises_is_warned_of(model):
    def capture(model, input_ids):
        while True:
            try:
                return logits(model, input_ids)
            except RuntimeError:
                continue

    report = recon.audit(capture, model, effort="quick", timeout=2)
    (told,) = report.findings
    assert (told.rule.name, told.severity) == ("never-ends", "warning")
    assert {tensor.status for tensor in report.tensors} == {"right"}


def leaves(model, input_ids):
    os._exit(0)


def raises_no_exception(model, input_ids):
    raise GeneratorExit


@pytest.mark.parametrize("function", [leaves, raises_no_exception])
def test_what_would_end_the_process_is_told_as_raising(model, function):
    assert "raises" in found(function, model)


def test_a_child_that_comes_back_from_a_fork_does_not_audit_on(model):
    def capture(model, input_ids):
        child = os.fork()
        if child:
            os.waitpid(child, 0)
        return logits(model, input_ids) | {"child": torch.tensor([float(child)])}

    report = recon.audit(capture, model, effort="quick")
    assert os.getpid() == PROCESS
    assert "child" in {tensor.name for tensor in report.tensors}


def test_a_traceback_begins_in_the_code_that_is_audited(model):
    def capture(model, input_ids):
        return input_ids.nothing_like_it

    told = found(capture, model)["raises"]
    assert told.traceback.splitlines()[1].endswith("in capture")


def test_functions_of_torch_and_of_classes_are_seen_and_put_back(model):
    addmm, block = torch.addmm, type(model.transformer.h[0])

    def capture(model, input_ids):
        torch.addmm = lambda *args, **options: addmm(*args, **options)
        torch.Tensor.view = lambda self, *sizes: self.reshape(*sizes)
        block.__call__ = lambda self, *args, **more: self._call_impl(*args, **more)
        return logits(model, input_ids)

    told = found(capture, model)["forward-replaced"]
    path = f"{block.__module__}.{block.__qualname__}.__call__"
    assert set(told.places) == {"torch.addmm", "torch.Tensor.view", path}
    assert torch.addmm is addmm
    assert "view" not in vars(torch.Tensor)
    assert "__call__" not in vars(block)


def test_a_kernel_of_attention_that_was_replaced_is_seen_and_put_back(model):
    kernels = sys.modules[type(model).__module__].ALL_ATTENTION_FUNCTIONS
    before = kernels["sdpa"]

    def capture(model, input_ids):
        kernels["sdpa"] = lambda *args, **options: before(*args, **options)
        return logits(model, input_ids)

    assert found(capture, model)["forward-replaced"].places[0].endswith("[sdpa]")
    assert kernels["sdpa"] is before


def test_a_helper_that_hides_nothing_is_no_finding_and_is_taken_away(model):
    block = type(model.transformer.h[0])

    def capture(model, input_ids):
        block.helper = lambda self: None
        return logits(model, input_ids)

    assert not found(capture, model)
    assert not hasattr(block, "helper")


def test_signals_and_the_device_of_new_tensors_are_seen_and_put_back(model):
    def capture(model, input_ids):
        returned = logits(model, input_ids)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.setrecursionlimit(3000)
        torch.set_default_device("meta")
        return returned

    before = signal.getsignal(signal.SIGTERM), sys.getrecursionlimit()
    told = found(capture, model)["global-state-changed"]
    assert set(told.places) == {
        "signal SIGTERM",
        "recursion limit",
        "default device",
    }
    assert "was SIG_DFL, is SIG_IGN" in told.message
    assert (signal.getsignal(signal.SIGTERM), sys.getrecursionlimit()) == before
    assert torch.empty(1).device.type == "cpu"


def test_a_thread_that_outlives_the_call_is_a_note(model):
    end = threading.Event()

    def capture(model, input_ids):
        threading.Thread(target=end.wait, name="mine", daemon=True).start()
        return logits(model, input_ids)

    try:
        told = found(capture, model)["global-state-changed"]
    finally:
        end.set()
    assert (told.severity, told.places) == ("note", ("threads",))
    assert "mine still runs" in told.message


def by_name(*, model, input_ids):
    return logits(model, input_ids)


def the_other_way_round(input_ids, model):
    return logits(model, input_ids)


@pytest.mark.parametrize("function", [by_name, the_other_way_round])
def test_model_and_ids_go_by_name_where_the_function_names_them(model, function):
    assert not found(function, model)


class Slotted:
    __slots__ = ("logits",)

    def __init__(self, model, input_ids):
        self.logits = logits(model, input_ids)["logits"]


def holding_itself(model, input_ids):
    returned = logits(model, input_ids)
    returned["self"] = returned
    return returned


@pytest.mark.parametrize("function", [Slotted, holding_itself])
def test_slots_are_read_and_a_nest_without_an_end_is_looked_at_once(model, function):
    assert not found(function, model)


def coroutine():
    async def capture(model, input_ids):
        return logits(model, input_ids)

    return capture


def raising_when_looked_at():
    class Returned:
        def items(self):
            raise RuntimeError("not now")

    return lambda model, input_ids: Returned()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (coroutine, "an object of class coroutine"),
        (raising_when_looked_at, "class Returned, which raises RuntimeError"),
    ],
)
def test_what_cannot_be_looked_into_is_told_as_what_it_is(model, make, words):
    assert words in found(make(), model)["nothing-captured"].message


def test_bytes_and_children_print_into_nothing(model, capfd):
    def capture(model, input_ids):
        sys.stdout.buffer.write(b"bytes")
        subprocess.run(["echo", "child"], stdout=sys.stdout, check=True)
        return logits(model, input_ids)

    assert not found(capture, model)
    assert capfd.readouterr() == ("", "")


# -- a model that computes NaN -------------------------------------------------------


def not_finite(make_model):
    """Return a model that computes NaN from block 1's MLP on."""
    model = make_model()
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[0, 0] = float("nan")
    return model


def mlps_of(model, input_ids):
    places = {f"h.{i}.mlp_out": b.mlp for i, b in enumerate(model.transformer.h)}
    return outputs_of(model, input_ids, places)


def outputs_of(model, input_ids, places):
    kept = {}
    with ExitStack() as stack, torch.no_grad():
        for name, module in places.items():
            hook = partial(lambda name, m, args, out: kept.update({name: out}), name)
            stack.callback(module.register_forward_hook(hook).remove)
        model(input_ids)
    return kept


def test_what_a_model_computes_as_nan_is_right_and_noted(make_model):
    model = not_finite(make_model)
    report = recon.audit(mlps_of, model)
    assert report.verdict == "clean"
    assert {one.status for one in report.tensors} == {"right"}
    (note,) = [f for f in report.findings if f.rule.name == "not-finite"]
    assert note.severity == "note"
    assert "from h.1.mlp.pre on" in note.message


def test_nan_where_the_model_computes_numbers_is_wrong_beside_nan_of_its_own(
    make_model,
):
    def capture(model, input_ids):
        kept = mlps_of(model, input_ids)
        first = kept["h.0.mlp_out"].clone()
        first[0, 0, 0] = float("nan")
        return kept | {"h.0.mlp_out": first}

    found = recon.audit(capture, not_finite(make_model)).findings
    (wrong,) = [f for f in found if f.severity == "error"]
    assert (wrong.rule.name, wrong.places) == ("not-finite", ("h.0.mlp_out",))


# -- a model with a forward of its own -------------------------------------------------


def with_own_forward(make_model):
    """Return a model whose MLP in block 1 was given another forward."""
    model = make_model()
    mlp = model.transformer.h[1].mlp
    usual = mlp.forward
    mlp.forward = lambda x: usual(x) * 1.25
    return model


def test_captures_are_judged_by_the_forward_that_the_model_was_given(make_model):
    report = recon.audit(mlps_of, with_own_forward(make_model))
    assert report.verdict == "clean"
    assert {one.status for one in report.tensors} == {"right"}
    (note,) = report.findings
    assert (note.rule.name, note.severity) == ("forward-replaced", "note")
    assert note.places == ("transformer.h.1.mlp",)


def test_what_a_forward_of_its_own_goes_on_from_is_not_what_it_makes(make_model):
    def capture(model, input_ids):
        place = {"h.1.mlp_out": model.transformer.h[1].mlp.c_proj}
        return outputs_of(model, input_ids, place)

    (wrong,) = recon.audit(capture, with_own_forward(make_model)).findings[:1]
    assert (wrong.rule.name, wrong.severity) == ("wrong-terms", "error")
    assert "as dropout makes it inside of the GPT2MLP" in wrong.message


def test_a_pass_on_other_inputs_is_not_said_to_edit_what_the_model_does_itself(
    make_model,
):
    def capture(model, input_ids):
        return mlps_of(model, input_ids) | {"others": mlps_of(model, input_ids.flip(1))}

    report = recon.audit(capture, with_own_forward(make_model))
    assert "changes-result" not in {one.rule.name for one in report.findings}


# -- few numbers, and sums -------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (3e-4, "`rate` holds one number, 0.0003"),
        ([1.0, 2.0], "`rate` holds 2 numbers, too few to tell what they are"),
    ],
)
def test_few_numbers_are_no_multiple_of_what_is_there(model, ids, value, words):
    known = {"logits": captured(model, ids)["logits"]}
    report = judged(known | {"rate": torch.tensor(value)}, model, ids)
    assert [one.message for one in report.findings] == [words]


def test_norms_of_three_vectors_are_told_although_they_are_few(model, ids):
    few = ids[:1, :3]
    norms = captured(model, few)["h.1.mlp.post"].norm(dim=-1)
    (note,) = judged({"mine": norms}, model, few).findings
    assert "h.1.mlp.post as the norm of each vector" in note.message


def test_the_terms_of_a_sum_make_one_cause_in_either_order():
    tensor, readings = torch.ones(1), [Site("resid_post", n) for n in (0, 1)]
    found = ["h.0.attn.z plus h.0.ln_1", "h.1.ln_1 plus h.1.attn.z"]
    told = [
        Judgement(
            str(place),
            tensor,
            Claim(str(place), (), "resid_post"),
            Reading(place),
            "wrong-terms",
            found=words,
        )
        for place, words in zip(readings, found, strict=True)
    ]
    (finding,) = grouped([("a run", one) for one in told])
    assert finding.places == ("h.0.resid_post", "h.1.resid_post")
