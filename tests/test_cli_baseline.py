"""What people, scripts and CI get to see of ``recon baseline``."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest
import torch
from junitparser import JUnitXml

from recon import cli, models
from recon.baseline import files
from recon.report.json import schema_text

TINY = "random:tiny"
IDS = "[[5, 17, 300, 2999, 5, 8, 1]]"
SARIF_SCHEMA = json.loads(
    (Path(__file__).parent / "data" / "sarif-2.1.0.schema.json").read_text("utf-8")
)


@pytest.fixture(autouse=True)
def _alone(module_without_type_checks, quick_collections, monkeypatch, tmp_path):
    """No network, no settings of the caller's shell, a directory of its own."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_VERBOSITY", "error")
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    for name in (
        "RECON_TRACEBACK",
        "COLUMNS",
        "NO_COLOR",
        "FORCE_COLOR",
        "GITHUB_ACTIONS",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    Path("ids.json").write_text(IDS)


@pytest.fixture
def run(capsys):
    """Run ``recon baseline`` and return its exit code, stdout and stderr."""

    def command(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main(["baseline", *(str(argument) for argument in arguments)])
        return end.value.code, *capsys.readouterr()

    return command


@pytest.fixture
def recorded(run):
    """Record a baseline of random:tiny."""
    code, out, err = run("record", "b.json", "--model", TINY, "--input-ids", "ids.json")
    assert (code, err) == (0, "")
    assert "b.json" in out
    return Path("b.json")


@pytest.fixture
def edited(monkeypatch):
    """Edit every model that is loaded from now on."""

    def edit_with(edit):
        load = models.load_model

        def load_and_edit(*arguments, **options):
            loaded = load(*arguments, **options)
            edit(loaded.model)
            return loaded

        monkeypatch.setattr(models, "load_model", load_and_edit)

    return edit_with


def flip(model):
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight.view(torch.int32)[3, 5] ^= 1 << 20


def break_it(model):
    model.transformer.h[1].attn.c_proj.register_forward_pre_hook(
        lambda module, args: (args[0] * 1.5, *args[1:])
    )


def test_recording_and_checking_again_is_equal(run, recorded):
    code, out, err = run("check", recorded)
    assert (code, err) == (0, "")
    assert "EQUAL: all 44 sites are bit-equal" in out
    assert files.read(recorded).model.name == TINY


def test_the_default_is_the_bundled_model_on_its_prompt(run):
    assert run("record", "b.json")[0] == 0
    found = files.read(Path("b.json"))
    assert found.model.name == "bundled"
    assert found.source == "bundled prompt"
    assert str(Path(models.BUNDLED_PATH)) not in Path("b.json").read_text("utf-8")


def test_text_seed_dtype_and_attention_are_recorded_and_used_again(run):
    options = ["--text", "the fox", "--dtype", "bfloat16", "--attn", "eager"]
    assert run("record", "b.json", *options, "--seed", 3)[0] == 0
    found = files.read(Path("b.json"))
    assert (found.model.dtype, found.model.attention) == ("bfloat16", "eager")
    assert (found.model.seed, found.source) == (3, "--text")
    assert found.environment.dtype == "bfloat16"
    code, out, _ = run("check", "b.json")
    assert (code, "EQUAL" in out) == (0, True)


def test_text_seed_and_device_decide_what_is_recorded(run):
    def with_options(name, *options):
        assert run("record", name, "--model", TINY, *options)[0] == 0
        return files.read(Path(name))

    one = with_options("1.json", "--text", "the fox", "--device", "cpu")
    two = with_options("2.json", "--text", "the fox runs", "--seed", "3")
    assert (one.model.device, one.environment.device) == ("cpu", "cpu")
    assert len(two.inputs["input_ids"][0]) > len(one.inputs["input_ids"][0])
    digests = [[w.sha256 for w in found.weights.values()] for found in (one, two)]
    assert digests[0] != digests[1]
    code, out, err = run("record", "3.json", "--model", TINY, "--device", "nowhere")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "nowhere" in err
    assert not Path("3.json").exists()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--attn", "eager"], 0, "ROUNDING: rounding that began at h.0.attn.z"),
        (["--dtype", "float16"], 1, "CHANGED: 41 of 41 weights differ"),
        (["--seed", "1"], 1, "weights differ"),
        (["--model", "bundled"], 2, ""),
        (["--device", "nowhere"], 2, ""),
    ],
)
def test_each_part_of_the_recorded_model_can_be_asked_for_otherwise(
    run, recorded, options, code, words
):
    found, out, err = run("check", recorded, *options)
    assert found == code
    assert words in " ".join(out.split())
    assert (err == "") == (code != 2)


