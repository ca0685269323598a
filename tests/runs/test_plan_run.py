"""`results.json`: its shape, its sums by hand, and that it costs little while stages run."""

import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from raydistill.errors import StoreError
from raydistill.plan.order import order_stages
from raydistill.plan.schema import Plan
from raydistill.runs import live_results
from raydistill.runs.files import make_folder
from raydistill.runs.folder import StageFolder
from raydistill.runs.live_results import LiveResults
from raydistill.runs.plan_run import (
    NodeState,
    PlanRun,
    copy_report,
    write_data_sizes,
)
from raydistill.runs.record import Record
from raydistill.runs.view import runs_of

MODEL = {"name": "mlp", "widths": [4]}
STAGES: dict[str, Any] = {
    "teacher": {"stage": "train", "model": MODEL, "epochs": 1, "replicas": 3},
    "student": {"stage": "distill", "student": MODEL, "teachers": ["teacher"], "mode": "live", "epochs": 1},
}


def plan_run(root: Path) -> PlanRun:
    plan = Plan.model_validate({"name": "tiny", "task": {"name": "mnist"}, "stages": STAGES})
    run = PlanRun(plan, order_stages(plan), root, command="distill run", versions={"torch": "2"})
    run.begin()
    return run


def finish(run: PlanRun, name: str, metrics: Mapping[str, float]) -> None:
    """What a stage leaves."""
    node = run.graph.nodes[name]
    folder = StageFolder(run.root / node.folder)
    folder.create(node.identity)
    folder.write_record(
        Record(
            kind=node.kind,
            fingerprint=node.fingerprint,
            status="done",
            seconds=1.0,
            finished=0.0,
            metrics=dict(metrics),
            parameters=12,
        )
    )


def states(**statuses: str) -> dict[str, NodeState]:
    names = ["teacher.0", "teacher.1", "teacher.2", "student"]
    given = {name.replace("_", "."): status for name, status in statuses.items()}
    return {name: NodeState(given.get(name, "waiting"), seconds=1.5) for name in names}  # type: ignore[arg-type]


def read(run: PlanRun) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((run.folder / "results.json").read_text())
    return values


def test_results_have_the_shape_that_the_design_gives_them(tmp_path: Path) -> None:
    run = plan_run(tmp_path)
    write_data_sizes(
        tmp_path, run.graph.task, run.graph.test, {"train": 3600, "validation": 400, "test": 1000}
    )
    finish(run, "student", {"validation/accuracy": 0.951, "test/accuracy": 0.957, "test/errors": 43.0})
    run.write_results(states(student="done"), "done")
    written = run.results
    results = read(run)
    assert results == json.loads(json.dumps(written))
    design = ["plan", "run_id", "status", "seconds", "storage", "versions", "task", "stages", "mlflow"]
    assert set(results) == {*design, "command", "survey"}
    assert results["plan"] == "tiny"
    assert results["run_id"] == run.folder.name
    assert results["task"] == {
        "name": "mnist",
        "num_classes": 10,
        "train": 3600,
        "validation": 400,
        "test": 1000,
    }
    node = run.graph.nodes["student"]
    assert results["stages"]["student"] == {
        "stage": "distill",
        "status": "done",
        "seconds": 1.5,
        "fingerprint": node.fingerprint,
        "folder": f"stages/distill-{node.fingerprint}",
        "parameters": 12,
        "metrics": {"validation/accuracy": 0.951, "test/accuracy": 0.957, "test/errors": 43},
    }


def test_replicas_appear_once_each_and_once_in_sum(tmp_path: Path) -> None:
    run = plan_run(tmp_path)
    for index, (accuracy, errors) in enumerate([(0.90, 100.0), (0.92, 80.0), (0.97, 30.0)]):
        finish(run, f"teacher.{index}", {"test/accuracy": accuracy, "test/errors": errors})
    run.write_results(states(teacher_0="done", teacher_1="cached", teacher_2="done"), "running")
    stages = read(run)["stages"]
    assert set(stages) == {"teacher.0", "teacher.1", "teacher.2", "teacher", "student"}
    assert stages["teacher.1"]["metrics"] == {"test/accuracy": 0.92, "test/errors": 80}
    total = stages["teacher"]
    assert {key: total[key] for key in ("stage", "status", "replicas", "seconds", "parameters")} == {
        "stage": "train",
        "status": "done",
        "replicas": 3,
        "seconds": 4.5,
        "parameters": 12,
    }
    # mean 0.93, deviations -0.03, -0.01, 0.04: squares sum to 0.0026, over n - 1 = 2
    assert total["metrics"]["test/accuracy"] == pytest.approx(0.93)
    assert total["std"]["test/accuracy"] == pytest.approx(0.0013**0.5)
    # mean 70, deviations 30, 10, -40: squares sum to 2600, over 2
    assert total["metrics"]["test/errors"] == pytest.approx(70.0)
    assert total["std"]["test/errors"] == pytest.approx(1300**0.5)


