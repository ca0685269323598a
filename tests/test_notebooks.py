"""The notebooks of docs/notebooks run as they are, in a kernel, in an empty folder, and carry no outputs."""

from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
nbformat = pytest.importorskip("nbformat")


def executed(name: str, folder: Path) -> Any:
    """A notebook with the outputs of a kernel; an exception of a cell is one here."""
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def printed(notebook: Any) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_is_valid_and_stores_no_outputs(file: Path) -> None:
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells[0].source.startswith("# ")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


@pytest.mark.slow
def test_a_run_is_read_and_its_curves_are_drawn(tmp_path: Path) -> None:
    notebook = executed("read_a_run", tmp_path)
    drawn = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(drawn) == 2
    assert "of 1000 digits are wrong" in printed(notebook)


@pytest.mark.slow
def test_a_method_of_one_s_own_teaches_and_is_soft_targets_where_it_should_be(tmp_path: Path) -> None:
    said = printed(executed("own_method", tmp_path))
    row = next(line.split() for line in said.splitlines() if line.startswith("pairs"))
    assert row[1] == "3"
    assert float(row[2]) < 200, "of 1,000 digits, 900 of which chance would miss"
    gradient, difference = (float(line.rpartition(" ")[2]) for line in said.splitlines()[-2:])
    assert gradient < 1e-12
    assert difference < 2e-3


@pytest.mark.slow
def test_one_s_own_teacher_teaches_a_student_that_leaves_as_onnx(tmp_path: Path) -> None:
    said = printed(executed("own_teacher_to_onnx", tmp_path)).splitlines()
    right = next(line.split()[0] for line in said if "digits are right" in line)
    (judged,) = (line for line in said if line.startswith("teacher ") and "parameters" in line)
    assert f" {1000 - int(right)} errors" in judged, "it is what it was in its own loop"
    in_onnx, in_torch = (int(word) for word in said[-1].split() if word.isdigit())
    assert in_onnx == in_torch < 300
