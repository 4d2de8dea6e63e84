"""The pytest plugin, as its users run it."""

import json
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import recon.auditing.session
import recon.baseline.checking
import recon.profiling.leaks
import recon.profiling.session
import recon.report.audit
import recon.report.baseline
import recon.report.terminal  # noqa: F401 - imported once, not anew in every run
from recon.baseline import files

pytest_plugins = ["pytester"]

INSTALLED = "recon" in {point.name for point in entry_points(group="pytest11")}
PLUGIN = [] if INSTALLED else ["-p", "recon.pytest_plugin"]
TOP = """
import pytest
import torch
from recon.models import load_model

torch.set_num_threads(1)
IDS = torch.tensor([[5, 17, 300, 2999, 5]])
KEPT = []


@pytest.fixture
def model():
    return load_model("random:tiny").model


def wrong(model):
    model.transformer.h[1].attn.c_proj.register_forward_pre_hook(
        lambda module, args: (args[0] * 1.5, *args[1:])
    )
    return model
"""


@pytest.fixture
def run(pytester, monkeypatch):
    """Run pytest on some tests, in this process."""
    # It is no worker, even where these tests are run by one.
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):
        monkeypatch.delenv(name, raising=False)

    def with_tests(tests, *options, process=False):
        pytester.makepyfile(test_it=TOP + tests)
        start = (
            pytester.runpytest_subprocess if process else pytester.runpytest_inprocess
        )
        return start(*PLUGIN, "-p", "no:cacheprovider", *options)

    return with_tests


def text(result):
    return result.stdout.str()


