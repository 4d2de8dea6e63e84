"""What recon capture stores is what a pass of the model computed, bit by bit."""

import json
import pickle
import sys

import jsonschema
import numpy as np
import pytest
import torch

import recon
from recon import cli
from recon.collecting import Storing, collect
from recon.errors import UsageError
from recon.models import Loaded
from recon.prompts import Prompts, listed
from recon.report.json import schema_text
from recon.storage.captures import Column

SITES = ["h.*.attn.{q,pattern}", "h.1.attn_out", "h.1.attn.out", "wpe", "ln_f"]
ROWS = [[1, 2, 3, 4, 5], [6], [7, 8, 9]]


@pytest.fixture
def loaded(make_model):
    """A tiny model with a name, and no tokenizer."""
    return Loaded("tiny", make_model(), None)


@pytest.fixture
def captures(loaded, tmp_path):
    """Captures of three prompts, a shard each."""
    return stored(loaded, tmp_path / "c", shard_bytes=1)


def stored(loaded, folder, rows=ROWS, sites=SITES, dtype=None, **how):
    return collect(
        loaded,
        listed(rows, "rows"),
        folder,
        sites=sites,
        dtype=dtype,
        storing=Storing(**how),
    )


def of_a_pass(model, row):
    with torch.no_grad(), recon.capture(model, sites=SITES) as recorder:
        model(torch.tensor([row]))
    return recorder.trace


# -- what is stored --------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("shard_bytes", [1, 10_000, 10**9])
def test_each_tensor_is_that_of_a_pass(make_model, tmp_path, attention, shard_bytes):
    loaded = Loaded("tiny", make_model(attention=attention), None)
    captures = stored(loaded, tmp_path, shard_bytes=shard_bytes)
    assert len(captures) == len(ROWS)
    for row, prompt in zip(ROWS, captures, strict=True):
        trace = of_a_pass(loaded.model, row)
        assert prompt.sites == trace.sites
        assert prompt.ids.tolist() == [row]
        for place in trace.sites:
            assert torch.equal(prompt[place], trace[place])


def test_a_changed_element_would_be_seen(captures, loaded):
    trace = of_a_pass(loaded.model, [1, 2, 3, 4, 6])
    assert not torch.equal(captures[0]["ln_f"], trace["ln_f"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_another_dtype_is_that_of_the_values_that_were_computed(
    loaded, tmp_path, dtype
):
    captures = stored(loaded, tmp_path, dtype=dtype)
    trace = of_a_pass(loaded.model, ROWS[0])
    for place in trace.sites:
        assert torch.equal(captures[0][place], trace[place].to(dtype))
    assert captures.run.dtype == str(dtype).removeprefix("torch.")
    assert captures[0].ids.dtype == torch.int64


def test_the_index_says_what_ran_and_how_each_site_was_had(make_model, tmp_path):
    loaded = Loaded("tiny", make_model(attention="sdpa"), None)
    run = stored(loaded, tmp_path).run
    assert (run.model, run.attention, run.run_dtype) == ("tiny", "sdpa", "float32")
    assert run.sites["h.0.attn.q"] == "view"
    assert run.sites["h.0.attn.pattern"] == "derived"
    assert run.sites["ln_f"] == "captured"


def test_capture_leaves_the_model_as_it_was(loaded, tmp_path):
    state = torch.random.get_rng_state()
    stored(loaded, tmp_path)
    assert torch.equal(state, torch.random.get_rng_state())
    assert not loaded.model.training
    assert not any(m._forward_hooks for m in loaded.model.modules())


def test_weights_that_differ_in_one_element_are_another_run(loaded, tmp_path):
    stored(loaded, tmp_path)
    with torch.no_grad():
        loaded.model.transformer.h[0].mlp.c_fc.bias[0] += 1
    with pytest.raises(UsageError, match="holds captures with weights"):
        stored(loaded, tmp_path)


# -- prompts that cannot be run ----------------------------------------------------


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([], r"rows, prompt 2: the prompt \[\] is empty: no token to run"),
        ([96, 97], "prompt 2: token ids from 96 to 97; expected 0 to 96"),
        ([-1], "prompt 2: token ids from -1 to -1; expected 0 to 96"),
        ([1] * 25, "prompt 2: 25 tokens, and the model's context has 24; shorten"),
        ("text", "tiny has no tokenizer; give token ids"),
    ],
)
def test_a_bad_prompt_is_named_and_those_before_it_are_kept(
    loaded, tmp_path, row, words
):
    with pytest.raises(UsageError, match=words):
        stored(loaded, tmp_path, rows=[[1], [2], row])
    captures = recon.load_captures(tmp_path)
    assert [p.ids.tolist() for p in captures] == [[[1]], [[2]]]
    assert not captures.complete


