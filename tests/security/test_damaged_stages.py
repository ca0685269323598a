"""A byte that changes in a finished stage is found, and the stage is made again."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from raydistill.cli import main

PLAN = """\
name: tiny
task: {name: mnist}
tracking: none
stages:
  student: {stage: train, model: {name: mlp, widths: [8]}, epochs: 1}
"""


def distill(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The weights of a finished student."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("raydistill.run_plan.write_report_of", lambda run: None)
    Path("plan.yaml").write_text(PLAN)
    assert distill("run", "plan.yaml", "--local").exit_code == 0
    (found,) = Path("runs/stages").glob("train-*/model.safetensors")
    return found


def flip(file: Path, *, keep_time: bool) -> None:
    status, content = file.stat(), bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    if keep_time:
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def run_folder() -> str:
    return str(max(Path("runs/plans/tiny").iterdir(), key=lambda folder: folder.stat().st_mtime_ns))


def test_a_student_that_predict_calls_damaged_is_made_again_by_run(weights: Path) -> None:
    good = weights.read_bytes()
    flip(weights, keep_time=False)
    told = distill("predict", str(weights.parent), "a.png")
    assert (told.exit_code, "run the plan again" in told.stderr) == (1, True)
    assert "1 to run, 0 cached" in distill("run", "plan.yaml", "--dry-run").stdout
    assert distill("run", "plan.yaml", "--local").exit_code == 0
    assert weights.read_bytes() == good
    assert "0 to run, 1 cached" in distill("run", "plan.yaml", "--dry-run").stdout


def test_verify_compares_every_file_of_a_run_whatever_its_time(weights: Path) -> None:
    sound = distill("verify", run_folder())
    assert (sound.exit_code, "stages compared: 1, as recorded: 1" in sound.stdout) == (0, True), sound.output
    flip(weights, keep_time=True)
    for place in (run_folder(), str(weights.parent)):
        found = distill("verify", place)
        assert (found.exit_code, found.stderr.count("\n")) == (1, 1)
        assert "model.safetensors` is damaged" in found.stderr


@pytest.mark.parametrize(
    "graph", ["[]", "{", '{"nodes": [1]}', '{"nodes": [{"folder": "../../../etc"}]}', '{"nodes": 1}']
)
def test_verify_reads_no_folder_outside_and_names_a_damaged_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graph: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "record.json").write_text(json.dumps({"payload": {}}))
    run = tmp_path / "a" / "b" / "run"
    run.mkdir(parents=True)
    (run / "graph.json").write_text(graph)
    told = distill("verify", str(run), "--runs", "a/b/c")
    assert (told.exit_code, told.stderr.count("\n")) == (1, 1), told.output
    assert "graph.json` is damaged" in told.stderr or "outside the storage root" in told.stderr
