"""What docs/compatibility.md says holds for pyproject.toml and for versions at hand."""

import re

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tools import compat

PAGE = compat.PAGE.read_text("utf-8")
FIELDS = ("transformers", "torch", "verify", "tests", "outcome")


def rows(page):
    """Return the rows of the first table of a page."""
    table = page.split("\n\n## ")[0]
    found = re.findall(r"^\| (\d.*) \|$", table, flags=re.MULTILINE)
    return [dict(zip(FIELDS, row.split(" | "), strict=True)) for row in found]


def bound(name):
    """Return the lower bound of a dependency in pyproject.toml."""
    needed = map(Requirement, compat.project()["dependencies"])
    (one,) = (one for one in needed if one.name == name)
    (only,) = one.specifier
    assert only.operator == ">="
    return Version(only.version)


def lowest(page, name):
    """Return the lowest version from which on every row passes."""
    good = []
    for row in reversed(rows(page)):
        if row["outcome"] != "passes":
            break
        good.append(Version(row[name]))
    return min(good)


@pytest.mark.parametrize("name", ["transformers", "torch"])
def test_a_lower_bound_is_the_lowest_version_that_passed(name):
    assert bound(name) == lowest(PAGE, name)


def test_a_row_that_fails_raises_the_bound():
    worse = PAGE.replace("passes |", "fails |", 1)
    assert lowest(worse, "transformers") > lowest(PAGE, "transformers")


JUNIT = """<testsuites><testsuite>
<testcase name="a"><failure message="h.1.attn.pattern, h.1.ln_1">it</failure></testcase>
<testcase name="b"><error message="assert">h.0.attn.pattern, missing</error></testcase>
<testcase name="c"><failure message="h.0.mlp.post: off"></failure></testcase>
<testcase name="d"></testcase>
</testsuite></testsuites>"""


def test_what_most_failures_name_is_told(tmp_path):
    report = tmp_path / "junit.xml"
    report.write_text(JUNIT, encoding="utf-8")
    assert compat.about(report) == ["attn.pattern", 2]
    assert compat.cause({"about": ["attn.pattern", 2]}) == ": `attn.pattern` in 2"
    report.write_text("<testsuites></testsuites>", encoding="utf-8")
    assert compat.about(report) == ["", 0]
    assert compat.cause({"about": ["", 0]}) == ""


def test_every_version_that_is_to_be_tried_has_a_row():
    assert [row["transformers"] for row in rows(PAGE)] == compat.versions()


PAIRS = re.findall(r"^### (\S+) → (\S+)$", PAGE, flags=re.MULTILINE)


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_what_the_page_shows_of_a_pair_is_what_a_check_says(old, new):
    found = {one["transformers"]: one for one in compat.results()}
    if not {old, new} <= found.keys():
        pytest.skip(f"no environment of transformers {old} or {new}: make compat")
    told = compat.told(found[old], found[new])
    assert told in PAGE


def test_the_page_has_two_real_pairs():
    assert len(PAIRS) >= 2
    assert "RB107" in PAGE
    assert "RB111" in PAGE
