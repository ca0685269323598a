"""What runs code and what does not: only a plan that is run, and nothing that merely lies there."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from raydistill.cli import main

PLAN = """\
name: code
task: {name: mnist}
stages:
  teacher: {stage: train, model: {name: "strangers_nets:build"}, epochs: 1}
"""
MARK = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "plan.yaml").write_text(PLAN)
    for name in ("strangers_nets", "json", "numpy", "torch"):
        (tmp_path / f"{name}.py").write_text(MARK)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "words", [("run", "plan.yaml", "--dry-run"), ("submit", "plan.yaml", "--runs", "/r", "--dry-run")]
)
def test_a_dry_run_imports_nothing_that_a_plan_names(folder: Path, words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert "strangers_nets" not in sys.modules
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    "words", [("explain",), ("run", "plan.yaml", "--dry-run"), ("predict", ".", "a.png")]
)
def test_files_in_the_working_folder_stand_for_no_module_of_ours(
    folder: Path, words: tuple[str, ...]
) -> None:
    script = Path(sys.executable).with_name("distill")
    subprocess.run([script, *words], cwd=folder, capture_output=True, check=False)
    assert not (folder / "ran").exists()
