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
    for row in reversed(compat.along(rows(page), name)):
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


def test_versions_of_one_library_are_compared_at_the_pinned_version_of_the_other():
    bad = {"verify": 0, "passed": 5, "failed": 1}
    pinned = [*compat.pins().items()]
    pins = {name: v for name, v in pinned if name in ("torch", "transformers")}
    found = [bad | pins | {"torch": "2.1.0"}, bad | pins | {"failed": 0}]
    assert compat.lowest(found, "torch") == pins["torch"]
    assert compat.lowest(found, "transformers") == pins["transformers"]


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
    one = {"about": ["attn.pattern", 2], "failed": 3, "verify": 0}
    assert compat.cause(one) == ": `attn.pattern` in 2"
    report.write_text("<testsuites></testsuites>", encoding="utf-8")
    assert compat.about(report) == ["", 0]


def test_an_error_is_told_where_failures_name_no_one_site():
    verdict = "recon: unexpected NameError: no nn; this is a bug in recon"
    bad = {"about": ["resid_mid", 36], "failed": 1061, "verify": 2, "verdict": verdict}
    assert compat.cause(bad) == ": unexpected NameError: no nn"
    sound = {"about": ["", 0], "failed": 0, "verify": 0}
    assert compat.cause(sound) == ""


def test_every_pair_that_is_to_be_tried_has_a_row():
    tried = [(row["transformers"], row["torch"]) for row in rows(PAGE)]
    assert tried == compat.pairs()


PAIRS = re.findall(r"^### (torch )?(\S+) → (\S+)$", PAGE, flags=re.MULTILINE)


@pytest.mark.parametrize(("torch", "old", "new"), PAIRS)
def test_what_the_page_shows_of_a_pair_is_what_a_check_says(torch, old, new):
    name = torch.strip() or "transformers"
    ran = compat.along(compat.results(), name)
    found = {one[name]: one for one in ran}
    if not {old, new} <= found.keys():
        pytest.skip(f"no environment of {name} {old} or {new}: make compat")
    told = compat.told(found[old], found[new])
    assert told in PAGE


def test_the_page_has_two_real_pairs():
    assert len(PAIRS) >= 2
    assert "RB107" in PAGE
    assert "RB111" in PAGE