def test_cropped_prompts_say_so(loaded, tmp_path):
    captures = stored(loaded, tmp_path, rows=[[1] * 30, [2]], crop=True)
    assert [p.cropped for p in captures] == [6, 0]
    assert captures[0]["ln_f"].shape == (1, 24, 32)
    assert captures.sources[0].crop == 24


def test_an_interrupt_leaves_whole_shards_and_no_half_file(loaded, tmp_path):
    def read(start):
        for number, row in enumerate(ROWS[start:], start):
            if number == 2 and not start:
                raise KeyboardInterrupt
            yield str(number), row

    prompts = Prompts("rows", "0", len(ROWS), read)
    one = Storing(shard_bytes=1)
    with pytest.raises(KeyboardInterrupt):
        collect(loaded, prompts, tmp_path, sites="ln_f", storing=one)
    assert len(recon.load_captures(tmp_path).check()) == 2
    assert not list(tmp_path.glob("*.part"))
    captures = collect(loaded, prompts, tmp_path, sites="ln_f", storing=one)
    assert [p.ids[0].tolist() for p in captures] == ROWS


def test_an_unknown_site_touches_no_disk(loaded, tmp_path):
    with pytest.raises(recon.UnknownSiteError):
        stored(loaded, tmp_path / "c", sites="h.9.ln_1")
    assert not (tmp_path / "c").exists()


def test_integers_are_no_dtype_to_store_activations_in(loaded, tmp_path):
    with pytest.raises(UsageError, match="expected a floating-point dtype"):
        stored(loaded, tmp_path, dtype=torch.int8)


# -- reading ------------------------------------------------------------------------


def test_a_site_of_every_prompt_is_a_sequence(captures):
    column = captures["h.1.attn.q"]
    assert isinstance(column, Column)
    assert len(column) == 3
    assert [t.shape[2] for t in column] == [5, 1, 3]
    assert torch.equal(column[-1], captures[2]["h.1.attn.q"])
    assert [t.shape[2] for t in column[1:]] == [1, 3]
    assert [p.number for p in captures[1:]] == [1, 2]


def test_names_of_all_vocabularies_are_understood(captures):
    assert torch.equal(captures[0]["blocks.1.attn.hook_q"], captures[0]["h.1.attn.q"])


def test_what_is_not_there_is_told(captures):
    with pytest.raises(KeyError, match=r"h\.0\.ln_2 was not captured; these were: wpe"):
        captures["h.0.ln_2"]
    with pytest.raises(recon.UnknownSiteError):
        captures[0]["h.0.nothing"]
    with pytest.raises(IndexError):
        captures[3]


def test_to_write_into_a_tensor_does_not_change_the_file(captures):
    captures[0]["ln_f"].zero_()
    assert recon.load_captures(captures.folder).check()[0]["ln_f"].any()


def test_captures_can_be_sent_to_another_process(captures):
    again = pickle.loads(pickle.dumps(captures))
    assert torch.equal(again[2]["ln_f"], captures[2]["ln_f"])


def test_what_is_printed_of_captures_is_short(captures):
    shown = repr(captures)
    assert shown.endswith("3 prompts, 10 sites)")
    assert repr(captures[0]) == "StoredPrompt(0, 5 tokens, 10 sites)"
    assert repr(captures["ln_f"]) == "Column(ln_f, 3 prompts)"


# -- tables -----------------------------------------------------------------------


def test_pandas_gets_a_row_a_prompt_and_a_row_a_token(captures):
    assert captures.to_pandas()["tokens"].tolist() == [5, 1, 3]
    frame = captures["h.1.attn.q"].to_pandas()
    assert frame.index.tolist()[4:7] == [(0, 4), (1, 0), (2, 0)]
    assert frame["id"].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    wanted = captures[2]["h.1.attn.q"][0, :, 1].flatten()
    assert np.array_equal(frame.loc[(2, 1)].to_numpy()[1:], wanted)


