"""Run recon under several versions of transformers and torch; write the page of it.

Each version gets an environment of its own under .venv-compat, in which run: `recon
verify`, the tests in CORE, and `recon baseline record` of two small models. What the
versions do differently is what `recon baseline check` says from one to the next.

    python -m tools.compat            # every pair, then docs/compatibility.md
    python -m tools.compat run 5.0.0  # one version
    python -m tools.compat page       # the page, from what has run
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PLACE = ROOT / ".venv-compat"
PAGE = ROOT / "docs" / "compatibility.md"
# Beside the pins of requirements.txt, with which the others are paired.
TRANSFORMERS = ("4.46.3", "4.51.3", "4.57.1", "5.0.0", "5.24.0")
TORCH = ("2.4.1", "2.6.0", "2.9.1", "2.14.1")
CORE = tuple(
    f"tests/test_{name}.py"
    for name in (
        "gpt2",
        "verification",
        "ledger",
        "replay",
        "certify",
        "baseline",
        "census",
        "streaming",
        "recorder",
    )
)
# What the tests need besides recon's own dependencies.
TEST = ("beartype", "hypothesis", "jsonschema", "junitparser", "pytest-benchmark")
TEMPLATE = """# Compatibility

Written by `make compat` (`tools/compat.py`): for each version below an environment of
its own, on Python {python} and the CPU, in which `recon verify` judges the bundled
model and the core of the tests runs ({files} files of `tests/`). Tests of something
that a version does not have are skipped with that reason (`tests/versions.py`).

{passes}

The last column names the site that most failures are about, or the error.
Up to 4.51 eager attention returns its pattern only where `output_attentions=True` asks
for it. `recon verify` does, and passes there; a capture that does not ask has no
pattern to check, and what is absent is no pass.

Of torch, PyPI has 1.13 to 2.15 for Python 3.11, for Linux with the libraries of CUDA,
without which they do not load; {torches} were tried,
on the CPU, and no other. transformers {pinned} refuses a torch below 2.6, whatever
recon does.

The lower bounds in `pyproject.toml`, transformers {transformers} and torch {torch},
are the lowest that were tried from which on everything passes, each with the pinned
version of the other; a test compares them with this table.
`python -m tools.compat run TRANSFORMERS TORCH` tries a pair.

## What a version does

As recorded by `recon baseline record` under each version, from two models of three
blocks that differ in `config.tie_last_hidden_states` only. *Hooks of its own* are
those that transformers leaves on the model after hidden states were asked for: none
where its own forward collects them.

{behaviour}

## What changed from one to the next

A baseline of the model with `tie_last_hidden_states=False`, recorded under one
version and checked under the next: those of transformers, of which {oldest} is the
oldest, then those of torch. RB107 is about hidden states, RB111 about what modules
return; what is not told did not move.

{moved}"""
INPUTS = "[[5, 17, 300, 2999, 5, 8, 1], [9, 2, 77, 1024, 3, 3, 40]]"


def pins() -> Mapping[str, str]:
    """Return the pinned versions of requirements.txt."""
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    parts = (line.partition("==") for line in lines if "==" in line)
    return {name: version for name, _, version in parts}


def versions() -> list[str]:
    """Return the versions of transformers to try, the newest last."""
    return sorted([*TRANSFORMERS, pins()["transformers"]], key=key)


def torches() -> list[str]:
    """Return the versions of torch to try, the newest last."""
    return sorted([*TORCH, pins()["torch"]], key=key)


def pairs() -> list[tuple[str, str]]:
    """Return the pairs to try: each version with the pinned one of the other."""
    transformers, torch = pins()["transformers"], pins()["torch"]
    found = [(version, torch) for version in versions()]
    return sorted({*found, *((transformers, one) for one in torches())}, key=ordered)


def ordered(pair: tuple[str, str]) -> tuple[Version, Version]:
    """Order pairs as numbers."""
    return key(pair[0]), key(pair[1])


# -- one version -----------------------------------------------------------------


def environment(version: str, torch: str) -> Path:
    """Return the Python of an environment with these versions, made if need be."""
    folder = PLACE / f"transformers-{version}-torch-{torch}"
    python = folder / "bin" / "python"
    if not (folder / "made").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        wanted = [f"torch=={torch}", f"transformers=={version}", *TEST, *plain()]
        pip = [python, "-m", "pip", "install", "-q"]
        subprocess.run([*pip, *wanted], check=True)
        (folder / "made").touch()
    return python


def plain() -> Iterator[str]:
    """Yield recon's own dependencies but for the two that are tried."""
    for text in project()["dependencies"]:
        if Requirement(text).name not in ("torch", "transformers"):
            yield text


def project() -> Mapping[str, Any]:
    """Return the table [project] of pyproject.toml."""
    import tomllib

    found = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return dict(found)


