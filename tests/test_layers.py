"""Which module of recon may import which; the table of the design, enforced."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "recon"

# From the top down: a module imports only from lines below its own, and modules on one
# line never import each other. A package counts as one module. Some are still to come.
LAYERS = (
    "__init__  __main__",
    "cli  pytest_plugin  testing",
    "describing",
    "report  plotting",
    "baseline",
    "auditing",
    "profiling",
    "differences  collecting",
    "verification  capturing  inputs  target  watch",
    "streaming",
    "models  loading  checks  results",
    "gpt2  recorder  ledger  replay  certify  sketch  census",
    "tally",
    "compare",
    "activations  projection  softmax",
    "rounding",
    "plan  trace  storage",
    "saving",
    "facts",
    "ops",
    "sites  files  prompts  input_files  shapes  deadline",
    "errors  display  listed",
)
# Needed by type checkers alone, and not run: (who, whom).
TYPES_ONLY = {("errors", "compare")}
# recon.testing leaves a hook behind on purpose, for others' tests to find.
HOOKS_IN = {"recorder", "testing"}
TRANSFORMERS_IN = {"gpt2", "models"}

LEVEL = {
    name: level for level, line in enumerate(LAYERS[::-1]) for name in line.split()
}


def module_of(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").parts[0]


FILES = sorted(SOURCE.rglob("*.py"))
MODULES = frozenset(module_of(path) for path in FILES)


def imported(tree: ast.Module, package: tuple[str, ...]) -> Iterator[str]:
    """Yield the dotted name of everything that a file of ``package`` imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            near = package[: len(package) + 1 - node.level] if node.level else ()
            source = [*near, *([node.module] if node.module else [])]
            yield from (".".join([*source, alias.name]) for alias in node.names)


def internal(names: Iterator[str]) -> Iterator[str]:
    """Yield the module of recon that each name belongs to; others are dropped."""
    for package, *rest in (name.split(".") for name in names):
        if package == "recon" and rest != ["__version__"]:
            yield rest[0] if rest and rest[0] in MODULES else "__init__"


def upward(module: str, code: str, package: tuple[str, ...] = ("recon",)) -> list[str]:
    """Name the modules that a file of ``module`` imports against the arrows."""
    used = set(internal(imported(ast.parse(code), package))) - {module}
    allowed = {whom for who, whom in TYPES_ONLY if who == module}
    # A module without a line has a failing test of its own.
    known = {one: LEVEL.get(one, -1) for one in {*used, module}}
    return sorted(u for u in used - allowed if known[u] >= known[module] > -1)


def each_file(path: Path) -> str:
    return str(path.relative_to(SOURCE))


@pytest.mark.parametrize("path", FILES, ids=each_file)
def test_every_module_has_a_line_in_the_table(path):
    assert module_of(path) in LEVEL, (
        f"{each_file(path)} is new: add {module_of(path)!r} to LAYERS, above all that "
        "it imports and below all that import it"
    )


@pytest.mark.parametrize("path", FILES, ids=each_file)
def test_imports_point_down_only(path):
    package = ("recon", *path.relative_to(SOURCE).parts[:-1])
    against = upward(module_of(path), path.read_text("utf-8"), package)
    assert not against, f"{each_file(path)} imports {against}, not below it in LAYERS"


@pytest.mark.parametrize(
    ("module", "code", "against"),
    [
        ("ops", "from recon.trace import Trace", ["trace"]),
        ("ops", "from recon import trace", ["trace"]),
        ("ops", "import recon.trace as t", ["trace"]),
        ("ops", "from .trace import Trace", ["trace"]),
        ("ops", "def late():\n    from recon.gpt2.laws import identities", ["gpt2"]),
        ("ops", "if TYPE_CHECKING:\n    from recon.facts import Facts", ["facts"]),
        ("replay", "from recon.ledger import reconstruct", ["ledger"]),
        ("facts", "from recon import capture", ["__init__"]),
        ("replay", "import torch\nfrom recon.compare import compare", []),
        ("errors", "if TYPE_CHECKING:\n    from recon.compare import Check", []),
    ],
)
def test_an_upward_import_is_caught_wherever_it_hides(module, code, against):
    assert upward(module, code) == against


@pytest.mark.parametrize(
    ("code", "against"),
    [
        ("from ..verification import verify", ["verification"]),
        ("from .laws import x", []),
    ],
)
def test_a_relative_import_in_a_package_counts_from_that_package(code, against):
    assert upward("gpt2", code, ("recon", "gpt2")) == against


def hook_calls(code: str) -> list[str]:
    named = (
        node.attr
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Attribute)
    )
    return [name for name in named if name.startswith("register_")]


@pytest.mark.parametrize("path", FILES, ids=each_file)
def test_only_the_recorder_registers_hooks_and_a_fault_on_purpose(path):
    assert module_of(path) in HOOKS_IN or not hook_calls(path.read_text("utf-8"))


@pytest.mark.parametrize("path", FILES, ids=each_file)
def test_only_gpt2_and_models_import_transformers(path):
    names = imported(ast.parse(path.read_text("utf-8")), ())
    uses = any(name.split(".")[0] == "transformers" for name in names)
    assert not uses or module_of(path) in TRANSFORMERS_IN


def test_a_hook_call_is_seen_in_source():
    assert hook_calls("x.register_forward_hook(f)") == ["register_forward_hook"]


def test_no_module_is_called_utils():
    vague = {"utils", "util", "helpers", "common", "misc"}
    assert not {path.stem for path in FILES} & vague