def test_xarray_gets_named_axes(captures):
    array = captures["h.1.attn.q"].to_xarray()
    assert array.sizes == {"token": 9, "H": 4, "d": 8}
    assert array.name == "h.1.attn.q"
    wanted = captures[2]["h.1.attn.q"][0, :, 1]
    assert np.array_equal(array[7], wanted)
    assert (int(array.prompt[7]), int(array.position[7]), int(array.id[7])) == (2, 1, 8)
    one = captures[0].to_xarray()
    assert one["h.1.attn.pattern"].dims == ("B", "H", "T", "S")
    assert np.array_equal(one["ln_f"], captures[0]["ln_f"])


def test_bfloat16_is_handed_over_without_a_loss(loaded, tmp_path):
    captures = stored(loaded, tmp_path, dtype=torch.bfloat16)
    values = captures["ln_f"].to_xarray()
    assert values.dtype == np.float32
    assert np.array_equal(values[:5], captures[0]["ln_f"][0].float())


def test_patterns_are_no_table(captures):
    with pytest.raises(UsageError, match="prompts differ in their keys"):
        captures["h.1.attn.pattern"].to_pandas()


@pytest.mark.parametrize("library", ["pandas", "xarray"])
def test_a_library_that_is_not_there_is_named(captures, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UsageError, match=f"needs {library}, which is not installed"):
        getattr(captures["ln_f"], f"to_{library}")()


# -- the command line ---------------------------------------------------------------