@pytest.mark.parametrize(
    ("statuses", "total"),
    [
        (["done", "failed", "cached"], "failed"),
        (["done", "running", "waiting"], "running"),
        (["cached", "cached", "cached"], "cached"),
        (["cached", "done", "cached"], "done"),
        (["stopped", "done", "waiting"], "stopped"),
    ],
)
def test_the_sum_of_replicas_is_as_its_worst(tmp_path: Path, statuses: list[str], total: str) -> None:
    run = plan_run(tmp_path)
    run.write_results(states(**{f"teacher_{i}": status for i, status in enumerate(statuses)}), "running")
    assert read(run)["stages"]["teacher"]["status"] == total


def test_the_sum_is_of_the_replicas_that_have_numbers(tmp_path: Path) -> None:
    run = plan_run(tmp_path)
    finish(run, "teacher.1", {"test/accuracy": 0.9})
    run.write_results(states(teacher_0="failed", teacher_1="done"), "running")
    total = read(run)["stages"]["teacher"]
    assert total["metrics"] == {"test/accuracy": 0.9}
    assert total["std"] == {"test/accuracy": 0.0}


def test_a_stage_that_is_not_done_shows_its_error_and_no_old_numbers(tmp_path: Path) -> None:
    run = plan_run(tmp_path)
    finish(run, "student", {"test/accuracy": 0.9})
    now = states(student="done")
    run.write_results(now, "running")
    now["student"] = NodeState("failed", error="it broke")
    run.write_results(now, "failed")
    entry = read(run)["stages"]["student"]
    assert entry["error"] == "it broke"
    assert "metrics" not in entry


def test_the_plan_of_a_run_can_be_run_again(tmp_path: Path) -> None:
    run = plan_run(tmp_path)
    again = Plan.model_validate(yaml.safe_load((run.folder / "plan.yaml").read_text()))
    assert again == run.plan
    assert runs_of(tmp_path, "tiny") == []
    run.write_results(states(), "running")
    assert runs_of(tmp_path, "tiny") == [run.folder]


def test_live_results_show_the_last_change_though_they_are_written_rarely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_results, "SECONDS_BETWEEN", 0.05)
    run, now = plan_run(tmp_path), states()
    writes = []
    write = run.write_results
    monkeypatch.setattr(run, "write_results", lambda *arguments: writes.append(write(*arguments)))
    with LiveResults(run, now) as live:
        for _ in range(1000):
            live.note_change()
        now["student"].status = "failed"
        live.note_change()
        deadline = time.monotonic() + 30
        while not writes or read(run)["stages"]["student"]["status"] != "failed":
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert read(run)["status"] == "running"
    assert len(writes) < 100


def test_live_results_on_a_full_disk_stop_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run, failed = plan_run(tmp_path), threading.Event()

    def full(*arguments: Any) -> None:
        failed.set()
        raise StoreError("cannot write: No space left on device")

    monkeypatch.setattr(run, "write_results", full)
    with LiveResults(run, states()) as live:
        live.note_change()
        assert failed.wait(30)
        live.note_change()
    assert "No space left on device" in caplog.text


def test_a_report_is_copied_where_links_are_not_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: str, target: str) -> None:
        raise PermissionError(1, "Operation not permitted", source)

    monkeypatch.setattr("os.link", refuse)
    for name in ("old/report.html", "old/plots/a.png", "new/plan.yaml"):
        make_folder((tmp_path / name).parent)
        (tmp_path / name).write_text(name)
    copy_report(tmp_path / "old", tmp_path / "new")
    for name in ("plots/a.png", "report.html"):
        assert (tmp_path / "new" / name).read_text() == f"old/{name}"


def test_half_a_copied_report_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, target: str) -> None:
        raise PermissionError(1, "Operation not permitted", source)

    def fill(source: str, target: Path) -> None:
        target.write_text("half")
        raise OSError(28, "No space left on device")

    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    (tmp_path / "old" / "report.html").write_text("whole")
    monkeypatch.setattr("os.link", refuse)
    monkeypatch.setattr("shutil.copyfile", fill)
    with pytest.raises(StoreError, match="No space left on device"):
        copy_report(tmp_path / "old", tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())
