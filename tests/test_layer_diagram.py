"""The picture of the layers shows the imports, and nothing that is no import."""

import re
from xml.etree import ElementTree

import pytest

from tests.test_layers import LAYERS, MODULES, SOURCE
from tools.layer_diagram import diagram, direct, imports

CHAIN = {
    "top": frozenset({"middle", "low"}),
    "middle": frozenset({"low"}),
    "low": frozenset(),
}


def boxes(picture):
    found = re.findall(r"<title>(\w+) imports ([^<]*)</title>", picture)
    return {name: set(below.split(", ")) for name, below in found}


def test_every_module_is_a_box_that_names_what_it_imports():
    used = imports(SOURCE)
    shown = boxes(diagram(used, LAYERS))
    assert shown.keys() == MODULES
    assert shown["certify"] >= {"compare", "rounding", "trace"}
    assert shown["errors"] == {"nothing of recon"}


def test_the_picture_is_whole_xml():
    (picture,) = ElementTree.fromstring(diagram(CHAIN, ["top", "middle", "low"]))
    assert picture.tag == "svg"


def test_markdown_leaves_the_picture_as_it_is():
    markdown = pytest.importorskip("markdown", reason="make docs installs it")
    picture = diagram({"__init__": frozenset()}, ["__init__"])
    assert picture in markdown.markdown(f"# Layers\n\n{picture}\n\nMore.\n")
    bare = picture.removeprefix("<div>").removesuffix("</div>")
    assert bare not in markdown.markdown(bare)


def test_an_import_that_a_chain_implies_has_no_line_of_its_own():
    assert set(direct(CHAIN)) == {("top", "middle"), ("middle", "low")}
    assert diagram(CHAIN, ["top", "middle", "low"]).count("<path") == 2


def test_another_import_changes_the_picture():
    more = {**CHAIN, "extra": frozenset({"low"})}
    layers = ["top extra", "middle", "low"]
    assert diagram(more, layers).count("<path") == 3
    assert "extra" not in diagram(CHAIN, layers)


def test_a_module_lies_below_those_that_import_it():
    picture = diagram(CHAIN, ["top", "middle", "low"])
    heights = [int(y) for y in re.findall(r'<rect x="\d+" y="(\d+)"', picture)]
    assert heights == sorted(heights)
    assert len(set(heights)) == 3
