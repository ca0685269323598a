"""docs/python.md does what it says: as a program, and cell by cell in a notebook."""

import re
from pathlib import Path

import pytest

import raydistill

PAGE = Path(__file__).parents[1] / "docs" / "python.md"


def example() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    return str(code)


def test_the_page_s_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    values: dict[str, object] = {}
    exec(compile(example(), str(PAGE), "exec"), values)
    said = capsys.readouterr().out.splitlines()
    assert said[0].split()[:2] == ["teacher", "new"]
    assert said[-1] == "cached"
    run = raydistill.open_run("from-python")
    assert {row["stage"] for row in run.table()} == {"teacher", "student", "teacher.targets"}
    assert [row["epoch"] for row in run["student"].history()] == [1, 2]


@pytest.mark.slow
def test_a_notebook_shows_progress_in_plain_lines(tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    cells = [nbformat.v4.new_code_cell(part) for part in example().split("\n\n")]
    cells.append(nbformat.v4.new_code_cell("import pandas; print(len(pandas.DataFrame(rows)))"))
    notebook = nbformat.v4.new_notebook(cells=cells)
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.outputs]
    assert all(output.output_type == "stream" for output in outputs), outputs
    text = "".join(output.text for output in outputs)
    assert "student: done in" in text
    assert "\x1b" not in text
    assert text.rstrip().endswith("3")
