"""A saved run comes back as it was, or the file is refused in one line."""

import json
import os
import stat
import struct
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import recon
from recon import saving
from recon.checks import LEVELS

EVERY = list(LEVELS)
ENCODED = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(3))


def run(model, *args, **inputs):
    with torch.no_grad(), recon.capture(model) as recorder:
        model(*args, **inputs)
    return recorder.trace


def one_line(error):
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.safetensors"


@pytest.fixture
def saved(recorded, path):
    """A file that holds ``recorded``."""
    recorded.trace.save(path)
    return path


# -- what was saved comes back -------------------------------------------------


def eager(make_model, ids):
    model = make_model()
    return model, run(model, ids)


def sdpa(make_model, ids):
    model = make_model(attention="sdpa")
    return model, run(model, ids)


def bfloat16(make_model, ids):
    model = make_model(dtype=torch.bfloat16)
    return model, run(model, ids)


def train(make_model, ids):
    model = make_model(attention="sdpa").train()
    return model, run(model, ids)


def padded(make_model, ids):
    model = make_model(attention="sdpa")
    mask = (torch.arange(7) > torch.tensor([[-1], [2], [0]])).long()
    return model, run(model, ids, attention_mask=mask)


def cross(make_model, ids):
    model = make_model(add_cross_attention=True)
    return model, run(model, ids, encoder_hidden_states=ENCODED)


def cached(make_model, ids):
    model = make_model()
    with torch.no_grad(), recon.capture(model) as recorder:
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=3,
            do_sample=False,
            pad_token_id=0,
        )
    return model, recorder.trace


