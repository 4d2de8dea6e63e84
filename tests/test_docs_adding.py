"""Everything that the page on adding an architecture names is there."""

import ast
import re
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from recon import gpt2, ops, sites
from tests.test_layers import SOURCE, imported

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "adding.md").read_text("utf-8")
ORDER, EXAMPLE = PAGE.split("## For example")


def named(text):
    return set(re.findall(r"`([^`]+)`", text))


def rows(text):
    """Return the cells of a page's tables, without heads and rules."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


OFFERS = [row for row in rows(ORDER) if not row[0].startswith("name in")]


def users(name):
    """Return the modules of recon, gpt2 aside, whose source says ``gpt2.name``."""
    use = re.compile(rf"\bgpt2\.{name}\b|from recon\.gpt2 import .*\b{name}\b")
    return {
        path.relative_to(SOURCE).with_suffix("").parts[0]
        for path in SOURCE.rglob("*.py")
        if use.search(path.read_text("utf-8"))
    } - {"gpt2"}


def test_the_table_names_all_that_the_package_offers_and_nothing_else():
    assert {name for row in OFFERS for name in named(row[0])} == set(gpt2.__all__)


@pytest.mark.parametrize("row", OFFERS, ids=lambda row: row[0])
def test_those_who_need_an_offer_are_those_that_use_it(row):
    used = {user for name in named(row[0]) for user in users(name)}
    assert named(row[2]) == used


def test_a_user_is_found_by_the_way_it_is_written():
    assert "capturing" in users("plan")
    assert users("nothing_of_the_kind") == set()


def test_every_op_is_named_and_every_one_named_exists():
    step = next(line for line in ORDER.split("\n") if line.startswith("5."))
    known = {name for name, op in vars(ops).items() if is_op(op)}
    assert named(step) - {"recon.ops"} == known - {"Attention"}


def is_op(thing):
    return isinstance(thing, type) and thing.__module__ == ops.__name__


def test_every_file_and_module_that_is_named_exists():
    words = named(PAGE)
    for path in [w for w in words if "/" in w]:
        assert (ROOT / path).exists(), path
    for word in [w for w in words if re.fullmatch(r"recon\.\w+", w)]:
        import_module(word)


def test_the_fields_of_a_plan_and_the_vocabularies_are_called_so():
    plan = import_module("recon.plan").Plan
    said = {word.split(".")[1] for word in named(PAGE) if word.startswith("Plan.")}
    assert said <= {field.name for field in fields(plan)}
    assert {"STEM", "BLOCK"} <= vars(sites).keys()


def test_gpt_neox_has_the_modules_that_the_example_names():
    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=11,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
        )
    )
    there = dict(model.named_modules())
    asked = {w for row in rows(EXAMPLE) for w in named(row[0])}
    paths = {word for word in asked if word.startswith("gpt_neox.")}
    assert len(paths) > 8
    assert paths <= there.keys()
    assert "lm_head" in there
    assert hasattr(model.config, "use_parallel_residual")
    assert tuple(there["gpt_neox.layers.0.mlp.dense_h_to_4h"].weight.shape) == (16, 8)


def test_the_sites_of_the_example_are_sites():
    known = {part.name.removeprefix("h.{l}.") for part in sites.PARTS}
    said = {w for row in rows(EXAMPLE)[1:] for w in named(row[1])}
    assert said - {"Slice", "query_key_value"} <= known


def test_only_gpt2_and_models_would_have_to_be_told_of_a_library():
    found = {
        path.relative_to(SOURCE).parts[0].removesuffix(".py")
        for path in SOURCE.rglob("*.py")
        if any(name.split(".")[0] == "transformers" for name in names_in(path))
    }
    assert found == {"gpt2", "models"}


def names_in(path):
    return imported(ast.parse(path.read_text("utf-8")), ())