def test_the_plugin_imports_neither_torch_nor_rich():
    code = (
        "import sys, recon.pytest_plugin\n"
        "print([m for m in ('torch', 'transformers', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_verify_passes_a_sound_run_and_shows_what_is_wrong_with_another(run):
    result = run(
        """
def test_sound(recon, model):
    assert recon.verify(model, IDS).verdict == "reconciled"

def test_wrong(recon, model):
    recon.verify(wrong(model), IDS, levels=["certify"])
"""
    )
    result.assert_outcomes(passed=1, failed=1)
    assert "- recon verify -" in text(result)
    assert "DIVERGED" in text(result)
    assert "h.1.attn.z" in text(result)


def test_audit_passes_a_right_function_and_shows_the_findings_of_another(run):
    result = run(
        """
def capture(name):
    def function(model, input_ids):
        kept = {}
        block = model.transformer.h[1]
        handle = block.register_forward_hook(
            lambda module, args, output: kept.update({name: output})
        )
        with torch.no_grad():
            model(input_ids)
        handle.remove()
        return kept
    return function

def test_right(recon, model):
    recon.audit(capture("h.1.resid_post"), model, effort="quick", ignore=["RC301"])

def test_wrong(recon, model):
    recon.audit(capture("h.1.mlp_out"), model, effort="quick")
"""
    )
    assert "RC101" in text(result)
    assert "- recon audit -" in text(result)
    assert result.parseoutcomes()["failed"] == 1


BASELINE = """
def test_baseline(recon, model):
    report = recon.baseline("tiny", model, input_ids=IDS)
    assert report is None or report.verdict in ("equal", "rounding", "changed")
"""
CHANGED = BASELINE.replace("model, input", "wrong(model), input")
SCALED = BASELINE.replace(
    "report = ", "model.transformer.h[1].attn.scaling *= 1.01\n    report = "
)


def test_a_baseline_that_is_not_there_is_no_pass(run, pytester):
    result = run(BASELINE)
    result.assert_outcomes(failed=1)
    assert "record it with --recon-update-baselines" in text(result)
    assert not (pytester.path / "baselines").exists()


@pytest.mark.parametrize("ini", [False, True])
def test_baselines_are_recorded_checked_and_accepted(run, pytester, ini):
    update = (
        ["-o", "recon_update_baselines=true"] if ini else ["--recon-update-baselines"]
    )
    file = pytester.path / "baselines" / "tiny.json"
    result = run(BASELINE, *update)
    result.assert_outcomes(passed=1)
    assert "recon baselines accepted" in text(result)
    assert "tiny.json: recorded" in text(result)
    first = file.read_bytes()
    run(BASELINE).assert_outcomes(passed=1)
    result = run(SCALED)
    result.assert_outcomes(failed=1)
    assert "- recon baseline -" in text(result)
    assert "RB101 site-changed: h.1.attn.z" in text(result)
    assert file.read_bytes() == first
    result = run(SCALED, *update)
    result.assert_outcomes(passed=1)
    assert "tiny.json: h.1.attn.z" in text(result)
    run(SCALED).assert_outcomes(passed=1)
    result = run(SCALED, *update)
    assert "recon baselines accepted" not in text(result)


def test_an_update_does_not_accept_a_run_that_is_wrong_by_itself(run, pytester):
    run(CHANGED, "--recon-update-baselines").assert_outcomes(failed=1)
    assert not (pytester.path / "baselines" / "tiny.json").exists()
    run(BASELINE, "--recon-update-baselines").assert_outcomes(passed=1)
    first = (pytester.path / "baselines" / "tiny.json").read_bytes()
    run(CHANGED, "--recon-update-baselines").assert_outcomes(failed=1)
    assert (pytester.path / "baselines" / "tiny.json").read_bytes() == first


@pytest.mark.parametrize("ini", [False, True])
def test_baselines_may_be_elsewhere(run, pytester, ini):
    place = (
        ["-o", "recon_baselines=else/where"]
        if ini
        else ["--recon-baselines=else/where"]
    )
    run(BASELINE, *place, "--recon-update-baselines").assert_outcomes(passed=1)
    assert files.read(pytester.path / "else/where/tiny.json").sites
    run(BASELINE, *place).assert_outcomes(passed=1)


def test_a_name_serves_one_test_and_is_a_plain_name(run):
    result = run(
        BASELINE
        + """
def test_again(recon, model):
    recon.baseline("tiny", model, input_ids=IDS)

def test_elsewhere(recon, model):
    recon.baseline("../tiny", model, input_ids=IDS)
""",
        "--recon-update-baselines",
    )
    result.assert_outcomes(passed=1, failed=2)
    assert "is that of test_it.py::test_baseline" in text(result)
    assert "expected a name of letters" in text(result)


LEAKS = """
MODEL = load_model("random:tiny").model

{marker}
def test_hook():
    MODEL.transformer.h[0].register_forward_hook(lambda *seen: None)

{marker}
def test_tensor():
    handle = MODEL.transformer.h[1].register_forward_hook(
        lambda module, args, output: KEPT.append(output)
    )
    MODEL(IDS)
    handle.remove()

{marker}
def test_clean(model):
    import recon as library
    with library.capture(model) as recorder:
        model(IDS)
    assert recorder.trace.nbytes
"""
MARKED = LEAKS.replace("{marker}", "@pytest.mark.recon_no_leaks")
PLAIN = LEAKS.replace("{marker}", "")


@pytest.mark.parametrize(
    ("tests", "options"),
    [
        (MARKED, []),
        (PLAIN, ["--recon-no-leaks"]),
        (PLAIN, ["-o", "recon_no_leaks=true"]),
    ],
)
def test_what_stays_after_a_test_is_an_error_of_it(run, young, tests, options):
    result = run(tests, *options)
    result.assert_outcomes(passed=3, errors=2)
    assert "ERROR at teardown of test_hook" in text(result)
    assert "ERROR at teardown of test_tensor" in text(result)
    assert "- recon leaks -" in text(result)
    assert "KEPT" in text(result)


def test_a_hook_on_a_model_that_goes_with_its_fixture_is_told(run):
    result = run(
        """
def attach(model):
    return model.transformer.h[0].register_forward_hook(lambda *seen: None)

@pytest.fixture
def hooked(model):
    with attach(model):
        yield model

@pytest.mark.recon_no_leaks
def test_leaves_one(model):
    assert attach(model)

@pytest.mark.recon_no_leaks
def test_takes_it_off(model, request):
    request.addfinalizer(attach(model).remove)

@pytest.mark.recon_no_leaks
def test_does_not_see_its_fixtures(hooked):
    assert hooked.transformer.h[0]._forward_hooks
"""
    )
    result.assert_outcomes(passed=3, errors=1)
    assert "ERROR at teardown of test_leaves_one" in text(result)
    assert "1 hook: GPT2LMHeadModel" in text(result)


def test_without_being_asked_nothing_is_watched(run):
    run(PLAIN).assert_outcomes(passed=3)


def test_a_failing_test_is_told_once(run):
    result = run(
        """
@pytest.mark.recon_no_leaks
def test_fails(model):
    kept = model(IDS)
    assert not kept
"""
    )
    result.assert_outcomes(failed=1)


def test_tensors_of_fixtures_are_no_leaks(run):
    result = run(
        """
@pytest.fixture
def output(model):
    return model(IDS)

@pytest.fixture(scope="session")
def shared():
    return load_model("random:tiny").model(IDS)

@pytest.mark.recon_no_leaks
def test_uses(output, shared):
    kept = output.logits + shared.logits
    assert kept.shape
"""
    )
    result.assert_outcomes(passed=1)


BENCHMARK = """
@pytest.mark.recon_no_leaks
def test_cost(recon, model, benchmark):
    found = recon.profile(model, inputs={"input_ids": IDS}, rounds=4, leak_rounds=4)
    benchmark(lambda: model(IDS))
    assert benchmark.extra_info["recon_kept_bytes"] == found.memory.held > 0
"""


def test_profile_gives_a_benchmark_its_overhead_and_bytes(run, pytester):
    result = run(
        BENCHMARK,
        "--benchmark-json=out.json",
        "--benchmark-max-time=0.01",
        "--benchmark-min-rounds=1",
    )
    result.assert_outcomes(passed=1)
    (one,) = json.loads((pytester.path / "out.json").read_text("utf-8"))["benchmarks"]
    assert one["extra_info"]["recon_overhead"] > 0
    assert one["extra_info"]["recon_kept_bytes"] > 0


@pytest.mark.parametrize(
    ("leaks", "options"), [(MARKED, []), (PLAIN, ["--recon-no-leaks"])]
)
def test_everything_works_under_xdist(run, pytester, leaks, options):
    # There pytest-benchmark calls the function once, and measures nothing.
    tests = BASELINE + BENCHMARK + leaks
    options = ["-n", "2", "--recon-update-baselines", *options]
    result = run(tests, *options, process=True)
    result.assert_outcomes(passed=5, errors=2)
    assert "ERROR at teardown of test_hook" in text(result)
    assert "ERROR at teardown of test_tensor" in text(result)
    assert "tiny.json: recorded" in text(result)
    assert "- recon leaks -" in text(result)
    assert Path(pytester.path / "baselines/tiny.json").exists()


def test_the_marker_is_declared(run):
    assert "recon_no_leaks" in text(run("", "--markers"))
    run(MARKED, "--strict-markers", "--collect-only").assert_outcomes()