def token_type_ids(make_model, ids):
    model = make_model()
    return model, run(model, ids, token_type_ids=ids // 2)


def inputs_embeds(make_model, ids):
    model = make_model()
    return model, run(model, inputs_embeds=model.transformer.wte(ids).detach())


def embeds_with_types(make_model, ids):
    model = make_model()
    embedded = model.transformer.wte(ids).detach()
    return model, run(model, inputs_embeds=embedded, token_type_ids=ids // 2)


def kept_logits(make_model, ids):
    model = make_model()
    return model, run(model, ids, logits_to_keep=torch.tensor([0, -1]))


def autocast(make_model, ids):
    model = make_model()
    with torch.autocast("cpu", torch.bfloat16):
        return model, run(model, ids)


RUNS = [
    *(eager, sdpa, bfloat16, train, padded, cross, cached),
    *(token_type_ids, inputs_embeds, embeds_with_types, kept_logits, autocast),
]


@pytest.mark.parametrize("kind", RUNS, ids=lambda kind: kind.__name__)
def test_a_saved_run_comes_back_and_is_verified(make_model, ids, path, kind):
    model, trace = kind(make_model, ids)
    trace.save(path)
    loaded = recon.load_trace(path, model)
    assert loaded.sites == trace.sites
    for place in trace.tensors:
        assert torch.equal(loaded[place], trace[place])
        assert loaded[place].dtype == trace[place].dtype
        assert loaded.origin(place) == trace.origin(place)
    assert loaded.facts.environment == trace.facts.environment
    assert loaded.facts.notes == trace.facts.notes
    assert loaded.facts.dropout == trace.facts.dropout
    before = recon.verify_trace(trace, levels=EVERY)
    after = recon.verify_trace(loaded, levels=EVERY)
    assert [c for c in after.checks if c.level != "sketch"] == [
        c for c in before.checks if c.level != "sketch"
    ]
    assert after.check().last_state == before.last_state


@pytest.mark.parametrize("kind", RUNS, ids=lambda kind: kind.__name__)
def test_a_run_damaged_before_it_was_saved_fails_after(make_model, ids, path, kind):
    model, trace = kind(make_model, ids)
    trace.replace("h.1.mlp.out", trace["h.1.mlp.out"] * 1.5).save(path)
    report = recon.verify_trace(recon.load_trace(path, model), levels=["certify"])
    assert report.failures[0].site == "h.1.mlp.out"


def test_views_and_derived_sites_are_those_of_the_run(recorded, saved, model):
    loaded = recon.load_trace(saved, model)
    for place in ("h.1.attn.q", "h.1.attn.scores", "h.2.attn.pattern"):
        assert torch.equal(loaded[place], recorded.trace[place])


def test_a_narrowed_run_comes_back_narrowed(model, ids, path):
    with torch.no_grad(), recon.capture(model, sites="h.*.attn.q", positions=-1) as r:
        model(ids)
    r.trace.save(path)
    loaded = recon.load_trace(path, model)
    assert loaded.sites == r.trace.sites
    assert (loaded.wanted, loaded.positions) == (r.trace.wanted, r.trace.positions)
    with pytest.raises(recon.UsageError):
        recon.verify_trace(loaded)


def test_an_unfinished_run_comes_back_unfinished(model, ids, path):
    model.transformer.h[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with recon.capture(model) as recorder, pytest.raises(ZeroDivisionError):
        model(ids)
    recorder.trace.save(path)
    loaded = recon.load_trace(path, model)
    assert not loaded.complete
    assert "ZeroDivisionError" in loaded.failure


# -- with and without the model ------------------------------------------------


def test_without_its_model_a_run_is_seen_and_compared_but_not_verified(recorded, saved):
    loaded = recon.load_trace(saved)
    assert torch.equal(loaded["h.1.attn.z"], recorded.trace["h.1.attn.z"])
    assert recon.diff(loaded, recorded.trace).verdict == "equal"
    with pytest.raises(recon.UnsupportedError, match="load it with model=") as error:
        recon.verify_trace(loaded)
    one_line(error)


def test_other_weights_are_refused_by_name(saved, make_model, model):
    with torch.no_grad():
        model.transformer.h[2].mlp.c_fc.bias[3] += 1e-3
    with pytest.raises(recon.UsageError) as error:
        recon.load_trace(saved, model)
    assert "transformer.h.2.mlp.c_fc.bias" in one_line(error)
    with pytest.raises(recon.UsageError, match=r"transformer\.wte\.weight"):
        recon.load_trace(saved, make_model(seed=1))
    with pytest.raises(recon.UsageError, match=r"differs from the one"):
        recon.load_trace(saved, make_model(dtype=torch.float64))


def test_a_trace_saved_without_its_model_says_that_it_cannot_tell_weights(
    model, ids, tmp_path
):
    first, again = tmp_path / "first.safetensors", tmp_path / "again.safetensors"
    with recon.capture(model) as recorder, torch.no_grad():
        model(ids)
    recorder.trace.save(first)
    recon.load_trace(first).save(again)
    with pytest.raises(recon.UsageError, match=r"loaded without its model"):
        recon.load_trace(again, model=model)
    recon.load_trace(first, model=model).save(again)
    assert recon.load_trace(again, model=model).facts.makers


@pytest.mark.parametrize("config", [{"n_layer": 2}, {"n_layer": 4}, {"n_embd": 16}])
def test_a_model_of_another_size_is_refused(saved, make_model, config):
    with pytest.raises(recon.UsageError) as error:
        recon.load_trace(saved, make_model(**config))
    one_line(error)


# -- damaged and foreign files -------------------------------------------------


def test_a_missing_file_is_said(path):
    with pytest.raises(recon.UsageError, match="no such file") as error:
        recon.load_trace(path)
    assert str(path) in one_line(error)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(recon.UsageError, match="damaged or no safetensors") as error:
        recon.load_trace(saved)
    one_line(error)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75, 1.0])
def test_one_flipped_bit_in_a_tensor_is_found(saved, share):
    content = bytearray(saved.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    start = 8 + length
    content[start + int((len(content) - start - 1) * share)] ^= 1
    saved.write_bytes(content)
    with pytest.raises(recon.UsageError, match="do not match their digest") as error:
        recon.load_trace(saved)
    one_line(error)


@pytest.mark.parametrize("bit", [0, 2, 6])
def test_one_flipped_bit_anywhere_in_the_header_is_found(saved, bit):
    # 2026-11: a changed name of a weight was read, a changed entry a traceback.
    whole = saved.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    for at in range(8, 8 + length, 97):
        content = bytearray(whole)
        content[at] ^= 1 << bit
        saved.write_bytes(content)
        with pytest.raises(recon.UsageError) as error:
            recon.load_trace(saved)
        one_line(error)


def with_metadata(source, target, **changed):
    """Copy a file with some of its metadata changed; None takes an entry away.

    A changed header gets a digest of its own, as if it had been written so.
    """
    with safe_open(source, framework="pt") as file:
        metadata = {**file.metadata(), **changed}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if changed.get("header") is not None:
        metadata["header_digest"] = saving.header_digest(changed["header"], tensors)
    kept = {k: v for k, v in metadata.items() if v is not None}
    save_file(tensors, target, kept)
    return target


def test_a_copy_with_unchanged_metadata_is_read(saved, tmp_path):
    recon.load_trace(with_metadata(saved, tmp_path / "copy"))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"format": "pt"}, "no trace saved by recon"),
        ({"format": None}, "no trace saved by recon"),
        ({"version": "2"}, "format version 2, this recon reads 1"),
        ({"version": None}, "format version None"),
        ({"digest": "0"}, "do not match their digest"),
        ({"digest": None}, "do not match their digest"),
        ({"header": None}, "header does not match its digest"),
        ({"header_digest": "0"}, "header does not match its digest"),
        ({"header": "{"}, "damaged"),
        ({"header": "[]"}, "damaged"),
        ({"header": "{}"}, "damaged"),
    ],
    ids=str,
)
def test_metadata_of_something_else_is_refused(saved, tmp_path, changed, words):
    other = with_metadata(saved, tmp_path / "other", **changed)
    with pytest.raises(recon.UsageError, match=words) as error:
        recon.load_trace(other)
    assert str(other) in one_line(error)