def test_a_report_may_not_take_the_baselines_place(run, recorded):
    before = recorded.read_bytes()
    code, out, err = run("check", recorded, "--json", recorded)
    assert (code, out) == (2, "")
    assert "FILE and --json both write to" in err
    assert recorded.read_bytes() == before


def test_findings_exit_with_1_and_name_the_place(run, recorded, edited):
    edited(flip)
    code, out, _ = run("check", recorded)
    assert code == 1
    assert "RB104 weights-differ" in out
    assert "transformer.h.1.mlp.c_fc.weight" in out
    assert "h.1.mlp.pre" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["check", "none.json"], "no such file"),
        (["record", "b.json", "--text", "a", "--input-ids", "ids.json"], "give one of"),
        (["record", "no/b.json"], "no directory"),
        (["record", "."], "exists"),
        (["record", "ids.json"], "exists"),
        (["check", "ids.json"], "no baseline recorded by recon"),
        (["check", "b.json", "--allow-bytes", "-1"], "allow-bytes"),
        (["check", "b.json", "--json", "-", "--junit", "-"], "both write to -"),
        (["check", "b.json", "--sarif", "no/out"], "no directory"),
        (["check"], "FILE"),
        (["record"], "FILE"),
        (["forget", "b.json"], "forget"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(run, arguments, words):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert words in err


def test_a_file_that_is_there_is_replaced_only_by_force(run, recorded):
    before = recorded.read_bytes()
    assert run("record", recorded, "--model", TINY)[0] == 2
    assert recorded.read_bytes() == before
    assert run("record", recorded, "--model", TINY, "--force")[0] == 0
    assert recorded.read_bytes() != before


def test_a_run_that_is_wrong_by_itself_is_not_recorded(run, edited):
    edited(break_it)
    code, out, err = run("record", "b.json", "--model", TINY)
    assert (code, err) == (1, "")
    assert "nothing recorded" in out
    assert "h.1.attn.z" in out
    assert not Path("b.json").exists()


def test_update_shows_what_it_accepts_and_rewrites(run, recorded, edited):
    edited(flip)
    code, out, _ = run("check", recorded, "--update")
    assert code == 0
    assert "RB104 weights-differ" in out
    assert "b.json rewritten: 1 findings and" in out
    code, out, _ = run("check", recorded)
    assert (code, "EQUAL" in out) == (0, True)


def test_update_leaves_a_file_alone_where_nothing_moved(run, recorded):
    before = recorded.stat().st_mtime_ns, recorded.read_bytes()
    code, out, _ = run("check", recorded, "--update")
    assert (code, "stays as it was: nothing moved" in out) == (0, True)
    assert (recorded.stat().st_mtime_ns, recorded.read_bytes()) == before


def test_update_does_not_accept_a_run_that_is_wrong_by_itself(run, recorded, edited):
    before = recorded.read_bytes()
    edited(break_it)
    code, out, _ = run("check", recorded, "--update")
    assert (code, "wrong by itself" in out) == (1, True)
    assert recorded.read_bytes() == before


def test_allow_bytes_sets_the_allowance(run, recorded):
    plain = json.loads(recorded.read_text("utf-8"))
    plain["kept_bytes"] = int(plain["kept_bytes"] / 1.3)
    plain["digest"] = files.digest(plain)
    recorded.write_text(json.dumps(plain))
    code, out, _ = run("check", recorded)
    assert (code, "RB109 more-bytes" in out) == (1, True)
    assert run("check", recorded, "--allow-bytes", "0.5")[0] == 0


@pytest.fixture
def timed(run):
    """Record a baseline of random:tiny with its overhead."""
    options = ["--model", TINY, "--input-ids", "ids.json", "--overhead"]
    assert run("record", "b.json", *options)[0] == 0
    return Path("b.json")


def test_overhead_is_recorded_only_where_asked_for(run, timed):
    found = files.read(timed).overhead
    assert 0 < found.low <= found.ratio <= found.high
    assert run("record", "c.json", "--model", TINY)[0] == 0
    assert files.read(Path("c.json")).overhead is None


def test_allow_overhead_sets_the_allowance(run, timed):
    plain = json.loads(timed.read_text("utf-8"))
    # So fast that no machine can be: whatever is measured now is slower.
    plain["overhead"] |= {"ratio": 1e-6, "low": 1e-6, "high": 1e-6}
    plain["digest"] = files.digest(plain)
    timed.write_text(json.dumps(plain))
    assert run("check", timed)[0] == 0
    code, out, _ = run("check", timed, "--allow-overhead", "0")
    assert (code, "more-time" in out) == (1, True)
    assert run("check", timed, "--allow-overhead", "1e12")[0] == 0


def test_overhead_that_was_not_recorded_cannot_be_allowed_for(run, recorded):
    code, out, err = run("check", recorded, "--allow-overhead", "0.5")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "record it anew with --overhead" in err


# -- for machines --------------------------------------------------------------------


def test_json_follows_its_schema_and_says_what_moved(run, recorded, edited):
    edited(flip)
    code, out, err = run("check", recorded, "--json", "-")
    document = json.loads(out)
    assert (code, err) == (1, "")
    jsonschema.validate(document, json.loads(schema_text("baseline-check")))
    assert document["verdict"] == "changed"
    assert document["moved"][0]["site"] == "h.1.mlp.pre"
    assert document["moved"][0]["kind"] == "weights"
    assert document["findings"][0]["code"] == "RB104"
    assert document["equal"] + len(document["moved"]) == 44


def test_the_file_follows_its_schema(recorded):
    document = json.loads(recorded.read_text("utf-8"))
    schema = json.loads(schema_text("baseline"))
    jsonschema.validate(document, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**document, "schema_version": 2}, schema)


