"""Run the notebooks of docs/ and write what they showed into them: ``make notebooks``.

Fails, and writes nothing, if a cell raises or shows another kind of output than before
(a picture, a table, text).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOKS = Path(__file__).resolve().parents[1] / "docs" / "notebooks"


def kinds(notebook: Any) -> list[list[str]]:
    """Return the media types of each code cell's outputs; streams are ``stream``."""
    return [
        [
            type_
            for output in cell.outputs
            for type_ in sorted(output.get("data", {"stream": ""}))
        ]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def run(path: Path) -> str:
    """Execute a notebook in place; return what is wrong with it, or nothing."""
    notebook = nbformat.read(path, as_version=4)
    before = kinds(notebook)
    client = NotebookClient(notebook, timeout=300, kernel_name="python3")
    try:
        client.execute(cwd=path.parent)
    except CellExecutionError as error:
        return f"{path.name}: {error}"
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times, which differ in each run
        if cell.cell_type == "code":  # warnings are about this machine
            kept = [one for one in cell.outputs if one.get("name") != "stderr"]
            cell.outputs = kept
    if any(before) and kinds(notebook) != before:
        return f"{path.name}: other outputs than before: {before} -> {kinds(notebook)}"
    part = path.with_suffix(".part")
    part.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    part.replace(path)
    return ""


def main() -> int:
    """Run every notebook, with the kernel of this environment."""
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    told = map(run, sorted(NOTEBOOKS.glob("*.ipynb")))
    wrong = [words for words in told if words]
    print("\n".join(wrong) or "every notebook ran")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