@pytest.mark.parametrize(
    "entry", ["sites", "calls", "lookups", "keep", "facts", "about", "weights"]
)
def test_a_header_without_an_entry_is_refused(saved, tmp_path, entry, model):
    with safe_open(saved, framework="pt") as file:
        header = json.loads(file.metadata()["header"])
    del header[entry]
    other = with_metadata(saved, tmp_path / "other", header=json.dumps(header))
    with pytest.raises(recon.UsageError, match=entry):
        recon.load_trace(other, model)


def test_a_header_whose_site_names_no_tensor_is_refused(saved, tmp_path):
    with safe_open(saved, framework="pt") as file:
        header = json.loads(file.metadata()["header"])
    header["sites"]["wpe"] = "site/nowhere"
    other = with_metadata(saved, tmp_path / "other", header=json.dumps(header))
    with pytest.raises(recon.UsageError, match="damaged"):
        recon.load_trace(other)


def test_weights_in_safetensors_are_no_trace(model, path):
    save_file({"x": torch.zeros(3)}, path)
    with pytest.raises(recon.UsageError, match="no trace saved by recon"):
        recon.load_trace(path)
    path.write_text("not even safetensors")
    with pytest.raises(recon.UsageError, match="damaged or no safetensors"):
        recon.load_trace(path)


# -- writing -------------------------------------------------------------------


def test_a_directory_that_is_not_there_is_said_and_nothing_is_left(recorded, tmp_path):
    with pytest.raises(recon.UsageError, match="cannot be written") as error:
        recorded.trace.save(tmp_path / "nowhere" / "run.safetensors")
    one_line(error)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_leaves_the_old_file_and_no_part(
    recorded, saved, monkeypatch
):
    old = saved.read_bytes()

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "save_file", full)
    with pytest.raises(recon.UsageError, match="No space left") as error:
        recorded.trace.save(saved)
    one_line(error)
    assert saved.read_bytes() == old
    assert list(saved.parent.iterdir()) == [saved]


def test_a_directory_in_the_files_place_is_said_and_no_part_is_left(recorded, tmp_path):
    place = tmp_path / "taken"
    place.mkdir()
    with pytest.raises(recon.UsageError, match="cannot be written"):
        recorded.trace.save(place)
    assert list(tmp_path.iterdir()) == [place]


def test_saving_again_replaces_the_old_file(recorded, saved):
    trace = recorded.trace
    trace.replace("wpe", trace["wpe"] * 2).save(saved)
    assert torch.equal(recon.load_trace(saved)["wpe"], trace["wpe"] * 2)
    assert list(saved.parent.iterdir()) == [saved]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_who_may_read_the_file_follows_the_umask(recorded, path, mask):
    before = os.umask(mask)
    try:
        recorded.trace.save(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_what_is_held_under_two_names_is_stored_once(recorded, saved):
    trace = recorded.trace
    assert len(trace.tensors) > len({t.data_ptr() for t in trace.tensors.values()})
    apart = {s: t.clone() for s, t in trace.tensors.items()}
    with safe_open(saved, framework="pt") as file:
        header = json.loads(file.metadata()["header"])
    copies = saved.with_name("copies")
    replace(trace, tensors=apart).save(copies)
    assert saved.stat().st_size < 0.9 * copies.stat().st_size
    assert header["sites"]["h.0.resid_pre"] == header["sites"]["embed"]


def test_saving_changes_nothing_of_the_trace(recorded, saved, all_exact):
    all_exact(recon.verify_trace(*recorded))
