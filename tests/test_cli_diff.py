"""What people and scripts get to see of ``recon diff``."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest
import torch

import recon
from recon import cli, models
from recon.cli.diff import Spec
from recon.report import json as report_json
from recon.report.difference import _bars

ROOT = Path(__file__).parents[1]
TINY = "random:tiny"
EAGER, SDPA = f"{TINY}@attn=eager", f"{TINY}@attn=sdpa"


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    """No network, no settings of the caller's shell."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_VERBOSITY", "error")
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    for name in ("RECON_TRACEBACK", "COLUMNS", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(capsys):
    """Run ``recon diff`` and return its exit code, stdout and stderr."""

    def command(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main(["diff", *(str(argument) for argument in arguments)])
        return end.value.code, *capsys.readouterr()

    return command


@pytest.fixture
def second_is_wrong(monkeypatch):
    """Make the second model that is loaded answer with an edited MLP in block 1."""
    load, loads = models.load_model, []

    def load_and_edit(*arguments, **options):
        loaded = load(*arguments, **options)
        loads.append(loaded)
        if len(loads) == 2:
            loaded.model.transformer.h[1].mlp.c_fc.register_forward_hook(
                lambda module, inputs, output: output * 1.01
            )
        return loaded

    monkeypatch.setattr(models, "load_model", load_and_edit)


def saved_run(path, attention="eager", damage="", ids=None):
    """Save a run of random:tiny; ``damage`` names a site to falsify before."""
    model = models.load_model(TINY, attention=attention).model
    if ids is None:
        ids = torch.arange(8)[None]
    with torch.no_grad(), recon.capture(model) as recorder:
        model(ids)
    trace = recorder.trace
    if damage:
        trace = trace.replace(damage, trace[damage] * 1.01)
    trace.save(path)
    return path


def document(out):
    """Read JSON and hold it against the schema."""

    def refuse(token):
        raise AssertionError(f"{token} is no JSON")

    found = json.loads(out, parse_constant=refuse)
    jsonschema.validate(found, _schema("diff"))
    return found


def _schema(name):
    return json.loads((ROOT / "docs" / "schema" / f"{name}.json").read_text())


# -- verdicts and exit codes ---------------------------------------------------


def test_equal_runs_end_with_0(run):
    code, out, err = run(SDPA, f"{TINY}@seed=0,device=cpu")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].startswith("EQUAL: ")
    assert "first difference" not in out


def test_eager_and_sdpa_end_with_0_and_show_the_growth(run):
    code, out, err = run(EAGER, SDPA)
    assert (code, err) == (0, "")
    last = " ".join(out[out.index("ROUNDING") :].split())
    assert last == (
        "ROUNDING: both are right, they differ by rounding that grew from h.0.attn.z"
    )
    lines = out.splitlines()
    assert "A  random:tiny@attn=eager: float32, eager; all " in lines[0]
    assert "identities certify" in lines[0]
    assert "float32, sdpa" in lines[1]
    assert "first difference at h.0.attn.z: at most " in out
    states = [*(f"h.{i}.resid_pre" for i in range(3)), "h.2.resid_post"]
    table = {line.split()[0]: line for line in lines if line.split()[:1]}
    assert [s for s in table if ".resid_" in s] == states
    assert table["h.0.resid_pre"].split()[1:] == ["0", "0"]
    bars = [table[s].count("█") for s in states]
    assert bars[0] == 0
    assert 1 <= min(bars[1:]) < max(bars[1:]) == 30
    assert max(map(len, lines)) <= 80


def test_float32_and_bfloat16_end_with_0(run):
    code, out, _ = run(EAGER, f"{TINY}@dtype=bfloat16,attn=eager")
    assert code == 0
    assert "rounding that grew from wte" in " ".join(out.split())


def test_other_seeds_are_other_models_and_end_with_1(run):
    code, out, err = run(TINY, f"{TINY}@seed=1")
    assert (code, err) == (1, "")
    assert "DIVERGED: the models differ: transformer.wte.weight" in " ".join(
        out.split()
    )


def test_a_bar_is_no_longer_than_its_figure_is_larger():
    def bars(*sizes):
        apart = [SimpleNamespace(relative=size) for size in sizes]
        return [length for _, length in _bars(apart)]

    assert bars(0.0, 1e-4, 1e-3, 1e-2) == [0, 1, 15, 30]
    assert bars(2.2e-3, 2.3e-3) == [29, 30]
    assert bars(1.0, 1.0) == [30, 30]
    assert bars(0.0, float("inf")) == [0, 0]


def test_a_wrong_run_is_named_with_its_site_and_ends_with_1(run, second_is_wrong):
    code, out, err = run(EAGER, SDPA)
    assert (code, err) == (1, "")
    said = " ".join(out.split())
    assert f"DIVERGED: {SDPA} is wrong at h.1.mlp.pre" in said
    assert "1 identity fails, first h.1.mlp.pre: " in said


def test_a_text_and_ids_of_a_file_are_run(run, tmp_path):
    path = tmp_path / "ids.json"
    path.write_text("[[1, 2, 3]]")
    assert run(EAGER, SDPA, "--input-ids", path)[0] == 0
    document_ = document(run(EAGER, SDPA, "--input-ids", path, "--json", "-")[1])
    assert document_["verdict"] == "rounding"


def test_both_runs_are_on_the_ids_of_a_pipe(run):
    reader, writer = os.pipe()
    os.write(writer, b"[[1, 2, 3]]")
    os.close(writer)
    code, out, _ = run(EAGER, SDPA, "--input-ids", f"/dev/fd/{reader}")
    os.close(reader)
    assert code == 0
    assert "rounding" in out


def test_train_mode_is_a_setting(run):
    arguments = f"{TINY}@mode=train,attn=eager", f"{TINY}@attn=eager,mode=train"
    assert run(*arguments)[0] == 0
    code, out, _ = run(arguments[0], EAGER)
    assert code == 1
    assert f"dropout was on in {arguments[0]}" in " ".join(out.split())


@pytest.mark.parametrize("bound", ["deterministic", "probabilistic"])
def test_either_form_of_the_bound_certifies(run, bound):
    code, out, _ = run(EAGER, SDPA, "--bound", bound)
    assert code == 0
    assert ("not a proof" in " ".join(out.split())) == (bound == "probabilistic")


# -- saved traces --------------------------------------------------------------


def test_saved_runs_without_a_model_are_compared_but_not_certified(run, tmp_path):
    one = saved_run(tmp_path / "one.safetensors")
    other = saved_run(tmp_path / "other.safetensors", "sdpa")
    code, out, err = run(one, other)
    assert (code, err) == (1, "")
    said = " ".join(out.split())
    assert "UNVERIFIED: they differ from h.0.attn.z on" in said
    assert "comes without its weights" in said
    assert "not certified, it comes without its model" in said
    assert run(one, one)[0] == 0


def test_saved_runs_with_their_model_are_certified(run, tmp_path):
    one = saved_run(tmp_path / "one.safetensors")
    other = saved_run(tmp_path / "other.safetensors", "sdpa")
    code, out, err = run(one, other, "--model", TINY)
    assert (code, err) == (0, "")
    assert "ROUNDING: both are right" in out


def test_a_saved_run_and_a_model_are_compared_on_the_same_ids(run, tmp_path):
    ids = tmp_path / "ids.json"
    ids.write_text("[[0, 1, 2, 3, 4, 5, 6, 7]]")
    saved = saved_run(tmp_path / "run.safetensors")
    arguments = (saved, SDPA, "--model", TINY, "--input-ids", ids)
    assert run(*arguments)[0] == 0
    wrong = saved_run(tmp_path / "wrong.safetensors", damage="h.1.mlp.out")
    code, out, _ = run(wrong, *arguments[1:])
    assert code == 1
    assert "is wrong at h.1.mlp.out" in " ".join(out.split())


def test_a_saved_run_and_another_model_end_with_2(run, tmp_path):
    saved = saved_run(tmp_path / "run.safetensors")
    code, out, err = run(saved, saved, "--model", f"{TINY}@seed=3")
    assert (code, out) == (2, "")
    assert "transformer.wte.weight of this model differs" in err
    assert len(err.splitlines()) == 1


# -- bad usage -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (f"{TINY}@attn", "'attn' is no setting; there are attn, dtype, device"),
        (f"{TINY}@colour=red", "'colour=red' is no setting"),
        (f"{TINY}@dtype=int8", "dtype 'int8'; there are "),
        (f"{TINY}@attn=flash", "flash"),
        (f"{TINY}@seed=one", "seed 'one' is no number"),
        (f"{TINY}@seed=-1", "seed '-1' is no number"),
        (f"{TINY}@seed=\u00b2", "seed '\u00b2' is no number from 0 to 4294967295"),
        (f"{TINY}@seed=4294967296", "seed '4294967296' is no number from 0"),
        (f"{TINY}@seed={'9' * 5000}", "is no number from 0"),
        (f"{TINY}@mode=test", "mode is train or eval"),
        (f"{TINY}@device=abacus", "abacus"),
        ("random:huge", "random:huge is unknown"),
        ("nowhere.safetensors", "no such file"),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_a_bad_spec_is_one_line_and_exit_code_2(run, spec, words, turned):
    code, out, err = run(*((TINY, spec) if turned else (spec, TINY)))
    assert (code, out) == (2, "")
    assert err.startswith("recon: ")
    assert len(err.splitlines()) == 1
    assert words in err


@pytest.mark.parametrize("arguments", [[], [TINY], [TINY, TINY, TINY]])
def test_a_wrong_number_of_runs_is_bad_usage(run, arguments):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1


def test_saved_runs_on_other_ids_end_with_2(run, tmp_path):
    one = saved_run(tmp_path / "one.safetensors")
    other = saved_run(tmp_path / "other.safetensors", ids=torch.arange(5)[None])
    code, _, err = run(one, other)
    assert code == 2
    assert "different inputs: 1x8 and 1x5" in err
    third = saved_run(tmp_path / "third.safetensors", ids=torch.arange(1, 9)[None])
    code, _, err = run(one, third, "--model", TINY)
    assert code == 2
    assert "different token ids" in err


def test_specs_are_a_model_and_its_settings():
    spec = Spec.parse("gpt2@attn=sdpa,dtype=bfloat16")
    assert (spec.model, spec.saved) == ("gpt2", None)
    assert spec.settings == {"attn": "sdpa", "dtype": "bfloat16"}
    assert Spec.parse("@seed=3").model == "bundled"
    assert Spec.parse("a/run.safetensors").saved == Path("a/run.safetensors")


# -- JSON ----------------------------------------------------------------------


def test_json_says_what_the_page_says(run):
    code, out, err = run(EAGER, SDPA, "--json", "-")
    assert (code, err) == (0, "")
    found = document(out)
    assert found["verdict"] == "rounding"
    assert found["first"] == "h.0.attn.z"
    assert found["names"] == [EAGER, SDPA]
    assert found["conclusion"].startswith("both are right")
    sites = {row["site"]: row for row in found["sites"]}
    assert sites["wte"]["equal"]
    assert sites["h.0.attn.z"]["max_abs"] > 0
    for checks in found["certified"]:
        assert {c["level"] for c in checks} == {"certify"}
        assert all(0 <= c["bound_ratio"] <= 1 for c in checks)
        assert any(c["sharpness"] > 0 for c in checks)


def test_json_of_saved_runs_without_a_model_has_no_certificates(run, tmp_path):
    one = saved_run(tmp_path / "one.safetensors")
    other = saved_run(tmp_path / "other.safetensors", "sdpa")
    code, out, _ = run(one, other, "--json", "-")
    found = document(out)
    assert (code, found["verdict"]) == (1, "unverified")
    assert found["certified"] == [None, None]


def test_json_of_a_wrong_run_says_where(run, second_is_wrong, tmp_path):
    path = tmp_path / "diff.json"
    code, out, _ = run(EAGER, SDPA, "--json", path)
    assert code == 1
    assert "DIVERGED" in out
    found = document(path.read_text())
    assert found["verdict"] == "diverged"
    first, second = found["certified"]
    assert not [c for c in first if c["verdict"] == "diverged"]
    failing = [c["site"] for c in second if c["verdict"] == "diverged"]
    assert failing == ["h.1.mlp.pre"]


@pytest.mark.parametrize("name", report_json.DOCUMENTS)
def test_the_schemas_in_the_docs_are_those_of_the_code(name):
    path = ROOT / "docs" / "schema" / f"{name}.json"
    assert path.read_text("utf-8") == report_json.schema_text(name)


def test_the_schema_refuses_what_is_none(run):
    found = json.loads(run(EAGER, EAGER, "--json", "-")[1])
    for wrong in ({**found, "verdict": "fine"}, {**found, "more": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, _schema("diff"))
