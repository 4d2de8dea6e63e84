"""What people and scripts get to see of ``recon audit``."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import get_args
from xml.etree import ElementTree

import jsonschema
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import recon
from recon import cli, models
from recon.auditing import claims as vocabulary
from recon.auditing.findings import AuditReport, Finding, Judged
from recon.auditing.rules import rule
from recon.cli.audit import Names
from recon.errors import UsageError
from recon.facts import Environment
from recon.input_files import take_inputs
from recon.report.json import schema_text
from recon.target import load_function, load_tensors

TINY = "random:tiny"
RIGHT = """
    import torch


    def capture(model, input_ids):
        kept = {}

        def keep(module, args, output):
            kept["h.1.resid_post"] = output

        block = model.transformer.h[1]
        with torch.no_grad(), block.register_forward_hook(keep):
            model(input_ids)
        return kept
"""
WRONG = RIGHT.replace("h.1.resid_post", "h.1.mlp_out")
RAISES = """
    def capture(model, input_ids):
        raise ValueError("no \\x1b[31mluck")
"""


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    """No network, no settings of the caller's shell, a directory of its own."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_VERBOSITY", "error")
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    for name in ("RECON_TRACEBACK", "COLUMNS", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(capsys):
    """Run ``recon audit`` and return its exit code, stdout and stderr."""

    def command(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main(["audit", *(str(argument) for argument in arguments)])
        return end.value.code, *capsys.readouterr()

    return command


@pytest.fixture
def write(tmp_path):
    """``write(name, code)``: put code into a file of the working directory."""

    def into(name, code):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(code), encoding="utf-8")
        return path

    return into


@pytest.fixture
def asked(monkeypatch):
    """Put an audit in place that notes what it is asked, and finds a note."""
    calls = []

    def answer(options, severity):
        found = Finding(rule("RC302"), "a graph", severity, places=("a",))
        environment = Environment(
            "GPT2LMHeadModel", "2", "5", "cpu", torch.float32, None, "sdpa", False,
            False, 1,
        )  # fmt: skip
        return AuditReport(
            target=options["target"],
            model=options["model_name"],
            environment=environment,
            findings=(found,),
            tensors=(Judged("a", "right", "ln_f", "ln_f", (1,), "float32"),),
            runs=("first",),
            strict=options["strict"],
        )

    def audit(function, model, **options):
        options["progress"]("a run", 1, 2)
        returned = function(model, torch.tensor([[1, 2]]))
        calls.append({"model": model, "returned": returned, **options})
        return answer(options, module.severity)

    def audit_captures(tensors, model, **options):
        calls.append({"model": model, "tensors": tensors, **options})
        return answer(options, module.severity)

    module = ModuleType("recon.auditing.session")
    module.audit, module.audit_captures = audit, audit_captures
    module.calls, module.severity = calls, "note"
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


# -- what the command asks of an audit -----------------------------------------


def test_a_function_of_a_file_is_audited_on_the_model_asked_for(run, write, asked):
    write("hooks.py", RIGHT)
    code, out, err = run("hooks.py:capture", "--model", TINY)
    assert (code, err) == (0, "")
    assert out.startswith("CLEAN: 1 note; the tensor is what the name says\n")
    (call,) = asked.calls
    assert list(call["returned"]) == ["h.1.resid_post"]
    assert call["inputs"] is None
    assert (call["target"], call["model_name"]) == ("hooks.py:capture", TINY)
    assert (call["names"], call["effort"], call["strict"]) == ("auto", "default", False)
    assert (dict(call["claims"]), call["ignore"]) == ({}, ())


@pytest.mark.parametrize(
    ("options", "name", "value"),
    [
        (["--quick"], "effort", "quick"),
        (["--thorough"], "effort", "thorough"),
        (["--names", "transformer-lens"], "names", "transformer-lens"),
        (["--ignore", "graph-kept", "--ignore", "rc101"], "ignore", ("RC302", "RC101")),
        (["--claim", "a{l} = h.{l}.ln_1"], "claims", {"a{l}": "h.{l}.ln_1"}),
        (
            ["--claim", "a=b=ln_f", "--claim", "c=wte"],
            "claims",
            {"a=b": "ln_f", "c": "wte"},
        ),
        (["--strict"], "strict", True),
        (["--timeout", "7.5"], "timeout", 7.5),
    ],
)
def test_every_option_reaches_the_audit(run, write, asked, options, name, value):
    write("hooks.py", RIGHT)
    run("hooks.py:capture", "--model", TINY, *options)
    assert asked.calls[0][name] == value


def test_the_vocabularies_to_choose_from_are_those_of_the_audit():
    assert {word.value for word in Names} == set(get_args(vocabulary.Names))


def test_inputs_and_the_way_to_run_reach_the_audit(run, write, asked):
    write("hooks.py", RIGHT)
    write("ids.txt", "1 2 3")
    how = ["--dtype", "float64", "--attn", "eager", "--seed", "3"]
    run("hooks.py:capture", "--model", TINY, "--input-ids", "ids.txt", *how)
    (call,) = asked.calls
    assert call["inputs"]["input_ids"].tolist() == [[1, 2, 3]]
    assert call["model"].dtype == torch.float64
    assert call["model"].config._attn_implementation == "eager"
    other = models.load_model(TINY, seed=3, dtype=torch.float64).model
    assert torch.equal(call["model"].lm_head.weight, other.lm_head.weight)
    run("hooks.py:capture", "--text", "the with statement")
    assert asked.calls[1]["inputs"]["input_ids"].shape[0] == 1
    assert asked.calls[1]["model_name"] == "bundled"


def test_claims_of_a_file_are_read_and_the_command_line_goes_before(run, write, asked):
    write("hooks.py", RIGHT)
    write("c.toml", 'a = "ln_f"\nb.0.c = "wte"\n"layer_{l}" = "h.{l}.ln_1"\n')
    arguments = ("hooks.py:capture", "--model", TINY, "--claims", "c.toml")
    run(*arguments, "--claim", "a=wpe")
    assert asked.calls[0]["claims"] == {
        "a": "wpe",
        "b.0.c": "wte",
        "layer_{l}": "h.{l}.ln_1",
    }


@pytest.mark.parametrize(
    ("severity", "options", "code"),
    [
        ("note", [], 0),
        ("note", ["--strict"], 1),
        ("warning", [], 1),
        ("error", [], 1),
    ],
)
def test_the_exit_code_is_the_verdict(run, write, asked, severity, options, code):
    write("hooks.py", RIGHT)
    asked.severity = severity
    assert run("hooks.py:capture", "--model", TINY, *options)[0] == code


# -- functions -----------------------------------------------------------------


def test_a_function_of_a_module_is_found_from_the_working_directory(run, write, asked):
    write("shop/__init__.py", "")
    write("shop/shelf.py", "WORD = 'shelf'")
    write("shop/till.py", "from .shelf import WORD\n" + textwrap.dedent(RIGHT))
    before = list(sys.path)
    code, _, err = run("shop.till:capture", "--model", TINY)
    assert (code, err) == (0, "")
    assert sys.path == before
    for name in ("shop", "shop.shelf", "shop.till"):
        sys.modules.pop(name, None)


def test_imports_from_the_files_directory_work_when_it_is_imported_and_when_it_runs(
    tmp_path, write
):
    write("deep/early_friend.py", "A = 1")
    write("deep/late_friend.py", "B = 2")
    path = write(
        "deep/hooks.py",
        """
        from early_friend import A

        def capture(model, input_ids):
            from late_friend import B
            return A + B
        """,
    )
    before = list(sys.path), set(sys.modules)
    with load_function(f"{path}:capture") as target:
        assert target.function(None, None) == 3
    assert sys.path == before[0]
    assert set(sys.modules) - before[1] == {"early_friend", "late_friend"}
    for name in ("early_friend", "late_friend"):
        del sys.modules[name]


def test_a_file_hides_no_module_of_its_name(write):
    path = write("json.py", "def capture(model, input_ids):\n    return 'mine'")
    with load_function(f"{path}:capture") as target:
        assert target.function(None, None) == "mine"
        assert sys.modules["json"] is json


def test_file_and_line_of_the_function_are_told(write, tmp_path):
    code = """
        import functools

        def capture(model, input_ids):
            pass

        @functools.lru_cache
        def cached(model, input_ids):
            pass

        half = functools.partial(capture, input_ids=3)

        class Recorder:
            @staticmethod
            def capture(model, input_ids):
                pass

            def __call__(self, model, input_ids):
                pass

        recorder = Recorder()
    """
    write("src/hooks.py", code)
    lines = {}
    for name in ("capture", "cached", "half", "Recorder.capture", "recorder"):
        with load_function(f"src/hooks.py:{name}") as target:
            assert target.file == "src/hooks.py"
            lines[name] = target.line
    assert lines == {
        "capture": 4,
        "cached": 7,
        "half": 4,
        "Recorder.capture": 14,
        "recorder": 18,
    }
    with load_function("json:loads") as target:
        assert Path(target.file) == Path(json.__file__)


def test_dataclasses_in_the_file_are_no_problem(write):
    path = write(
        "hooks.py",
        """
        from __future__ import annotations
        from dataclasses import dataclass, field

        @dataclass
        class Store:
            kept: dict[str, int] = field(default_factory=dict)

        def capture(model, input_ids):
            return Store().kept
        """,
    )
    with load_function(f"{path}:capture") as target:
        assert target.function(None, None) == {}


def test_what_the_code_prints_does_not_mix_with_the_report(run, write, asked):
    write("hooks.py", "print('imported')\n" + textwrap.dedent(RIGHT) + "    print('r')")
    write("hooks.py", "print('imported')\ndef capture(m, i):\n    print('ran')\n")
    code, out, err = run("hooks.py:capture", "--model", TINY, "--json", "-")
    assert code == 0
    assert json.loads(out)["target"] == "hooks.py:capture"
    assert err == "imported\nran\n"


def _bad(name, code):
    def put(write):
        write(name, code)
        return f"{name}:capture"

    return put


BAD_TARGETS = {
    "no function": (lambda w: w("h.py", RIGHT).name, "there is h.py:capture"),
    "no file": (lambda w: "nowhere.py:capture", "nowhere.py: no such file"),
    "no module": (lambda w: "nowhere.to.be:capture", "no module 'nowhere' here"),
    "no submodule": (lambda w: "json.nowhere:capture", "no module 'json.nowhere' here"),
    "a directory": (lambda w: "sub/nowhere:capture", "no module 'sub/nowhere' here"),
    "misspelt": (
        lambda w: f"{w('h.py', RIGHT).name}:captrue",
        "h.py has no 'captrue'; did you mean capture?",
    ),
    "elsewhere": (
        lambda w: f"{w('h.py', RIGHT).name}:zzz",
        "h.py has no 'zzz'; its functions are capture",
    ),
    "empty file": (_bad("h.py", ""), "h.py has no 'capture'; it has no function"),
    "no callable": (
        _bad("h.py", "capture = {}"),
        "h.py:capture is a dict, no function",
    ),
    "raises": (
        _bad("h.py", "import math\n\n\nmath.nothing"),
        "h.py cannot be imported: AttributeError: module 'math' has no attribute "
        "'nothing' (h.py, line 4)",
    ),
    "raises in a function": (
        _bad("h.py", "def f():\n    1 / 0\n\nf()"),
        "h.py cannot be imported: ZeroDivisionError: division by zero (h.py, line 2)",
    ),
    "syntax": (_bad("h.py", "def capture(:\n"), "cannot be imported: SyntaxError: "),
    "exits": (
        _bad("h.py", "import sys\nsys.exit('no \\x1b[2J')"),
        "h.py cannot be imported: SystemExit: no \\x1b[2J (h.py, line 2)",
    ),
    "nul": (_bad("h.py", "x = 1\0"), "h.py cannot be imported: "),
    "missing import": (
        _bad("h.py", "import nothing_like_it"),
        "ModuleNotFoundError: No module named 'nothing_like_it' (h.py, line 1)",
    ),
    "relative import": (
        _bad("h.py", "from . import x"),
        "(h.py, line 1); name it as package.module:FUNCTION",
    ),
    "no Python": (_bad("notes.txt", "hello"), "notes.txt: is no Python file"),
    "nothing": (lambda w: "", "expected FILE.py:FUNCTION"),
    "a word": (lambda w: "capture", "capture: expected FILE.py:FUNCTION"),
    "npy": (lambda w: "captures.npy", "captures.npy: expected FILE.py:FUNCTION"),
    "no captures": (lambda w: "captures.npz", "captures.npz: no such file"),
}


@pytest.mark.parametrize("case", BAD_TARGETS)
def test_a_bad_target_is_one_line_and_exit_code_2(run, write, asked, case):
    target, words = BAD_TARGETS[case]
    code, out, err = run(target(write), "--model", TINY)
    assert (code, out) == (2, "")
    assert err.startswith("recon: ")
    assert words in err
    assert len(err.splitlines()) == 1
    assert "\x1b" not in err
    assert not asked.calls


BAD_OPTIONS = {
    "two inputs": (["--text", "a", "--input-ids", "b"], "one of --text and --input"),
    "two efforts": (["--quick", "--thorough"], "one of --quick and --thorough"),
    "no such rule": (["--ignore", "RC999"], "unknown rule 'RC999'"),
    "no such names": (["--names", "keras"], "'keras' is not one of"),
    "claim of nothing": (["--claim", "layer"], "--claim 'layer': expected NAME=SITE"),
    "claim of no site": (["--claim", "layer="], "expected NAME=SITE"),
    "two claims": (
        ["--claim", "a=wte", "--claim", "a=wpe"],
        "'a' is claimed to be two",
    ),
    "no claims": (["--claims", "no.toml"], "--claims no.toml: No such file"),
    "claims no TOML": (["--claims", "bad.toml"], "--claims bad.toml: no TOML"),
    "claims no words": (
        ["--claims", "int.toml"],
        "int.toml: a.b is 3; expected a site",
    ),
    "claims no text": (["--claims", "bin.toml"], "--claims bin.toml: no TOML"),
    "json nowhere": (
        ["--json", "no/a.json"],
        "--json no/a.json: there is no directory",
    ),
    "junit nowhere": (
        ["--junit", "no/a.xml"],
        "--junit no/a.xml: there is no directory",
    ),
    "sarif a directory": (["--sarif", "."], "--sarif .: is a directory"),
    "two to stdout": (["--json", "-", "--sarif", "-"], "--json and --sarif both write"),
    "two to one file": (["--junit", "a", "--sarif", "a"], "both write to a;"),
    "no such model": (["--model", "random:huge"], "random:huge is unknown"),
    "no such ids": (["--input-ids", "no.npy"], "no.npy: no such file"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_usage_is_one_line_and_exit_code_2(run, write, asked, tmp_path, case):
    write("hooks.py", RIGHT)
    write("bad.toml", "layer_{l} = 'ln_f'")
    write("int.toml", "a.b = 3")
    (tmp_path / "bin.toml").write_bytes(b"\xff\xfe")
    options, words = BAD_OPTIONS[case]
    model = [] if "--model" in options else ["--model", TINY]
    code, out, err = run("hooks.py:capture", *model, *options)
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.splitlines()) == 1
    assert not asked.calls


# -- files of captures ---------------------------------------------------------


def saved(path, tensors):
    """Save tensors in the format that the file's suffix names."""
    if path.suffix == ".npz":
        np.savez(path, **{name: t.numpy() for name, t in tensors.items()})
    elif path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


@pytest.mark.parametrize("kind", ["npz", "safetensors", "pt", "pth", "PT"])
def test_captures_are_audited_on_the_inputs_given(run, write, asked, tmp_path, kind):
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b.c": torch.zeros(0)}
    path = saved(tmp_path / f"captures.{kind}", tensors)
    write("ids.json", "[[1, 2, 3]]")
    arguments = (path.name, "--model", TINY, "--input-ids", "ids.json", "--strict")
    code, out, err = run(*arguments, "--ignore", "RC101", "--claim", "a=ln_f")
    assert (code, err) == (1, "")
    assert "FINDINGS" in out
    (call,) = asked.calls
    assert list(call["tensors"]) == ["a", "b.c"]
    assert all(torch.equal(call["tensors"][name], tensors[name]) for name in tensors)
    assert call["inputs"]["input_ids"].tolist() == [[1, 2, 3]]
    assert (call["claims"], call["ignore"]) == ({"a": "ln_f"}, ("RC101",))
    assert (call["target"], call["strict"]) == (path.name, True)


def test_inputs_that_were_saved_along_are_used(run, asked, tmp_path):
    ids, mask = torch.tensor([1, 2, 3]), torch.ones(1, 3, dtype=torch.long)
    tensors = {"a": torch.zeros(3), "input_ids": ids, "attention_mask": mask}
    saved(tmp_path / "captures.pt", tensors)
    assert run("captures.pt", "--model", TINY)[0] == 0
    (call,) = asked.calls
    assert list(call["tensors"]) == ["a"]
    assert call["inputs"]["input_ids"].tolist() == [[1, 2, 3]]
    assert call["inputs"]["attention_mask"].tolist() == [[1, 1, 1]]


@pytest.mark.parametrize("ids", [torch.zeros(1, 3), torch.zeros(1, 1, 1).long()])
def test_inputs_that_are_no_token_ids_are_refused(ids):
    with pytest.raises(UsageError, match="input_ids: expected integers of shape"):
        take_inputs({"a": torch.zeros(1), "input_ids": ids})


def test_captures_of_unknown_inputs_are_refused(run, asked, tmp_path):
    saved(tmp_path / "captures.pt", {"a": torch.zeros(3)})
    code, _, err = run("captures.pt", "--model", TINY)
    assert code == 2
    assert "which inputs are these captures of?" in err
    assert not asked.calls


def test_captures_are_not_run_so_that_no_effort_is_chosen(run, asked, tmp_path):
    saved(tmp_path / "captures.pt", {"a": torch.zeros(3)})
    code, _, err = run("captures.pt", "--model", TINY, "--quick")
    assert code == 2
    assert "captures are not run" in err


def test_what_is_nested_is_left_to_the_audit(tmp_path):
    nested = {"a": [torch.zeros(1), {"b": torch.ones(1)}], 3: torch.ones(2)}
    found = load_tensors(saved(tmp_path / "x.pt", nested))
    assert list(found) == ["a", "3"]
    assert found["a"][1]["b"].item() == 1
    listed = load_tensors(saved(tmp_path / "states.pt", [torch.zeros(1)]))
    assert list(listed) == ["states"]
    alone = load_tensors(saved(tmp_path / "probe.pt", torch.ones(3)))
    assert alone["probe"].tolist() == [1, 1, 1]


def test_arrays_of_another_byte_order_and_layout_are_read(tmp_path):
    array = np.arange(6.0).reshape(2, 3)
    np.savez(tmp_path / "x.npz", a=array.astype(">f8"), b=array.T, c=np.float32(2))
    found = load_tensors(tmp_path / "x.npz")
    assert torch.equal(found["a"], torch.from_numpy(array))
    assert torch.equal(found["b"], torch.from_numpy(array).T)
    assert found["c"].shape == ()


def test_a_trace_that_recon_saved_is_read_by_site(tmp_path):
    model = models.load_model(TINY).model
    with torch.no_grad(), recon.capture(model, sites="h.1.*") as recorder:
        model(torch.arange(5)[None])
    recorder.trace.save(tmp_path / "run.safetensors")
    found = load_tensors(tmp_path / "run.safetensors")
    assert "h.1.resid_post" in found
    assert torch.equal(found["h.1.mlp.pre"], recorder.trace["h.1.mlp.pre"])


def _truncated(path):
    saved(path, {"a": torch.zeros(100)})
    path.write_bytes(path.read_bytes()[:-50])


def _text(path):
    path.write_text("no tensors")


def _objects(path):
    np.savez(path, a=np.array([{}, "x"], dtype=object))


BAD_FILES = {
    "x.pt text": (_text, "x.pt: "),
    "x.npz text": (_text, "x.npz: cannot be read as captures"),
    "x.safetensors text": (_text, "x.safetensors: cannot be read as captures"),
    "x.pt truncated": (_truncated, "x.pt: cannot be read as captures"),
    "x.npz truncated": (_truncated, "x.npz: cannot be read as captures"),
    "x.safetensors truncated": (_truncated, "x.safetensors: cannot be read"),
    "x.pt object": (lambda p: torch.save(Path("x"), p), "x.pt: refused"),
    "x.pt number": (lambda p: torch.save(3, p), "expected a mapping of tensors, found"),
    "x.pt empty": (lambda p: torch.save({}, p), "x.pt: holds no tensor"),
    "x.pt words": (lambda p: torch.save({"a": ["b"]}, p), "x.pt: holds no tensor"),
    "x.npz objects": (_objects, "x.npz: cannot be read as captures: Object arrays"),
    "x.npz words": (
        lambda p: np.savez(p, a=np.array(["b"])),
        "x.npz: 'a' holds <U1, no numbers",
    ),
    "x.npz empty": (lambda p: np.savez(p), "x.npz: holds no tensor"),
    "x.pt directory": (lambda p: p.mkdir(), "x.pt: no such file"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_of_captures_is_one_line_and_exit_code_2(run, asked, tmp_path, case):
    make, words = BAD_FILES[case]
    make(tmp_path / case.split()[0])
    code, out, err = run(case.split()[0], "--model", TINY, "--text", "a")
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.splitlines()) == 1
    assert not asked.calls


def test_a_file_of_captures_runs_no_code_of_others(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path(tmp_path / "ran").touch, ())

    torch.save({"a": torch.zeros(1), "b": Evil()}, tmp_path / "x.pt")
    with pytest.raises(UsageError, match="refused"):
        load_tensors(tmp_path / "x.pt")
    assert not (tmp_path / "ran").exists()


# -- formats -------------------------------------------------------------------


def test_all_formats_are_written_besides_the_page(run, write, asked, tmp_path):
    write("hooks.py", RIGHT)
    formats = ["--json", "a.json", "--junit", "a.xml", "--sarif", "a.sarif"]
    code, out, _ = run("hooks.py:capture", "--model", TINY, *formats)
    assert code == 0
    assert out.startswith("CLEAN")
    document = json.loads((tmp_path / "a.json").read_text("utf-8"))
    jsonschema.validate(document, json.loads(schema_text("audit")))
    assert (document["file"], document["line"]) == ("hooks.py", 5)
    case = ElementTree.parse(tmp_path / "a.xml").find(".//testcase")
    assert (case.get("file"), case.get("line")) == ("hooks.py", "5")
    (result,) = json.loads((tmp_path / "a.sarif").read_text())["runs"][0]["results"]
    assert result["locations"][0]["physicalLocation"]["region"] == {"startLine": 5}


@pytest.mark.parametrize("option", ["--json", "--junit", "--sarif"])
def test_a_format_to_stdout_is_all_there_is(run, write, asked, option):
    write("hooks.py", RIGHT)
    code, out, err = run("hooks.py:capture", "--model", TINY, option, "-")
    assert (code, err) == (0, "")
    if option == "--junit":
        assert ElementTree.fromstring(out).get("name") == "recon audit"
    else:
        assert json.loads(out)


def test_a_file_of_captures_is_the_place_of_its_findings(run, asked, tmp_path):
    saved(tmp_path / "captures.pt", {"a": torch.zeros(3)})
    out = run("captures.pt", "--model", TINY, "--text", "a", "--sarif", "-")[1]
    (result,) = json.loads(out)["runs"][0]["results"]
    (location,) = result["locations"]
    assert location["physicalLocation"] == {"artifactLocation": {"uri": "captures.pt"}}


def test_help_imports_neither_torch_nor_the_audit():
    program = (
        "import sys; from recon.cli import main\n"
        "try: main(['audit', '--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr


# -- from end to end -----------------------------------------------------------


def test_right_code_is_clean_with_exit_code_0(run, write):
    write("hooks.py", RIGHT)
    code, out, err = run("hooks.py:capture", "--model", TINY)
    assert (code, err) == (0, "")
    assert out.startswith("CLEAN: ")


def test_wrong_code_is_found_and_named_with_exit_code_1(run, write):
    write("hooks.py", WRONG)
    code, out, err = run("hooks.py:capture", "--model", TINY)
    assert (code, err) == (1, "")
    assert out.startswith("FINDINGS: ")
    assert "error RC101 wrong-site" in out
    assert "recon explain RC101" in out


def test_a_claim_makes_a_right_name_wrong_and_a_wrong_one_right(run, write):
    write("hooks.py", RIGHT.replace("h.1.resid_post", "mine"))
    arguments = ("hooks.py:capture", "--model", TINY, "--claim")
    assert run(*arguments, "mine=h.1.resid_post")[0] == 0
    assert run(*arguments, "mine=h.1.ln_1")[0] == 1


def test_an_ignored_rule_is_no_finding(run, write):
    write("hooks.py", WRONG)
    arguments = ("hooks.py:capture", "--model", TINY, "--quick")
    document = json.loads(run(*arguments, "--json", "-")[1])
    codes = {found["code"] for found in document["findings"] if found["counts"]}
    ignored = [word for code in codes for word in ("--ignore", code)]
    code, out, _ = run(*arguments, *ignored, "--json", "-")
    assert code == 0
    assert json.loads(out)["ignored"] >= 1


def test_code_that_raises_is_a_finding_with_its_traceback(run, write):
    write("hooks.py", RAISES)
    code, out, err = run("hooks.py:capture", "--model", TINY, "--json", "-")
    assert (code, err) == (1, "")
    document = json.loads(out)
    found = next(f for f in document["findings"] if f["code"] == "RC403")
    assert 'hooks.py", line 3, in capture' in found["traceback"]
    assert "no \x1b[31mluck" in found["traceback"]


def test_captures_of_a_run_are_judged_without_code(run, tmp_path, write):
    model = models.load_model(TINY).model
    ids = torch.arange(1, 10)[None]
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states
    good = {f"hidden_states.{i}": state.clone() for i, state in enumerate(states)}
    write("ids.json", json.dumps(ids.tolist()))
    arguments = ("x.safetensors", "--model", TINY, "--input-ids", "ids.json")
    saved(tmp_path / "x.safetensors", good)
    assert run(*arguments)[0] == 0
    swapped = good | {"hidden_states.1": good["hidden_states.2"].clone()}
    saved(tmp_path / "x.safetensors", swapped)
    code, out, _ = run(*arguments)
    assert code == 1
    assert "hidden_states.1" in out


@pytest.mark.parametrize("format_", ["--json", "--junit", "--sarif"])
def test_hostile_names_break_no_format(run, write, format_):
    names = ["]]>", "a\nb", "[red]x", "\x1b[2J", "😀", "\ud800", "", "x" * 300]
    code = RIGHT.replace(
        "return kept", f"return {{name: kept['h.1.resid_post'] for name in {names!r}}}"
    )
    write("hooks.py", code)
    code, out, err = run("hooks.py:capture", "--model", TINY, "--quick", format_, "-")
    assert code in (0, 1)
    assert err == ""
    if format_ == "--junit":
        assert ElementTree.fromstring(out).get("name") == "recon audit"
    else:
        json.loads(out)
    page = run("hooks.py:capture", "--model", TINY, "--quick")[1]
    assert "\x1b" not in page
    assert "\\ud800" in page


# -- code that does not end, or ends too much ------------------------------------


def test_code_that_never_ends_is_a_finding_with_where_it_stood(run, write, tmp_path):
    write(
        "hooks.py",
        """
        def capture(model, input_ids):
            while True:
                model(input_ids)
        """,
    )
    options = ("--timeout", "1", "--json", "found.json")
    code, out, _ = run("hooks.py:capture", "--model", TINY, *options)
    assert code == 1
    assert "RC406 never-ends: the code had not ended after 1 s; it stood at" in out
    (found,) = json.loads((tmp_path / "found.json").read_text("utf-8"))["findings"]
    assert "hooks.py" in found["traceback"]


def test_an_import_that_never_ends_is_bad_input(run, write, asked):
    write("hooks.py", "while True:\n    pass\n")
    code, out, err = run("hooks.py:capture", "--timeout", "0.5")
    assert (code, out) == (2, "")
    assert "hooks.py cannot be imported: it had not ended after 0.5 s" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("timeout", ["0", "-3", "nan"])
def test_a_timeout_that_is_no_time_is_refused(run, write, asked, timeout):
    write("hooks.py", RIGHT)
    code, _, err = run("hooks.py:capture", "--timeout", timeout)
    assert (code, asked.calls) == (2, [])
    assert "expected seconds above 0" in err


def test_captures_are_not_run_so_that_they_have_no_timeout(run, asked, tmp_path):
    save_file({"ln_f": torch.zeros(1, 2, 3)}, tmp_path / "captures.safetensors")
    code, _, err = run("captures.safetensors", "--timeout", "3")
    assert (code, asked.calls) == (2, [])
    assert "captures are not run" in err


def test_code_that_leaves_and_keeps_the_process_does_neither(write, tmp_path):
    """A real process: what children print is no report, and threads do not hold it."""
    write(
        "hooks.py",
        """
        import os, subprocess, threading
        import torch

        def capture(model, input_ids):
            threading.Thread(target=threading.Event().wait).start()
            os.system("echo child")
            with torch.no_grad():
                return {"logits": model(input_ids).logits}

        def leave(model, input_ids):
            os._exit(0)
        """,
    )

    def audit(function):
        command = (sys.executable, "-m", "recon", "audit", f"hooks.py:{function}")
        options = ("--model", TINY, "--quick", "--json", "-")
        return subprocess.run(
            [*command, *options],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    kept, left = audit("capture"), audit("leave")
    assert (kept.returncode, left.returncode) == (0, 1)
    assert "child" in kept.stderr
    assert json.loads(kept.stdout)["verdict"] == "clean"
    assert [one["code"] for one in json.loads(left.stdout)["findings"]] == ["RC403"]
