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


@pytest.fixture
def results(tmp_path):
    """Results as `make bench` leaves them, of two ratios."""
    ratios = [
        Ratio("bare", 0.5, (0.4, 0.6), 1.0, 1.0, 1.0),
        Ratio("recon", 0.6, (0.5, 0.7), 1.2, 1.1, 1.3),
    ]
    kept = Kept()
    showing.show("4 blocks", ratios, kept)
    showing.keep(kept, held=[200], needed=[100], sizes=[7])
    run = {
        "machine_info": {"cpu": {"brand_raw": "A CPU"}},
        "datetime": "2026-11-24T14:00:00",
        "benchmarks": [{"extra_info": kept.extra_info}, {"extra_info": {}}],
    }
    file = tmp_path / "results.json"
    file.write_text(json.dumps(run), encoding="utf-8")
    return file


def test_the_page_says_what_was_measured_and_on_what(results, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmarks, "PAGE", tmp_path / "docs" / "benchmarks.md")
    (tmp_path / "docs").mkdir()
    benchmarks.main([results])
    page = (tmp_path / "docs" / "benchmarks.md").read_text("utf-8")
    assert page.count("\n## ") == 1
    assert "| recon | 600.00 | 1.200 | 1.100 - 1.300 |" in page
    assert "| 7 | 200 | 2.000 |" in page
    (where,) = [line for line in page.splitlines() if line.startswith("torch ")]
    assert f"threads of {os.cpu_count()} CPUs" in where
    assert where.endswith("; A CPU, 2026-11-24")
    assert (tmp_path / "docs" / "benchmarks" / "0.svg").stat().st_size > 1000


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