def run(version: str, torch: str) -> None:
    """Try one pair of versions; keep what was found beside its environment."""
    python = environment(version, torch)
    folder = python.parents[1]
    found = {"transformers": version, "torch": torch, **verified(python)}
    found |= tested(python, folder)
    for name in ("tied", "untied"):
        record(python, folder / f"{name}.json", name)
    (folder / "found.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    print(f"transformers {version}, torch {torch}: {outcome(found)}")


def call(python: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python in an environment, with this tree's recon and no network."""
    settings = {"PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", "COLUMNS": "88"}
    settings |= {"PYTHONDONTWRITEBYTECODE": "1", "NO_COLOR": "1"}
    return subprocess.run(
        [python, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )


def verified(python: Path) -> dict[str, Any]:
    """Verify the bundled model."""
    done = call(python, "-m", "recon", "verify", "bundled")
    lines = (done.stdout.strip() or done.stderr.strip()).splitlines()
    return {"verify": done.returncode, "verdict": lines[-1] if lines else ""}


def tested(python: Path, folder: Path) -> dict[str, Any]:
    """Run the core of the tests, and count."""
    report = folder / "junit.xml"
    report.unlink(missing_ok=True)
    # recon is not installed there, so that its plugin is named.
    plugins = ("-p", "recon.pytest_plugin", "-p", "no:cacheprovider")
    options = ("-q", *plugins, f"--junit-xml={report}")
    done = call(python, "-m", "pytest", *options, *CORE)
    if not report.exists():
        last = done.stderr.strip().splitlines()[-1:]
        return {"passed": 0, "failed": 1, "skipped": 0, "first": "".join(last)}
    cases = ElementTree.parse(report).getroot().iter("testcase")
    kinds: dict[str, list[str]] = {"passed": [], "failed": [], "skipped": []}
    for case in cases:
        child = next((c.tag for c in case if c.tag != "properties"), "passed")
        kind = {"failure": "failed", "error": "failed"}.get(child, child)
        kinds.setdefault(kind, []).append(str(case.get("name")))
    counts: dict[str, Any] = {kind: len(names) for kind, names in kinds.items()}
    return counts | {"first": next(iter(kinds["failed"]), ""), "about": about(report)}


def about(report: Path) -> list[Any]:
    """Return the part of blocks that most failures name first, and how many do."""
    cases = ElementTree.parse(report).getroot().iter("testcase")
    bad = (c for case in cases for c in case if c.tag in ("failure", "error"))
    texts = (f"{one.get('message')} {one.text}" for one in bad)
    named = (re.search(r"\bh\.\d+\.([a-z]\w*(?:\.[a-z]\w*)*)", text) for text in texts)
    (most,) = Counter(one[1] for one in named if one).most_common(1) or [("", 0)]
    return list(most)


def models() -> Path:
    """Return a folder with the two models, made once with the newest versions."""
    folder = PLACE / "models"
    if not (folder / "untied").exists():
        import recon

        for name, tied in (("tied", True), ("untied", False)):
            model = recon.load_model("random:tiny").model
            model.config.tie_last_hidden_states = tied
            model.save_pretrained(folder / name)
        (folder / "ids.json").write_text(INPUTS, "utf-8")
    return folder


def record(python: Path, file: Path, model: str) -> None:
    """Record the baseline of one model in an environment."""
    file.unlink(missing_ok=True)
    place = models()
    given = ("--model", place / model, "--input-ids", place / "ids.json")
    done = call(python, "-m", "recon", "baseline", "record", file, *given)
    if done.returncode:
        print(done.stdout + done.stderr)


# -- the page --------------------------------------------------------------------


def outcome(found: Mapping[str, Any]) -> str:
    """Say whether all of it holds."""
    good = found["verify"] == 0 and found["failed"] == 0 and found["passed"] > 0
    return "passes" if good else "fails"


def cause(found: Mapping[str, Any]) -> str:
    """Say which site most failures name, or what `recon verify` ended with."""
    part, count = found.get("about") or ("", 0)
    if 2 * count > found["failed"]:
        return f": `{part}` in {count}"
    if found["verify"]:
        return f": {found['verdict'].removeprefix('recon: ').split(';')[0]}"
    return ""


def results() -> list[dict[str, Any]]:
    """Return what has run, from the oldest transformers to the newest."""
    files = sorted(PLACE.glob("transformers-*/found.json"))
    found = [json.loads(file.read_text("utf-8")) for file in files]
    return sorted(found, key=lambda one: ordered((one["transformers"], one["torch"])))


def along(found: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Return what ran with versions of one library and the pinned one of the other."""
    other = "torch" if name == "transformers" else "transformers"
    return [one for one in found if one[other] == pins()[other]]


def key(version: str) -> Version:
    """Order versions as numbers."""
    return Version(version)


def folder_of(found: Mapping[str, Any]) -> Path:
    """Return where the environment of a result is."""
    return PLACE / f"transformers-{found['transformers']}-torch-{found['torch']}"


def baseline(found: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """Return what an environment recorded of a model; None if it could not."""
    file = folder_of(found) / f"{name}.json"
    return dict(json.loads(file.read_text("utf-8"))) if file.exists() else None


def rows(found: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the table of what passes."""
    yield "| transformers | torch | `recon verify` | core tests | |"
    yield "|---|---|---|---|---|"
    for one in found:
        counts = (
            f"{one['passed']} passed, {one['failed']} failed, {one['skipped']} skipped"
        )
        good = "exit 0" if one["verify"] == 0 else f"exit {one['verify']}"
        yield (
            f"| {one['transformers']} | {one['torch']} | {good} | {counts} "
            f"| {outcome(one)}{cause(one)} |"
        )


def behaviour(found: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the table of what baselines say that each version does."""
    yield (
        "| transformers | a block returns | attention returns | hooks of its own "
        "| last entry, untied | `output_hidden_states=1` |"
    )
    yield "|---|---|---|---|---|---|"
    for one in found:
        tied, untied = baseline(one, "tied"), baseline(one, "untied")
        if tied is None or untied is None:
            yield (
                f"| {one['transformers']} | no baseline could be recorded |" + " |" * 4
            )
            continue
        states = tied["hidden_states"]
        attention = " or ".join(
            dict.fromkeys(v for k, v in tied["returns"].items() if "Attention" in k)
        )
        shown, count = states["one"], states["count"]
        chosen = "every entry" if len(shown) == count else f"entry {shown}"
        block, last = tied["returns"]["GPT2Block"], untied["hidden_states"]["last"]
        cells = (f"`{block}`", f"`{attention}`", states["hooks"], f"`{last}`", chosen)
        yield f"| {one['transformers']} | {' | '.join(map(str, cells))} |"


def check(old: Mapping[str, Any], new: Mapping[str, Any], name: str) -> str:
    """Check the baseline of one version under another; return what is printed."""
    python = folder_of(new) / "bin" / "python"
    file = folder_of(old) / f"{name}.json"
    with tempfile.TemporaryDirectory() as place:
        # A short name, so that the page does not depend on where this tree is.
        near = Path(place) / f"{name}.json"
        near.write_bytes(file.read_bytes())
        done = call(python, "-m", "recon", "baseline", "check", near)
        text = (done.stdout or done.stderr).replace(f"{place}/", "")
    text = text.replace(f"{PLACE}/", "")
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def told(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Return what is told of a pair: the output, or its last line if nothing moved.

    The lines before the notes, which say on what machine it ran, are left out.
    """
    lines = check(old, new, "untied").splitlines()
    lines = lines[next(n for n, line in enumerate(lines) if line.startswith("note")) :]
    if not any(line.startswith("  RB") for line in lines):
        return f"Nothing but the version: `{lines[-1]}`"
    shown = "\n".join(lines)
    return f"```console\n$ recon baseline check untied.json\n{shown}\n```"


def moved(found: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the check of each version's baseline under the next."""
    for name, words in (("transformers", ""), ("torch", "torch ")):
        rows = along(found, name)
        able = [one for one in rows if baseline(one, "untied") is not None]
        for old, new in pairwise(able):
            title = f"### {words}{old[name]} → {new[name]}"
            yield f"{title}\n\n{told(old, new)}\n"


def lowest(found: list[dict[str, Any]], name: str) -> str:
    """Return the lowest version from which on everything passes."""
    good: list[str] = []
    for one in reversed(along(found, name)):
        if outcome(one) != "passes":
            break
        good.append(one[name])
    return min(good, key=key) if good else "none"


def page(found: list[dict[str, Any]]) -> str:
    """Write the page."""
    tried = [one["torch"] for one in along(found, "torch")]
    return TEMPLATE.format(
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        files=len(CORE),
        passes="\n".join(rows(found)),
        transformers=lowest(found, "transformers"),
        torch=lowest(found, "torch"),
        torches=", ".join(tried),
        pinned=pins()["transformers"],
        behaviour="\n".join(behaviour(along(found, "transformers"))),
        oldest=found[0]["transformers"],
        moved="\n".join(moved(found)),
    )


def main(arguments: list[str]) -> None:
    """Run all, one, or write the page."""
    torch = pins()["torch"]
    if arguments[:1] == ["run"]:
        run(arguments[1], arguments[2] if arguments[2:] else torch)
        return
    if not arguments:
        for pair in pairs():
            run(*pair)
    PAGE.write_text(page(results()).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
