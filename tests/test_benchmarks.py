"""The page of the benchmarks, and what its figures are said to be measured on."""

import importlib.util
import json
import os
import time

import pytest

from bench import peers, showing
from recon.profiling.timing import Ratio
from tools import benchmarks


class Kept:
    """The fixture of pytest-benchmark, as far as benches write to it."""

    def __init__(self):
        self.extra_info = {}


NAME = "bench/bench_capture.py::test_what_capture_adds[4 blocks, T=32]"
STREAMING = "bench/bench_checking.py::test_what_streaming_keeps"


def run_of(name, day, extra):
    """Results as pytest-benchmark leaves them, of one benchmark that kept figures."""
    return {
        "machine_info": {"cpu": {"brand_raw": "A CPU"}},
        "datetime": f"{day}T14:00:00",
        "benchmarks": [
            {"fullname": name, "extra_info": extra},
            {"fullname": "bench/bench_capture.py::test_other", "extra_info": {}},
        ],
    }


@pytest.fixture
def results(tmp_path):
    """Results of two ratios and one size, in a file."""

    def write(day, seconds):
        ratios = [
            Ratio("bare", 0.5, (0.4, 0.6), 1.0, 1.0, 1.0),
            Ratio("recon", seconds, (0.5, 0.7), seconds / 0.5, 1.1, 1.3),
        ]
        kept = Kept()
        showing.show("4 blocks", ratios, kept)
        showing.keep(kept, held=[200], needed=[100], sizes=[7])
        file = tmp_path / f"{day}.json"
        run = run_of(NAME, day, kept.extra_info)
        file.write_text(json.dumps(run), encoding="utf-8")
        return file

    return write


@pytest.fixture
def streaming(tmp_path):
    kept = Kept()
    showing.keep(kept, title="streamed", sizes=[12], held=[100], whole=[2000])
    file = tmp_path / "streaming.json"
    run = run_of(STREAMING, "2026-11-23", kept.extra_info)
    file.write_text(json.dumps(run), encoding="utf-8")
    return file


@pytest.fixture
def page(monkeypatch, tmp_path):
    """The page and its folder, elsewhere."""
    page = tmp_path / "docs" / "benchmarks.md"
    page.parent.mkdir()
    monkeypatch.setattr(benchmarks, "PAGE", page)
    return page


def test_the_page_says_what_was_measured_and_on_what(results, page):
    benchmarks.main([results("2026-11-24", 0.6)])
    text = page.read_text("utf-8")
    assert text.count("\n### ") == 1
    assert "\n## What does capture add to a forward pass?\n" in text
    assert "| recon | 600.00 | 1.200 | 1.100 - 1.300 |" in text
    assert "| 7 | 200 | 2.000 |" in text
    (where,) = [line for line in text.splitlines() if line.startswith("torch ")]
    assert f"threads of {os.cpu_count()} CPUs" in where
    assert where.endswith("; A CPU, 2026-11-24")
    (plot,) = (page.parent / "benchmarks").glob("*.svg")
    assert plot.stat().st_size > 1000
    assert f"(benchmarks/{plot.name})" in text


def test_bytes_without_ratios_have_a_table_and_no_plot(streaming, page):
    benchmarks.main([streaming])
    assert "| 12 | 100 | 0.050 |" in page.read_text("utf-8")
    assert not [*(page.parent / "benchmarks").glob("*.svg")]


def test_a_later_run_replaces_only_what_it_measured(results, streaming, page):
    benchmarks.main([results("2026-11-22", 0.6), streaming])
    kept = page.parent / "benchmarks" / "results.json"
    benchmarks.main([kept, results("2026-11-24", 0.7)])
    text = page.read_text("utf-8")
    assert "| recon | 700.00 |" in text
    assert "| recon | 600.00 |" not in text
    assert "; A CPU, 2026-11-24\n" in text
    assert "; A CPU, 2026-11-23\n" in text
    assert "2026-11-22" not in text


def test_the_page_of_the_project_is_made_from_the_figures_beside_it(page, monkeypatch):
    monkeypatch.setattr(benchmarks, "draw", lambda extra, plot: None)
    made = benchmarks.ROOT / "docs" / "benchmarks.md"
    benchmarks.main([made.parent / "benchmarks" / "results.json"])
    assert page.read_text("utf-8") == made.read_text("utf-8")


@pytest.mark.parametrize(
    ("own", "others", "words"), [(1.0, 0.0, "took 0%"), (0.0, 1.0, "took 50%")]
)
def test_what_others_took_of_two_cpus_is_told_from_our_own(
    own, others, words, monkeypatch
):
    clock = {"busy": 100.0, "own": 7.0, "time": 50.0}
    monkeypatch.setattr(showing, "busy", lambda: clock["busy"])
    monkeypatch.setattr(time, "process_time", lambda: clock["own"])
    monkeypatch.setattr(time, "time", lambda: clock["time"])
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    sharing = showing.Sharing()
    clock.update(busy=100 + 10 * (own + others), own=7 + 10 * own, time=60.0)
    assert words in sharing.words()


def test_where_the_system_does_not_tell_nothing_is_claimed(monkeypatch, tmp_path):
    monkeypatch.setattr(showing, "STAT", tmp_path / "none")
    assert showing.busy() is None
    assert showing.Sharing().words() == "shared or not is not known"


def test_a_library_that_is_not_installed_is_skipped_by_name(monkeypatch, capsys):
    there = {"json"}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: name if name in there else None
    )
    assert [*peers.installed(["torchlens", "json"])] == ["json"]
    assert capsys.readouterr().out == "\ntorchlens is skipped: it is not installed\n"
    assert [*peers.validation(None, None)] == []
