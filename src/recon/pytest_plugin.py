"""The pytest plugin: a fixture ``recon``, and a watch for hooks and tensors that stay.

It is loaded in every run of pytest, so nothing heavy is imported before it is used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from torch import Tensor, nn

    from recon.auditing.findings import AuditReport
    from recon.baseline.findings import BaselineReport
    from recon.profiling.results import Profile
    from recon.results import Report

MARKER = "recon_no_leaks"
_WIDTH = 100
_BEFORE = pytest.StashKey[Any]()
_SECTIONS = pytest.StashKey[list[tuple[str, str]]]()
_USED = pytest.StashKey[dict[Path, str]]()
_ACCEPTED = "recon_baseline"


# -- options ---------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options, each with its twin in the ini file."""
    group = parser.getgroup("recon")
    group.addoption(
        "--recon-no-leaks",
        action="store_true",
        help="fail a test after which hooks or captured tensors stay",
    )
    group.addoption(
        "--recon-update-baselines",
        action="store_true",
        help="record baselines anew where they moved, and say which",
    )
    group.addoption(
        "--recon-baselines",
        metavar="DIR",
        help="where baselines are; default: a folder baselines beside the test file",
    )
    parser.addini("recon_no_leaks", "as --recon-no-leaks", type="bool")
    parser.addini("recon_update_baselines", "as --recon-update-baselines", type="bool")
    parser.addini("recon_baselines", "as --recon-baselines", default="")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line(
        "markers", f"{MARKER}: fail if hooks or captured tensors stay after the test"
    )
    config.stash[_USED] = {}


def _asked(config: pytest.Config, name: str) -> Any:
    return config.getoption(f"--{name.replace('_', '-')}") or config.getini(name)


# -- the fixture -----------------------------------------------------------------


class Recon:
    """What the fixture ``recon`` offers; each method raises where something is wrong.

    What was found is shown, laid out, in a section of its own in pytest's report.
    """

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._request = request

    def verify(
        self, model: nn.Module, input_ids: Tensor | None = None, **options: Any
    ) -> Report:
        """Verify captures as ``recon.verify`` does; the report is one that holds.

        Raises ReconciliationError, naming every failing site.
        """
        __tracebackhide__ = True
        from recon.verification import verify

        report = verify(model, input_ids, **options)
        if report.verdict != "reconciled":
            from recon.report.terminal import render

            name = type(model).__name__
            self._show(
                "recon verify",
                lambda console: render(
                    report, model=name, source="inputs of the test", console=console
                ),
            )
        return report.check()

    def audit(
        self, function: Callable[..., Any], model: nn.Module, **options: Any
    ) -> AuditReport:
        """Audit a function that captures, as ``recon.audit`` does.

        Raises AuditError, naming every finding that counts.
        """
        __tracebackhide__ = True
        from recon.auditing.session import audit

        report = audit(function, model, **options)
        if report.verdict != "clean":
            from recon.report.audit import render

            self._show("recon audit", lambda console: render(report, console=console))
        return report.check()

    def profile(self, model: nn.Module, **options: Any) -> Profile:
        """Measure what capture costs, as ``recon.profile`` does.

        In a test that also uses pytest-benchmark's fixture, the overhead and the bytes
        go to its ``extra_info``. Raises LeakError, naming who holds what stays.
        """
        __tracebackhide__ = True
        from recon.profiling.session import profile

        found = profile(model, **options)
        if "benchmark" in self._request.fixturenames:
            benchmark = self._request.getfixturevalue("benchmark")
            benchmark.extra_info.update(extra_info(found))
        if found.verdict != "clean":
            self._text("recon profile", "\n".join(found.findings))
        return found.check()

    def baseline(
        self,
        name: str,
        model: nn.Module,
        input_ids: Tensor | None = None,
        **inputs: Any,
    ) -> BaselineReport | None:
        """Check a run by the baseline ``name``; None if it was recorded just now.

        Raises BaselineError, naming every finding, and UsageError for a baseline that
        is not there: an absent one is no pass. With ``--recon-update-baselines`` what
        moved is shown and accepted.
        """
        __tracebackhide__ = True
        from recon.errors import UsageError

        file = self._file(name)
        update = _asked(self._request.config, "recon_update_baselines")
        if input_ids is not None:
            inputs = {"input_ids": input_ids, **inputs}
        if not file.exists() and not update:
            raise UsageError(
                f"there is no baseline {file}; record it with --recon-update-baselines"
            )
        if update:
            return self._update(file, model, inputs)
        from recon.baseline.checking import check_baseline

        report = check_baseline(file, model, **inputs)
        if report.findings:
            self._show_baseline(report)
        return report.check()

    def _update(
        self, file: Path, model: nn.Module, inputs: Mapping[str, Any]
    ) -> BaselineReport | None:
        from recon.baseline.checking import (
            accept_baseline,
            check_baseline,
            record_baseline,
        )
        from recon.errors import UsageError

        try:
            report = check_baseline(file, model, **inputs)
        except UsageError:
            # It is not there, is of no use, or is of other inputs.
            file.parent.mkdir(parents=True, exist_ok=True)
            record_baseline(file, model, **inputs)
            self._say(f"{file}: recorded")
            return None
        if report.verdict != "equal" or report.notes:
            self._show_baseline(report)
            accept_baseline(report)
            self._say(f"{file}: {report.conclusion()}")
        return report

    def _file(self, name: str) -> Path:
        """Return the file of a baseline; a name serves one test."""
        from recon.errors import UsageError

        if not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
            raise UsageError(
                f"baseline {name!r}: expected a name of letters, digits, _, - and ."
            )
        config, node = self._request.config, self._request.node
        asked = _asked(config, "recon_baselines")
        folder = config.rootpath / asked if asked else node.path.parent / "baselines"
        file = Path(folder) / f"{name}.json"
        user = config.stash[_USED].setdefault(file, node.nodeid)
        if user != node.nodeid:
            raise UsageError(
                f"baseline {name!r} is that of {user}: choose another name"
            )
        return file

    # -- what pytest shows -------------------------------------------------------

    def _show_baseline(self, report: BaselineReport) -> None:
        from recon.report.baseline import render

        self._show("recon baseline", lambda console: render(report, console=console))

    def _show(self, title: str, page: Callable[[Console], RenderableType]) -> None:
        from rich.console import Console

        shown = Console(file=StringIO(), width=_WIDTH, highlight=False, markup=False)
        shown.print(page(shown))
        assert isinstance(shown.file, StringIO)
        lines = shown.file.getvalue().splitlines()
        self._text(title, "\n".join(line.rstrip() for line in lines))

    def _text(self, title: str, words: str) -> None:
        self._request.node.stash.setdefault(_SECTIONS, []).append((title, words))

    def _say(self, words: str) -> None:
        # Properties of a report reach the summary from xdist's workers, too.
        self._request.node.user_properties.append((_ACCEPTED, words))


