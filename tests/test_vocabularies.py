"""What the names of other libraries promise, and in which forms."""

import pytest
import torch

from recon.auditing.claims import Reader
from recon.auditing.designs import shown
from recon.auditing.session import audit_captures
from recon.auditing.vocabularies import NAMES
from recon.errors import UsageError
from recon.sites import site
from recon.verification import record

DEPTH = 4


def promised(name, names="auto"):
    """Return the sites that a name may mean, without repeats."""
    readings = Reader(DEPTH, True, names=names).read(name).readings
    return list(dict.fromkeys(str(reading.site) for reading in readings))


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("blocks.2.hook_resid_mid", "h.2.resid_mid"),
        ("blocks.2.ln2.hook_in", "h.2.resid_mid"),
        ("blocks.2.attn.q.hook_in", "h.2.ln_1"),
        ("blocks.2.attn.q.hook_out", "h.2.attn.q"),
        ("blocks.2.attn.o.hook_in", "h.2.attn.z"),
        ("blocks.2.attn.hook_result", "h.2.attn.out"),
        ("blocks.2.mlp.out.hook_in", "h.2.mlp.post"),
        ("ln_final.hook_in", "h.3.resid_post"),
        ("unembed.hook_in", "ln_f"),
        ("hook_unembed", "logits"),
    ],
)
@pytest.mark.parametrize("names", ["auto", "transformer-lens"])
def test_a_hook_of_transformer_lens_promises_one_site(name, meaning, names):
    assert promised(name, names) == [meaning]


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("layer_1_comp_block_output_unit_pos_nunit_11#0", "h.1.resid_post"),
        ("layer.1.comp.mlp_activation.unit.pos.nunit.1#0", "h.1.mlp.post"),
        ("layer_1_comp_head_attention_value_output_unit_h_nunit_4#0", "h.1.attn.z"),
        ("comp_transformer_h[3]_mlp_output_unit_pos_nunit_1#0", "h.3.mlp_out"),
        ("comp_transformer_h[3]_attn_c_proj_input_unit_pos_nunit_1#0", "h.3.attn.z"),
        ("attention_value_output.2", "h.2.attn.z"),
        ("2.attention_input", "h.2.ln_1"),
    ],
)
@pytest.mark.parametrize("names", ["auto", "pyvene"])
def test_a_key_of_pyvene_promises_one_site(name, meaning, names):
    assert promised(name, names) == [meaning]


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("transformer.h[3].mlp.output", "h.3.mlp_out"),
        ("transformer.h[3].attn.output[0]", "h.3.attn_out"),
        ("model.transformer.h.3.attn.c_proj.input", "h.3.attn.z"),
        ("transformer.h.3.attn.c_attn:1", "h.3.attn.qkv"),
        ("transformer.ln_f", "ln_f"),
    ],
)
@pytest.mark.parametrize("names", ["auto", "hf", "nnsight", "torchlens"])
def test_libraries_of_module_paths_share_their_meaning(name, meaning, names):
    assert promised(name, names) == [meaning]


@pytest.mark.parametrize("name", ["embedding_2_9", "layernorm_1_13", "addmm_3_43:2"])
def test_a_label_of_torchlens_promises_nothing(name):
    assert promised(name) == promised(name, "torchlens") == []


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("blocks.2.hook_resid_mid", "hf"),
        ("transformer.h.2.mlp", "transformer-lens"),
        ("h.2.attn.q", "hf"),
        ("transformer.h.2.mlp", "recon"),
        ("layer_2", "hf"),
        ("block_output.2", "transformer-lens"),
    ],
)
def test_a_name_outside_the_chosen_vocabulary_promises_nothing(name, names):
    assert promised(name)
    assert promised(name, names) == []


def test_a_block_that_the_model_has_not_is_promised_nothing():
    assert promised("blocks.4.hook_resid_mid") == []


def test_an_unknown_vocabulary_is_refused_with_those_that_there_are():
    with pytest.raises(UsageError, match=", ".join(NAMES)):
        Reader(DEPTH, True, names="baukit")