@pytest.fixture
def run(capsys, monkeypatch):
    """Run a command line and return its exit code, stdout and stderr."""
    monkeypatch.delenv("COLUMNS", raising=False)

    def command(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main([str(argument) for argument in arguments])
        return end.value.code, *capsys.readouterr()

    return command


def test_prompts_of_a_file_are_captured_and_described(run, tmp_path):
    prompts, out = tmp_path / "p.txt", tmp_path / "c"
    prompts.write_text("the cat\nsat on a mat\n")
    arguments = ["--prompts", prompts, "--sites", "h.*.resid_post", "--out", out]
    code, shown, error = run("capture", "random:tiny", *arguments)
    assert (code, error) == (0, "")
    assert "prompts       2\n" in shown
    assert "state         complete" in shown
    assert [p.text for p in recon.load_captures(out)] == ["the cat", "sat on a mat"]

    code, shown, _ = run("info", out, "--json", "-")
    document = json.loads(shown)
    jsonschema.validate(document, json.loads(schema_text("info")))
    assert document["facts"]["checked"] == "every tensor matches its digest"
    assert document["facts"]["prompts"] == 2
    assert code == 0


def test_one_text_or_ids_or_the_bundled_prompt_are_captured(run, tmp_path):
    ids = tmp_path / "ids.json"
    ids.write_text("[[1, 2, 3], [4, 5, 6]]")
    common = ["capture", "random:tiny", "--sites", "ln_f", "--out"]
    assert run(*common, tmp_path / "a", "--text", "the cat")[0] == 0
    assert run(*common, tmp_path / "b", "--input-ids", ids)[0] == 0
    assert run(*common, tmp_path / "c")[0] == 0
    assert recon.load_captures(tmp_path / "a")[0].text == "the cat"
    rows = [p.ids.tolist() for p in recon.load_captures(tmp_path / "b")]
    assert rows == [[[1, 2, 3]], [[4, 5, 6]]]
    assert recon.load_captures(tmp_path / "c")[0].ids.shape == (1, 128)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sites", "ln_g"], "unknown site 'ln_g'; did you mean ln_f?"),
        (["--sites", "ln_f", "--prompts", "nowhere.txt"], "nowhere.txt: no such file"),
        (["--sites", "ln_f", "--text", "a", "--prompts", "b"], "give one of --text"),
        (["--sites", "ln_f", "--text", ""], "--text: the prompt '' is empty"),
        (["--sites", "ln_f", "--text", "a " * 300], "shorten it, or cut such prompts"),
        ([], "Missing option '--sites'"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(run, tmp_path, arguments, words):
    code, out, error = run(
        "capture", "random:tiny", "--out", tmp_path / "c", *arguments
    )
    assert (code, out) == (2, "")
    assert words in error
    assert error.count("\n") == 1


def test_an_interrupt_exits_with_130(run, tmp_path, monkeypatch):
    monkeypatch.setattr("recon.collecting._Passes.captured", interrupted)
    out = tmp_path / "c"
    code, _, error = run("capture", "random:tiny", "--sites", "ln_f", "--out", out)
    assert (code, error) == (130, "recon: interrupted\n")
    assert not list(out.glob("*.safetensors"))


def interrupted(*args):
    raise KeyboardInterrupt


# -- recon info -------------------------------------------------------------------


def test_info_knows_a_saved_run(run, recorded, tmp_path):
    recorded.trace.save(tmp_path / "run.safetensors")
    code, out, _ = run("info", tmp_path / "run.safetensors")
    assert code == 0
    assert out.startswith("a saved run")
    assert "3 x 7 tokens" in out


@pytest.mark.parametrize(
    ("command", "verdict"), [("verify", "reconciled"), ("sites", None), ("audit", None)]
)
def test_info_knows_what_json_wrote(run, tmp_path, command, verdict):
    path = tmp_path / "out.json"
    if command == "audit":
        code = "def capture(model, input_ids):\n    return {}\n"
        (tmp_path / "hooks.py").write_text(code)
        run("audit", f"{tmp_path / 'hooks.py'}:capture", "--quick", "--json", path)
    else:
        run(command, "random:tiny", "--json", path)
    code, out, _ = run("info", path)
    assert code == 0
    assert f"JSON of recon {command}" in out
    assert verdict is None or verdict in out


def test_info_knows_every_report_and_a_baseline(run, tmp_path):
    base = tmp_path / "base.json"
    run("baseline", "record", base, "--model", "random:tiny")
    kinds = {"--html": "HTML", "--junit": "JUnit XML", "--sarif": "SARIF"}
    asked = [word for kind in kinds for word in (kind, tmp_path / kind[2:])]
    run("baseline", "check", base, *asked)
    for kind, words in kinds.items():
        code, out, _ = run("info", tmp_path / kind[2:])
        assert code == 0
        assert out.startswith(f"{words} of recon")
    assert "EQUAL" in run("info", tmp_path / "html")[1]
    assert "JUnit XML of recon baseline check" in run("info", tmp_path / "junit")[1]
    code, out, _ = run("info", base)
    assert code == 0
    assert out.startswith("a baseline")
    assert "its content matches its digest" in out
    run("baseline", "check", base, "--json", tmp_path / "check")
    assert "JSON of recon baseline check" in run("info", tmp_path / "check")[1]


def test_info_finds_a_report_cut_off_and_a_baseline_that_was_edited(run, tmp_path):
    base, page = tmp_path / "base.json", tmp_path / "page.html"
    run("baseline", "record", base, "--model", "random:tiny")
    run("baseline", "check", base, "--html", page)
    page.write_text(page.read_text("utf-8")[:-200], "utf-8")
    code, _, error = run("info", page)
    assert code == 2
    assert "is no file of recon's" in error
    base.write_text(base.read_text("utf-8").replace('"seed": 0', '"seed": 1'), "utf-8")
    code, _, error = run("info", base)
    assert code == 2
    assert "does not match its digest" in error


def test_info_knows_a_shard_and_a_leftover(run, captures):
    shard = captures.folder / captures.shards[1].file
    code, out, _ = run("info", shard)
    assert code == 0
    assert "first prompt           1" in out
    left = captures.folder / "captures-00009.safetensors"
    left.write_bytes(shard.read_bytes())
    code, _, error = run("info", left)
    assert code == 2
    assert "does not name: what a killed run left" in error


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"\x00", "is no file of recon's: neither safetensors nor JSON"),
        ("a.json", b"{}", "is JSON, but none that this recon writes"),
        ("a.json", b"[]", "is JSON, but none that this recon writes"),
        ("a.sarif", b'{"runs": [{}]}', "is JSON, but none that this recon writes"),
        ("a.xml", b"<testsuites name='pytest'/>", "is no file of recon's"),
        ("a.html", b"<html><title>a</title></html>", "is no file of recon's"),
        ("a.json", b"[" * 100_000, "is no file of recon's"),
        ("a.safetensors", b"abc", "is damaged or no safetensors file"),
    ],
)
def test_info_refuses_what_is_not_ours(run, tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    code, out, error = run("info", tmp_path / name)
    assert (code, out) == (2, "")
    assert words in error
    assert error.count("\n") == 1


def test_info_finds_damage_that_only_a_digest_shows(run, captures):
    path = captures.folder / captures.shards[2].file
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    code, _, error = run("info", captures.folder)
    assert code == 2
    assert "does not match its digest" in error
    assert run("info", captures.folder, "--quick")[0] == 0