def extra_info(found: Profile) -> dict[str, float | int]:
    """Return what a benchmark is to keep of a profile."""
    ratio = found.overhead
    return {
        "recon_overhead": ratio.ratio,
        "recon_overhead_low": ratio.low,
        "recon_overhead_high": ratio.high,
        "recon_kept_bytes": found.memory.held,
    }


@pytest.fixture
def recon(request: pytest.FixtureRequest) -> Recon:
    """Verify, audit, profile, and compare with baselines; see ``docs/pytest.md``."""
    return Recon(request)


# -- what stays after a test -------------------------------------------------------


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Note what is alive when the fixtures are there and the test begins."""
    if _asked(item.config, "recon_no_leaks") or item.get_closest_marker(MARKER):
        from recon.profiling.leaks import snapshot

        item.stash[_BEFORE] = snapshot()
    try:
        return (yield)
    except BaseException:
        # Its traceback holds what the test had, and a failure is told anyway.
        if _BEFORE in item.stash:
            del item.stash[_BEFORE]
        raise


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """Fail a test after which something stays that was not there when it began."""
    before = item.stash.get(_BEFORE, None)
    # Held until its hooks are seen: many a model goes with the fixture that made it.
    models = before.alive() if before else {}
    result = yield
    if before:
        # The values of the fixtures: all of them have been torn down.
        getattr(item, "funcargs", {}).clear()
        hooks = before.hooks_left(models)
        models.clear()
        left = (*before.tensors_left(), *hooks)
        del item.stash[_BEFORE]
        if left:
            words = "\n".join(str(one) for one in left)
            item.stash.setdefault(_SECTIONS, []).append(("recon leaks", words))
            pytest.fail(f"{len(left)} leaks after the test: {left[0]}", pytrace=False)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add what recon found to the report of the phase in which it was found."""
    report = yield
    if _SECTIONS in item.stash:
        found = item.stash[_SECTIONS]
        report.sections.extend(found)
        del item.stash[_SECTIONS]
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List the baselines that were recorded or accepted."""
    lines = dict.fromkeys(
        words
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, words in getattr(report, "user_properties", ())
        if name == _ACCEPTED
    )
    if lines:
        terminalreporter.section("recon baselines accepted")
        for words in lines:
            terminalreporter.line(words)
