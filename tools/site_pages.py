"""The pages of the docs site that are made from the code: commands, API, rules, layers.

mkdocs calls ``on_files`` (mkdocs.yml, hooks); nothing is written into docs/.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "recon"


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that the code makes."""
    sys.path[:0] = [str(ROOT), str(ROOT / "src")]
    made = {"cli.md": cli_page(), "api.md": api_page(), "layers.md": layers_page()}
    made["contributing.md"] = contributing_page()
    made |= {f"rules/{code}.md": text for code, text in rule_pages()}
    made |= {f"notebooks/{name}.md": text for name, text in notebook_pages()}
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Lead links to the rules to their pages here, not to the package's data."""
    return markdown.replace("../src/recon/data/rules/", "rules/")


# -- commands --------------------------------------------------------------------


def cli_page() -> str:
    """Return the reference of all commands, as their own help has it."""
    import typer.main

    from recon.cli import app

    root = typer.main.get_command(app)
    parts = ["# Command line", "", _help_of(root, "recon")]
    for name, command in sorted(_commands(root, "recon")):
        parts += ["", f"## {name}", "", _help_of(command, name)]
    return "\n".join(parts) + "\n"


def _commands(group: Any, above: str) -> Iterator[tuple[str, Any]]:
    for name, command in getattr(group, "commands", {}).items():
        yield f"{above} {name}", command
        yield from _commands(command, f"{above} {name}")


def _help_of(command: Any, name: str) -> str:
    context = command.make_context(
        name, ["--help"], resilient_parsing=True, max_content_width=88
    )
    context.info_name = name
    text = command.get_help(context)
    return f"```text\n{text.rstrip()}\n```"


# -- the API ---------------------------------------------------------------------


def api_page() -> str:
    """Return a page that names everything public, for mkdocstrings to fill."""
    import recon

    names = [name for name in recon.__all__ if not name.startswith("__")]
    functions = [n for n in names if not inspect.isclass(getattr(recon, n))]
    classes = [n for n in names if inspect.isclass(getattr(recon, n))]
    parts = ["# Python", ""]
    for title, kind in (("Functions", functions), ("Classes and errors", classes)):
        parts += [f"## {title}", ""]
        for name in sorted(kind):
            where = getattr(recon, name).__module__
            parts += [
                f"::: {where}.{name}",
                "    options:",
                "      heading_level: 3",
                "",
            ]
    return "\n".join(parts)


# -- the rules of audits and baselines ----------------------------------------------


def rule_pages() -> Iterator[tuple[str, str]]:
    """Yield each rule's code with its page."""
    from recon.report.rules import EVERY, page

    for rule in EVERY:
        yield rule.code, page(rule)


# -- the notebooks ---------------------------------------------------------------


def notebook_pages() -> Iterator[tuple[str, str]]:
    """Yield each executed notebook's name with its cells and what they showed."""
    import nbformat

    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        parts = []
        for cell in notebook.cells:
            code = cell.cell_type == "code"
            parts.append(f"```python\n{cell.source}\n```" if code else cell.source)
            parts += [_shown(one) for one in cell.get("outputs", ())]
        parts.append(f"[This page as a notebook]({path.name})")
        yield path.stem, "\n\n".join(parts) + "\n"


def _shown(output: Any) -> str:
    """Return one output of a cell as Markdown: a picture, HTML, or text."""
    held = output.get("data", {"text/plain": output.get("text", "")})
    if (picture := held.get("image/png")) is not None:
        words = held.get("text/plain", "a figure").strip("<>")
        return f"![{words}](data:image/png;base64,{picture.replace(chr(10), '')})"
    if (fragment := held.get("text/html")) is not None:
        return str(fragment).strip()
    return f"```text\n{held['text/plain'].rstrip()}\n```"


# -- contributing ------------------------------------------------------------------


def contributing_page() -> str:
    """Return CONTRIBUTING.md, with its links seen from here."""
    return (ROOT / "CONTRIBUTING.md").read_text("utf-8").replace("](docs/", "](")


# -- the layers --------------------------------------------------------------------


def layers_page() -> str:
    """Return the layers, top down, with what each module imports, read off the code."""
    from tests.test_layers import LAYERS
    from tools.layer_diagram import diagram, imports

    used = imports(SOURCE)
    lines = [
        "# Layers",
        "",
        "Each row is a layer: its modules import from rows below only. Picture and",
        "table are read off the imports when this page is built. A line that others",
        "imply is left out of the picture.",
        "",
        diagram(used, LAYERS),
        "",
        "| module | imports |",
        "|---|---|",
    ]
    for row in LAYERS:
        for module in row.split():
            if module in used:
                below = ", ".join(f"`{name}`" for name in sorted(used[module]))
                lines.append(f"| `{module}` | {below or 'nothing of recon'} |")
        lines.append("| | |")
    return "\n".join(lines) + "\n"