def test_infinite_distances_are_spelt_out(run, recorded):
    _, out, _ = run("check", recorded, "--dtype", "float16", "--json", "-")
    assert json.loads(out)["moved"][0]["distance"] == "inf"


def test_junit_has_a_case_for_each_site_and_each_finding(run, recorded, edited):
    edited(break_it)
    assert run("check", recorded, "--junit", "out.xml")[0] == 1
    suites = {suite.name: suite for suite in JUnitXml.fromfile("out.xml")}
    assert suites["sites"].tests == 44
    assert suites["sites"].failures == 1
    # The site that changed, and the hook that did it.
    assert suites["findings"].tests == suites["findings"].failures == 2
    cases = ElementTree.parse("out.xml").findall(".//testcase")
    failed = next(c for c in cases if c.find("failure") is not None)
    assert failed.get("name") == "h.1.attn.z"
    assert failed.get("file") == "b.json"
    line = recorded.read_text("utf-8").splitlines()[int(failed.get("line")) - 1]
    assert '"h.1.attn.z"' in line


def test_junit_of_an_equal_run_has_no_failure(run, recorded):
    code, out, _ = run("check", recorded, "--junit", "-")
    assert code == 0
    suites = {suite.name: suite for suite in JUnitXml.fromstring(out)}
    assert (suites["sites"].tests, suites["sites"].failures) == (44, 0)
    assert suites["findings"].tests == 0


def test_sarif_points_at_the_lines_of_the_file(run, recorded, edited):
    edited(break_it)
    _, out, _ = run("check", recorded, "--sarif", "-")
    document = json.loads(out)
    jsonschema.validate(document, SARIF_SCHEMA)
    (of_run,) = document["runs"]
    first = of_run["results"][0]
    assert first["ruleId"] == "RB101"
    place = first["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "b.json"
    lines = recorded.read_text("utf-8").splitlines()
    assert '"h.1.attn.z"' in lines[place["region"]["startLine"] - 1]
    assert of_run["properties"]["verdict"] == "changed"
    rules = of_run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == ["RB101", "RB108"]


def test_files_come_besides_the_table(run, recorded):
    options = ["--json", "a", "--junit", "b", "--sarif", "c"]
    code, out, _ = run("check", recorded, *options)
    assert (code, "EQUAL" in out) == (0, True)
    assert all(Path(name).stat().st_size > 100 for name in "abc")


def test_a_github_job_gets_annotations_and_no_other_run_does(
    run, recorded, edited, monkeypatch
):
    edited(flip)
    assert "::error" not in run("check", recorded)[1]
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    _, out, _ = run("check", recorded)
    (command,) = re.findall(r"^::error (.*)::(.*)$", out, flags=re.MULTILINE)
    lines = recorded.read_text("utf-8").splitlines()
    place = dict(part.split("=") for part in command[0].split(","))
    assert place["file"] == "b.json"
    assert place["title"] == "RB104 weights-differ"
    assert "h.1.mlp.c_fc.weight" in lines[int(place["line"]) - 1]
    assert "transformer.h.1.mlp.c_fc.weight" in command[1]
    _, out, err = run("check", recorded, "--json", "-")
    assert json.loads(out)
    assert err.startswith("::error ")


def test_rounding_is_a_notice_and_equality_says_nothing(run, recorded, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert "::notice " in run("check", recorded, "--attn", "eager")[1]
    assert "::" not in run("check", recorded)[1]


def test_what_would_end_an_annotation_is_escaped(run, recorded, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    strange = Path("a,b:c%\n.json")
    recorded.rename(strange)
    _, out, _ = run("check", strange, "--seed", "1")
    (command,) = [line for line in out.splitlines() if line.startswith("::error")]
    assert "file=a%2Cb%3Ac%25\\n.json,line=" in command
