"""The picture of the layers shows the imports, and nothing that is no import."""

import re
from xml.etree import ElementTree

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
    assert ElementTree.fromstring(diagram(CHAIN, ["top", "middle", "low"])).tag == "svg"


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