@pytest.fixture
def run(make_model):
    model = make_model(attention="eager")
    ids = torch.randint(90, (3, 5), generator=torch.Generator().manual_seed(0))
    return model, ids, record(model, ids)


def test_the_bias_that_is_folded_away_reaches_the_output_of_attention(run):
    model, _, trace = run
    block = model.transformer.h[1]
    z = shown(trace, site("h.1.attn.z"), "folded").tensor
    bias = block.attn.c_attn.bias.chunk(3)[2]
    bias = bias + block.ln_1.bias @ block.attn.c_attn.weight.chunk(3, -1)[2]
    merged = z.transpose(1, 2).flatten(2)
    again = torch.addmm(
        block.attn.c_proj.bias + bias @ block.attn.c_proj.weight,
        merged.flatten(0, 1),
        block.attn.c_proj.weight,
    ).view_as(trace["h.1.attn.out"])
    torch.testing.assert_close(again, trace["h.1.attn.out"])


def test_the_results_of_the_heads_sum_to_the_output_of_attention(run):
    model, _, trace = run
    one = shown(trace, site("h.1.attn.out"), "by head")
    assert one.axes == ("B", "T", "H", "D")
    whole = one.tensor.sum(2) + model.transformer.h[1].attn.c_proj.bias
    torch.testing.assert_close(whole, trace["h.1.attn.out"])


@pytest.mark.parametrize(
    ("name", "place", "form"),
    [
        ("blocks.1.hook_resid_post", "h.1.resid_post", "centered"),
        ("blocks.1.ln2.hook_out", "h.1.ln_2", "normalized"),
        ("blocks.1.attn.hook_v", "h.1.attn.v", "folded"),
        ("blocks.1.attn.hook_z", "h.1.attn.z", "unbiased"),
        ("blocks.1.attn.hook_result", "h.1.attn.out", "folded, by head, centered"),
        ("blocks.1.hook_q_input", "h.1.resid_pre", "centered, each head"),
        ("hook_pos_embed", "wpe", "centered, each row"),
        ("unembed.hook_out", "logits", "centered"),
    ],
)
def test_what_a_library_shows_by_design_is_right_and_a_note_says_so(
    run, name, place, form
):
    model, ids, trace = run
    made = {name: shown(trace, site(place), form).tensor}
    report = audit_captures(made, model, inputs={"input_ids": ids})
    (judged,) = report.tensors
    assert judged.status == "right"
    (note,) = report.check().findings
    assert note.rule.name == "by-design"
    assert note.sites[0].startswith(place)


@pytest.mark.parametrize("form", ["", "centered", "folded"])
def test_the_same_form_of_another_block_is_wrong(run, form):
    model, ids, trace = run
    place = "h.2.attn.v" if form == "folded" else "h.2.resid_post"
    name = "blocks.1.attn.hook_v" if form == "folded" else "blocks.1.hook_resid_post"
    made = {name: shown(trace, site(place), form).tensor}
    report = audit_captures(made, model, inputs={"input_ids": ids})
    assert report.tensors[0].status == "wrong"
    assert report.verdict == "findings"


def test_names_decide_what_a_name_promises(run):
    model, ids, trace = run
    made = {"attention_value_output.1": trace["h.1.attn.z"]}
    report = audit_captures(made, model, inputs={"input_ids": ids}, names="pyvene")
    assert report.tensors[0].claim == "h.1.attn.z"
    report = audit_captures(made, model, inputs={"input_ids": ids}, names="hf")
    assert report.tensors[0].status == "unclaimed"


@pytest.mark.parametrize(
    ("names", "beyond"), [("auto", "h.9.mlp_out"), ("hf", "h.9.mlp_out"), ("recon", "")]
)
def test_a_block_that_is_not_there_is_missed_in_the_vocabulary_asked_for(names, beyond):
    claim = Reader(depth=3, tied_last=True, names=names).read("transformer.h.9.mlp")
    assert str(claim.beyond or "") == beyond
    assert not claim.readings
