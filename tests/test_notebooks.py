"""The notebooks of docs/: executed, without errors, and run as they claim."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from tools import notebooks
from tools.notebooks import NOTEBOOKS, run

PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))


def test_there_are_notebooks():
    assert [path.stem for path in PATHS] == ["plots", "verify-and-audit"]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_holds_what_it_showed_and_nothing_of_the_machine(path):
    cells = [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs
    assert all(output.output_type != "error" for output in outputs)
    assert "site-packages" not in path.read_text("utf-8")


def test_the_notebooks_show_reports_traces_and_findings_as_html():
    outputs = [
        output["data"]
        for path in PATHS
        for cell in nbformat.read(path, 4).cells
        for output in cell.get("outputs", ())
        if "data" in output
    ]
    drawn = {
        data["text/plain"].split("(")[0] for data in outputs if "text/html" in data
    }
    assert drawn == {"Trace", "Report", "AuditReport", "Finding"}
    for data in outputs:
        assert data.get("text/html", "<div class").startswith("<div class")


@pytest.fixture
def ran(monkeypatch, tmp_path):
    """Run a notebook of one cell, with an output put in place of its execution."""

    def run_with(before, error=None):
        def execute(self, cwd):
            if error is not None:
                raise error
            shown = nbformat.v4.new_output("stream", name="stdout", text="1")
            self.nb.cells[0].outputs = [shown]

        monkeypatch.setattr(notebooks.NotebookClient, "execute", execute)
        path = tmp_path / "one.ipynb"
        nbformat.write(new_notebook(cells=[new_code_cell("1", outputs=before)]), path)
        text = path.read_text("utf-8")
        return run(path), path.read_text("utf-8") != text

    return run_with


def test_a_notebook_that_ran_is_kept(ran):
    assert ran([]) == ("", True)


def test_a_cell_that_raises_fails_and_writes_nothing(ran):
    error = notebooks.CellExecutionError("the traceback", "NameError", "x")
    words, written = ran([], error)
    assert words.startswith("one.ipynb: ")
    assert not written


def test_another_kind_of_output_fails_and_writes_nothing(ran):
    picture = nbformat.v4.new_output("display_data", data={"image/png": ""})
    words, written = ran([picture])
    assert "other outputs than before" in words
    assert not written
