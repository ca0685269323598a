"""Tracking against folders as runs leave them, and MLflow databases copied from one that is made once."""

import base64
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy
import torch
import yaml
from built_runs import START, BuiltRun, BuiltSearch, begin_stage, fingerprint_of, finish_stage
from mlflow import MlflowClient
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache as artifact_repositories
from safetensors.torch import save_file

from raydistill.errors import DistillError
from raydistill.inference_cost import InferenceCost, Latency
from raydistill.models.build import build_model
from raydistill.runs.bucket import Bucket
from raydistill.runs.folder import StageFolder
from raydistill.runs.mirror import open_storage
from raydistill.tracking import Mirror, exported_model, mirror, own_store, store, sync
from raydistill.tracking import background as background_module
from raydistill.tracking import students as students_module
from raydistill.tracking.costs import track_costs
from raydistill.tracking.parent import signatures
from raydistill.tracking.server import problem_of
from raydistill.tracking.session import GivenUp
from raydistill.tracking.state import read_state

# MLflow 3.17 still uses a loader strategy that SQLAlchemy 2.1 wants to drop; both are theirs.
pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
    ),
    # MLflow's own classes for agents, met when `mlflow.pyfunc` is imported.
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]

NOWHERE = "http://127.0.0.1:9"


# --- folders as a run leaves them -----------------------------------------------------------------------------------


class Runs:
    """A storage root, its tracking store, and words to write and read them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = own_store.own_uri(root)
        root.mkdir()

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.uri)

    def stage(self, name: str, kind: str = "train", **config: Any) -> Path:
        """The folder of a stage that has begun."""
        return begin_stage(self.root, name, kind, {"name": "digits"}, config or {"epochs": 3}).path

    def record(self, folder: Path, error: str | None = None, accuracy: float = 0.75, **more: Any) -> None:
        """Say how the stage ended, after eight seconds."""
        metrics = {"validation/accuracy": accuracy, "test/accuracy": 0.5, "test/errors": 5.0}
        told = {"metrics": {} if error else metrics, "parameters": 42, "seconds": 8.0, "finished": START + 8}
        finish_stage(StageFolder(folder), error=error, **told | more)

    def run(
        self, run_id: str, status: str = "done", /, plan: str = "p", tracking: Any = None, **stages: Any
    ) -> Path:
        """`stages`: name → status, or (status, role, reads). Whoever wants records writes them before."""
        run = BuiltRun(self.root, {"name": "digits"}, plan=plan, run_id=run_id, tracking=tracking)
        for name, told in stages.items():
            state, role, reads = told if isinstance(told, tuple) else (told, "teacher", [])
            kind = "distill" if role in ("student", "assistant") else "train"
            error = "the loss is NaN" if state == "failed" else None
            run.stage(name, kind, role=role, reads=reads, status=state, error=error, is_recorded=False)
        return run.write(status)

    def runs(self) -> dict[str, Any]:
        """MLflow's runs by name; a name that comes twice fails the test."""
        client = self.client
        ids = [experiment.experiment_id for experiment in client.search_experiments()]
        found = list(client.search_runs(ids))
        names = [run.info.run_name for run in found]
        assert len(names) == len(set(names))
        return dict(zip(names, found, strict=True))

    def curve(self, stage: str, key: str) -> list[tuple[int, float]]:
        """(step, value) of every point of a metric, doubles included."""
        run_id = self.runs()[stage].info.run_id
        return sorted((point.step, point.value) for point in self.client.get_metric_history(run_id, key))


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def lines(*steps: int, at: float = START, key: str = "train/loss") -> str:
    """Lines of a metrics.jsonl; the value tells the step, the time tells the writing."""
    return "".join(json.dumps({"step": step, "time": at + step / 7, key: step / 10}) + "\n" for step in steps)


def points(*steps: int) -> list[tuple[int, float]]:
    return [(step, step / 10) for step in steps]


@pytest.fixture
def runs(tmp_path: Path, tracking_database: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    made = Runs(tmp_path / "runs")
    shutil.copy(tracking_database, made.root / "mlflow.db")
    return made


# --- what is shown --------------------------------------------------------------------------------------------------


def test_importing_tracking_does_not_import_mlflow() -> None:
    code = "import sys, raydistill.tracking; print('mlflow' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_stage_is_a_child_of_its_plan_run_with_its_config_as_params(runs: Runs) -> None:
    config = {"epochs": 3, "student": {"name": "mlp", "options": {"widths": [30, 30]}}, "clip_norm": None}
    config["teachers"] = [{"input": fingerprint_of("teacher")}]
    runs.record(runs.stage("teacher"))
    runs.record(runs.stage("student", "distill", **config))
    # Its role is not `student`: nothing is to be exported here.
    graph = runs.run("r1", teacher="done", student=("done", "assistant", ["teacher"]))

    result = mirror(graph, runs.root)

    assert result.is_complete
    assert result.problem is None
    found = runs.runs()
    assert found["r1"].info.run_id == result.run_id
    assert {found[name].data.tags["mlflow.parentRunId"] for name in ("teacher", "student")} == {result.run_id}
    assert found["student"].data.params == {
        "epochs": "3",
        "student.name": "mlp",
        "student.options.widths": "[30, 30]",
        "clip_norm": "null",
        "teachers": '["teacher"]',
        "task": "digits",
    }
    tags = found["student"].data.tags
    assert tags["fingerprint"] == fingerprint_of("student")
    assert tags["reads.teacher"] == fingerprint_of("teacher")
    assert (tags["kind"], tags["role"], tags["git_commit"]) == ("distill", "assistant", "c0ffee")
    assert found["r1"].data.metrics["teacher/test/accuracy"] == 0.5
    assert found["student"].info.end_time - found["student"].info.start_time == 8000
    assert {run.info.status for run in found.values()} == {"FINISHED"}


def test_the_data_of_a_stage_is_a_data_set_with_its_sizes(runs: Runs) -> None:
    for name in ("teacher", "student"):
        runs.record(runs.stage(name))
    folder = runs.run("r1", teacher="done", student=("done", "assistant", ["teacher"]))
    plan = yaml.safe_load((folder / "plan.yaml").read_text())
    (folder / "plan.yaml").write_text(
        yaml.safe_dump({**plan, "task": {"name": "digits", "folder": "/data/birds"}})
    )
    mirror(folder, runs.root)
    inputs = [runs.runs()[name].inputs.dataset_inputs for name in ("teacher", "student")]
    assert [len(found) for found in inputs] == [1, 1]
    (teacher,), (student,) = inputs
    assert teacher.dataset == student.dataset
    assert teacher.dataset.name == "digits birds"
    assert json.loads(teacher.dataset.profile) == {"num_classes": 10, "train": 3600, "test": 1000}
    assert json.loads(teacher.dataset.source)["task"]["folder"] == "/data/birds"
    assert [(tag.key, tag.value) for tag in teacher.tags] == [("mlflow.data.context", "training")]


def test_other_samples_are_another_data_set(runs: Runs) -> None:
    for name in ("first", "second"):
        folder = runs.stage(name)
        identity = json.loads((folder / "config.json").read_text())
        identity["task"]["content"] = name
        write(folder / "config.json", identity)
        runs.record(folder)
    mirror(runs.run("r1", first="done", second="done"), runs.root)
    found = [runs.runs()[name].inputs.dataset_inputs[0].dataset for name in ("first", "second")]
    assert found[0].name == found[1].name
    assert found[0].digest != found[1].digest


def test_a_student_names_its_teachers_and_leads_to_their_runs(runs: Runs) -> None:
    for name in ("teacher", "middle", "student"):
        runs.record(runs.stage(name))
    runs.record(runs.stage("teacher.targets", "predict_targets"))
    mirror(runs.run("r0", teacher="done"), runs.root)
    trained_in = runs.runs()["teacher"].info
    stages = {
        "teacher.targets": ("done", "targets", ["teacher"]),
        "middle": ("done", "assistant", ["teacher.targets"]),
        "student": ("done", "baseline", ["middle"]),
    }
    mirror(runs.run("r1", teacher="cached", **stages), runs.root)
    tags = {name: run.data.tags for name, run in runs.runs().items()}
    assert "teachers" not in tags["teacher"]
    assert tags["middle"]["teachers"] == "teacher"
    assert tags["student"]["teachers"] == "middle, teacher"
    address = f"#/experiments/{trained_in.experiment_id}/runs/{trained_in.run_id}"
    assert f"[teacher]({address}" in tags["student"]["mlflow.note.content"]
    assert tags["student"]["mlflow.note.content"].startswith("Reads [middle](#/experiments/")


def test_a_run_is_called_by_its_day_and_time(runs: Runs) -> None:
    runs.record(runs.stage("teacher"))
    mirror(runs.run("20261126-120503-1f0c", teacher="done"), runs.root)
    mirror(
        runs.run("20261126-120504-2a0c", plan="q", tracking={"experiment": "all"}, teacher="cached"),
        runs.root,
    )
    assert {"2026-11-26 12:05:03 1f0c", "q 2026-11-26 12:05:04 2a0c"} <= set(runs.runs())


def test_how_stages_ended_shows_in_their_status(runs: Runs) -> None:
    runs.record(runs.stage("good"))
    runs.record(runs.stage("bad"), "the loss is NaN", traceback="Traceback: here")
    (runs.stage("halted") / "metrics.jsonl").write_text(lines(1))
    folder = runs.run(
        "r1", "failed", good="done", bad="failed", halted="stopped", later="skipped", never="waiting"
    )
    mirror(folder, runs.root)
    found = runs.runs()
    assert {name: run.info.status for name, run in found.items()} == {
        "r1": "FAILED",
        "good": "FINISHED",
        "bad": "FAILED",
        "halted": "KILLED",
    }
    assert found["bad"].data.tags["error"] == "the loss is NaN"
    assert "Traceback: here" in found["bad"].data.tags["mlflow.note.content"]


def test_a_cached_stage_is_linked_to_the_run_that_trained_it(runs: Runs) -> None:
    runs.record(runs.stage("teacher"))
    mirror(runs.run("r1", teacher="done", plan="first"), runs.root)
    mirror(runs.run("r2", teacher="cached", lost="cached", plan="second"), runs.root)
    found = runs.runs()
    assert len(found) == 3
    assert found["r2"].data.tags["cached.teacher"] == found["teacher"].info.run_id
    assert "not in this store" in found["r2"].data.tags["cached.lost"]


def test_a_store_that_is_new_shows_cached_stages_below_the_run_that_found_them(
    runs: Runs, tmp_path: Path, tracking_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(students_module, "export", lambda folders, give_up: dict.fromkeys(folders, "no"))
    teacher = runs.stage("teacher")
    (teacher / "metrics.jsonl").write_text(lines(1, 2, 3))
    runs.record(teacher)
    write_student(runs, "student", {"name": "mlp", "options": {"widths": [8]}})
    assert mirror(runs.run("r1", teacher="done"), runs.root).is_complete
    shutil.copy(tracking_database, tmp_path / "other.db")
    runs.uri = f"sqlite:///{tmp_path / 'other.db'}"
    again = runs.run("r2", teacher="cached", student=("cached", "student", ["teacher"]))
    for _ in range(2):
        assert mirror(again, runs.root, runs.uri).is_complete
    found = runs.runs()
    assert sorted(found) == ["r2", "student", "teacher"]
    parent = found["r2"].info.run_id
    assert {found[name].data.tags["mlflow.parentRunId"] for name in ("teacher", "student")} == {parent}
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert runs.curve("teacher", "train/loss") == points(1, 2, 3)
    assert found["teacher"].info.end_time == int((START + 8) * 1000)
    assert "runs/" + found["teacher"].info.run_id in found["r2"].data.tags["mlflow.note.content"]
    kept = runs.client.list_artifacts(found["student"].info.run_id, "model/student")
    assert [Path(file.path).name for file in kept] == ["model.json", "model.safetensors"]
    assert mirror(runs.run("r3", teacher="cached"), runs.root, runs.uri).is_complete
    assert runs.runs()["r3"].data.tags["cached.teacher"] == found["teacher"].info.run_id


def test_sync_fills_a_new_store_with_all_that_the_root_knows_once(
    runs: Runs, tmp_path: Path, tracking_database: Path
) -> None:
    (runs.stage("teacher") / "metrics.jsonl").write_text(lines(1, 2))
    runs.record(runs.stage("teacher"))
    first = runs.run("20260102-1", plan="z", teacher="done")
    assert mirror(first, runs.root).is_complete
    assert mirror(runs.run("20260103-1", plan="a", teacher="cached"), runs.root).is_complete
    BuiltSearch(runs.root, {}, plan="z")
    shutil.copy(tracking_database, tmp_path / "other.db")
    before, runs.uri = runs.uri, f"sqlite:///{tmp_path / 'other.db'}"
    sent = ["z/20260102-1", "a/20260103-1", "searches/z-0123456789ab"]
    assert list(sync(runs.root, runs.uri)) == [f"{name} → {runs.uri}" for name in sent]
    assert list(sync(runs.root, runs.uri)) == []
    found = runs.runs()
    assert found["teacher"].data.tags["mlflow.parentRunId"] == found["20260102-1"].info.run_id
    assert runs.curve("teacher", "train/loss") == points(1, 2)
    runs.uri = before  # back to the first store, which has the two plan runs: nothing comes twice
    assert len(list(sync(runs.root, runs.uri))) == 3
    assert sorted(runs.runs()) == ["20260102-1", "20260103-1", "teacher", "z"]
    assert runs.curve("teacher", "train/loss") == points(1, 2)


def test_replicas_are_compared_by_mean_and_deviation(runs: Runs) -> None:
    run = BuiltRun(runs.root, plan="p", run_id="r1")
    for index, accuracy in enumerate((0.5, 0.7)):
        run.stage(f"t.{index}", metrics={"test/accuracy": accuracy})
    mirror(run.write(), runs.root)
    # The deviations are -0.1 and 0.1; their squares sum to 0.02, over n - 1 = 1.
    told = runs.runs()["r1"].data.metrics
    assert told == pytest.approx({"t/test/accuracy": 0.6, "t/test/accuracy/std": 0.02**0.5})


def test_plan_results_report_and_plots_are_artifacts(runs: Runs) -> None:
    folder = runs.run("r1")
    (folder / "report.html").write_text("old")
    (folder / "plots").mkdir()
    (folder / "plots" / "curves.png").write_bytes(b"picture")
    result = mirror(folder, runs.root)
    kept = runs.root / "mlartifacts" / str(result.run_id) / "artifacts"
    shown = sorted(str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file())
    assert shown == ["plan.yaml", "plots/curves.png", "report.html", "results.json"]
    (folder / "report.html").write_text("drawn again")
    mirror(folder, runs.root)
    assert (kept / "report.html").read_text() == "drawn again"


def artifacts_of(runs: Runs, name: str) -> list[str]:
    run_id = runs.runs()[name].info.run_id
    return [file.path for file in runs.client.list_artifacts(run_id)]


COST = InferenceCost(
    name="student",
    parameters=7,
    multiply_adds=11,
    bytes=28,
    latencies=(Latency("torch", 32, 1, p50=0.25, p95=0.5, runs=9),),
    peak_bytes={"torch": 4096},
)


def test_what_cost_measures_stands_beside_what_the_stage_counted(runs: Runs) -> None:
    runs.record(runs.stage("student", "distill"))
    folder = runs.run("r1", student=("done", "student", []))
    mirror(folder, runs.root)
    assert track_costs(folder, [COST, replace(COST, name="stranger")]) == 1
    shown = runs.runs()["student"].data.metrics
    expected = {
        "parameters": 7,
        "cost/multiply_adds": 11,
        "cost/bytes": 28,
        "cost/latency/torch/batch_32/threads_1/p50": 0.25,
        "cost/latency/torch/batch_32/threads_1/p95": 0.5,
        "cost/latency/torch/peak_bytes": 4096,
    }
    assert {key: shown[key] for key in expected} == expected


def test_costs_of_a_run_that_is_not_tracked_or_whose_store_is_gone_are_not_missed(
    runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    folder = runs.run("r1", student=("done", "student", []))
    assert track_costs(folder, [COST]) == 0
    mirror(folder, runs.root)
    state = read_state(folder)
    assert state is not None
    state.tracking_uri = NOWHERE
    state.save(folder)
    caplog.clear()
    assert track_costs(folder, [COST]) == 0
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said.startswith("tracking: the costs are not logged: ")
    assert "nobody answers" in said


class BehindUrl(Runs):
    """The same behind a URL."""

    def __init__(self, url: str, database: Path) -> None:
        self.root = open_storage(url)
        self.uri = own_store.own_uri(self.root)
        shutil.copy(database, self.root / own_store.DATABASE)


def test_behind_a_url_artifacts_lie_in_the_bucket_beside_the_results(
    storage_url: str, tracking_database: Path
) -> None:
    runs = BehindUrl(storage_url, tracking_database)
    folder = runs.run("r1")
    (folder / "report.html").write_text("drawn")
    result = mirror(folder, runs.root)
    assert result.is_complete, result.problem
    below = f"mlartifacts/{result.run_id}/artifacts/"
    bucket = Bucket(storage_url)
    assert {"plan.yaml", "report.html", "results.json"} <= {
        key.removeprefix(below) for key in bucket.listing(below)
    }
    held = bucket.read(f"{below}report.html")
    assert held is not None
    assert held.content == b"drawn"
    assert not (runs.root / "mlartifacts").exists()
    assert "report.html" in artifacts_of(runs, "r1")


def test_where_mlflow_cannot_write_to_the_bucket_artifacts_stay_here_and_it_is_said_once(
    storage_url: str,
    tracking_database: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(own_store, "find_spec", lambda module: None)
    runs = BehindUrl(storage_url, tracking_database)
    first = mirror(runs.run("r1"), runs.root)
    assert mirror(runs.run("r2"), runs.root).is_complete
    assert (runs.root / "mlartifacts" / str(first.run_id) / "artifacts/plan.yaml").is_file()
    said = [record.getMessage() for record in caplog.records if "stay on this machine" in record.getMessage()]
    assert len(said) == 1
    assert said[0].endswith("MLflow writes to `s3://` by `boto3`: `pip install boto3`")


@pytest.mark.parametrize("way", ["moved", "copied"])
def test_a_root_that_was_moved_takes_its_artifacts_along(runs: Runs, way: str, tmp_path: Path) -> None:
    first = runs.run("r1")
    mirror(first, runs.root)
    shutil.copytree(runs.root, tmp_path / "else where" / "runs")
    before = sorted(path.name for path in runs.root.rglob("*"))
    if way == "moved":
        shutil.rmtree(runs.root)
    artifact_repositories.clear()  # MLflow looks a run's place up once per process
    moved = Runs.__new__(Runs)
    moved.root, moved.uri = (place := tmp_path / "else where" / "runs"), own_store.own_uri(place)
    moved.run("r1").joinpath("report.html").write_text("drawn again")
    assert list(sync(moved.root)) == [f"p/r1 → {moved.uri}"]
    mirror(moved.run("r2"), moved.root)
    assert [artifacts_of(moved, name) for name in ("r1", "r2")] == [
        ["plan.yaml", "report.html", "results.json"],
        ["plan.yaml", "results.json"],
    ]
    assert sorted(path.name for path in runs.root.rglob("*")) == (before if way == "copied" else [])
    assert "else" in moved.runs()["r1"].info.artifact_uri


@pytest.mark.parametrize("name", ["runs?v=1", "a%20b", "a#b", "a b", "ü;x&y", "50%"])
def test_a_root_of_any_name_holds_its_own_store(name: str, tmp_path: Path, tracking_database: Path) -> None:
    (tmp_path / "in").mkdir()
    runs = Runs(tmp_path / "in" / name)
    shutil.copy(tracking_database, runs.root / "mlflow.db")
    assert mirror(runs.run("r1"), runs.root).is_complete
    assert artifacts_of(runs, "r1") == ["plan.yaml", "results.json"]
    assert not store.is_missing(runs.uri)
    assert [path.name for path in (tmp_path / "in").iterdir()] == [name]
    assert {path.name for path in runs.root.iterdir()} >= {"mlflow.db", "mlartifacts"}


def test_places_that_are_not_those_of_a_root_stay(runs: Runs) -> None:
    places = ["s3://bucket/mlartifacts", "file:///elsewhere/files"]
    for place in places:
        runs.client.create_experiment(place.replace("/", ""), artifact_location=place)
    mirror(runs.run("r1"), runs.root)
    kept = {found.artifact_location for found in runs.client.search_experiments()}
    assert kept >= {*places, (runs.root / "mlartifacts").as_uri()}


def test_the_plan_names_the_experiment(runs: Runs) -> None:
    result = mirror(runs.run("r1", tracking={"experiment": "everything"}), runs.root)
    assert runs.client.get_experiment_by_name("everything").experiment_id == result.experiment_id
    assert list(runs.runs()) == ["p r1"]


def test_names_and_values_that_mlflow_refuses_are_made_acceptable(runs: Runs) -> None:
    folder = runs.stage("teacher", note="x" * 9000, **{"odd + key": 1})
    (folder / "metrics.jsonl").write_text(lines(1, key="targets/kl/a+b"))
    runs.record(folder)
    assert mirror(runs.run("r1", teacher=("done", "teacher", [])), runs.root).problem is None
    params = runs.runs()["teacher"].data.params
    assert params["odd _ key"] == "1"
    assert params["note"] == "x" * 6000
    assert runs.curve("teacher", "targets/kl/a_b") == points(1)


# --- curves ---------------------------------------------------------------------------------------------------------


def test_a_growing_file_becomes_one_curve(runs: Runs) -> None:
    metrics = runs.stage("teacher") / "metrics.jsonl"
    folder = runs.run("r1", "running", teacher="running")
    for content in (lines(1, 2), lines(1, 2, 3), lines(1, 2, 3, 4)[:-5], lines(1, 2, 3, 4, 5)):
        metrics.write_text(content)
        assert mirror(folder, runs.root).problem is None
    assert runs.curve("teacher", "train/loss") == points(1, 2, 3, 4, 5)
    assert runs.runs()["teacher"].info.status == "RUNNING"


@pytest.mark.parametrize("first_step_again", [1, 4, 6])
@pytest.mark.parametrize("last_step", [7, 9, 14])
def test_steps_that_a_resumed_stage_reports_again_are_sent_once(
    runs: Runs, first_step_again: int, last_step: int
) -> None:
    metrics = runs.stage("teacher") / "metrics.jsonl"
    folder = runs.run("r1", "running", teacher="running")
    metrics.write_text(lines(*range(1, 9)))
    mirror(folder, runs.root)
    kept, again = range(1, first_step_again), range(first_step_again, last_step + 1)
    # The second writing has shorter times, so that the old offset lies inside a line.
    metrics.write_text(lines(*kept) + lines(*again, at=1e6))
    mirror(folder, runs.root)
    assert runs.curve("teacher", "train/loss") == points(*range(1, max(last_step, 8) + 1))


def test_metrics_of_one_step_may_come_in_several_lines(runs: Runs) -> None:
    metrics = runs.stage("teacher") / "metrics.jsonl"
    folder = runs.run("r1", "running", teacher="running")
    metrics.write_text(lines(1, 2))
    mirror(folder, runs.root)
    metrics.write_text(lines(1, 2) + lines(2, key="validation/accuracy"))
    mirror(folder, runs.root)
    assert runs.curve("teacher", "validation/accuracy") == points(2)


def test_a_curve_longer_than_a_batch_arrives_whole(runs: Runs) -> None:
    folder = runs.stage("teacher")
    (folder / "metrics.jsonl").write_text(lines(*range(2500)))
    runs.record(folder)
    mirror(runs.run("r1", teacher="done"), runs.root)
    assert runs.curve("teacher", "train/loss") == points(*range(2500))
    assert runs.curve("teacher", "test/accuracy") == [(2499, 0.5)]


# --- interruptions --------------------------------------------------------------------------------------------------


class Flaky:
    """A client whose every call fails the first time: before it reaches the store, or after, with the answer lost."""

    def __init__(self, client: Any, failed: set[str], *, reaches: bool) -> None:
        self.client, self.failed, self.reaches = client, failed, reaches

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            what = f"{name}{args}{sorted(kwargs)}{kwargs.get('tags')}{kwargs.get('metrics')}{kwargs.get('params')}"
            what = re.sub(r"raydistill-\w+", "temporary folder", what)
            if what in self.failed:
                return getattr(self.client, name)(*args, **kwargs)
            self.failed.add(what)
            if self.reaches:
                getattr(self.client, name)(*args, **kwargs)
            raise ConnectionError(name)

        return call


def write_two_stages(runs: Runs) -> Path:
    for name, kind in (("teacher", "train"), ("assistant", "distill")):
        folder = runs.stage(name, kind)
        (folder / "metrics.jsonl").write_text(lines(*range(1200)))
        (folder / "log.txt").write_text("done")
        runs.record(folder)
    return runs.run("r1", teacher="done", assistant=("done", "assistant", ["teacher"]), other="cached")


def shown(runs: Runs) -> dict[str, Any]:
    """All that MLflow shows but for ids."""
    seen = {}
    for name, run in runs.runs().items():
        told = {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")}
        curves = {key: runs.curve(name, key) for key in run.data.metrics}
        seen[name] = (run.info.status, run.data.params, told, curves)
    return seen


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tracking_database: Path) -> dict[str, Any]:
    calm = Runs(tmp_path_factory.mktemp("calm") / "runs")
    shutil.copy(tracking_database, calm.root / "mlflow.db")
    assert mirror(write_two_stages(calm), calm.root, calm.uri).is_complete
    return shown(calm)


@pytest.mark.parametrize("reaches", [False, True])
def test_a_push_that_dies_at_every_single_call_delivers_everything_once(
    runs: Runs, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch, reaches: bool
) -> None:
    failed: set[str] = set()
    real = store.open_client
    monkeypatch.setattr(
        store, "open_client", lambda uri, root: Flaky(real(uri, root), failed, reaches=reaches)
    )
    folder = write_two_stages(runs)
    pushes = 1
    while not mirror(folder, runs.root).is_complete:
        pushes += 1
        assert pushes < 100
    assert pushes > 15
    assert shown(runs) == undisturbed


@pytest.mark.parametrize("reaches", [False, True])
def test_a_student_is_logged_and_registered_once_though_every_call_dies(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, reaches: bool
) -> None:
    def export(folders: Mapping[Path, Path], give_up: threading.Event) -> dict[Path, None]:
        for target in folders:
            target.mkdir()
            (target / "MLmodel").write_text("what an export leaves")
        return dict.fromkeys(folders)

    failed: set[str] = set()
    real = store.open_client
    monkeypatch.setattr(
        store, "open_client", lambda uri, root: Flaky(real(uri, root), failed, reaches=reaches)
    )
    monkeypatch.setattr(students_module, "export", export)
    runs.record(runs.stage("student", "distill"))
    folder = runs.run("r1", tracking={"register_student_as": "digits"}, student=("done", "student", []))
    pushes = 1
    while not mirror(folder, runs.root).is_complete:
        pushes += 1
        assert pushes < 100
    experiment = runs.client.get_experiment_by_name("p").experiment_id
    models = runs.client.search_logged_models([experiment])
    assert [(model.name, str(model.status)) for model in models] == [("student", "READY")]
    assert [metric.value for metric in models[0].metrics if metric.key == "test/accuracy"] == [0.5]
    assert len(runs.client.search_model_versions("name = 'digits'")) == 1
    assert runs.curve("student", "test/accuracy") == [(0, 0.5)]


@pytest.mark.parametrize("error", [None, "ValueError: no"])
def test_a_student_that_was_exported_where_it_was_trained_is_not_exported_again(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, error: str | None
) -> None:
    monkeypatch.delattr(students_module, "export")
    stage = runs.stage("student", "distill")
    (stage / "model.json").write_text("{}")
    runs.record(stage)
    folder = runs.run("r1", student=("done", "student", []))
    target = exported_model(folder, "student")
    target.mkdir(parents=True)
    (target / "MLmodel").write_text("what an export leaves")
    write(target.with_name("student.json"), {"error": error})
    assert mirror(folder, runs.root).is_complete
    experiment = runs.client.get_experiment_by_name("p").experiment_id
    models = runs.client.search_logged_models([experiment])
    assert [model.name for model in models] == ([] if error else ["student"])
    assert not target.parent.exists()


def test_a_batch_whose_arrival_nobody_saw_is_not_doubled_by_a_resumed_stage(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = runs.stage("teacher") / "metrics.jsonl"
    folder = runs.run("r1", "running", teacher="running")
    metrics.write_text(lines(1))
    mirror(folder, runs.root)
    metrics.write_text(lines(1, 2, 3))
    real = store.open_client
    monkeypatch.setattr(store, "open_client", lambda uri, root: Flaky(real(uri, root), set(), reaches=True))
    assert mirror(folder, runs.root).problem == "ConnectionError: log_batch"
    monkeypatch.undo()
    metrics.write_text(lines(1) + lines(2, 3, 4, at=START + 500))
    mirror(folder, runs.root)
    assert runs.curve("teacher", "train/loss") == points(1, 2, 3, 4)


def test_what_was_sent_is_found_again_when_the_notes_are_lost(
    runs: Runs, undisturbed: dict[str, Any]
) -> None:
    folder = write_two_stages(runs)
    mirror(folder, runs.root)
    (folder / "tracking.json").write_text("{ torn")
    later = "".join(lines(*range(1200), at=START + 900))
    for metrics in runs.root.glob("stages/*/metrics.jsonl"):
        metrics.write_text(later)
    assert mirror(folder, runs.root).is_complete
    assert shown(runs) == undisturbed


def test_a_finished_run_is_not_sent_again(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_two_stages(runs)
    first = mirror(folder, runs.root)
    results = json.loads((folder / "results.json").read_text())
    write(folder / "results.json", {**results, "mlflow": {"run_id": first.run_id}})
    monkeypatch.setattr(store, "open_client", lambda uri, root: pytest.fail("the store was asked"))
    assert mirror(folder, runs.root) == first
    assert list(sync(runs.root)) == []


def test_a_run_deleted_in_mlflow_stays_deleted(runs: Runs) -> None:
    folder = write_two_stages(runs)
    result = mirror(folder, runs.root)
    runs.client.delete_run(result.run_id)
    (folder / "report.html").write_text("new")
    assert mirror(folder, runs.root).is_complete
    assert "r1" not in runs.runs()
    assert list(sync(runs.root)) == []


def test_a_stage_deleted_in_mlflow_does_not_hold_up_the_others(runs: Runs) -> None:
    first, second = (runs.stage(name) / "metrics.jsonl" for name in ("first", "second"))
    folder = runs.run("r1", "running", first="running", second="running")
    mirror(folder, runs.root)
    runs.client.delete_run(runs.runs()["first"].info.run_id)
    for metrics in (first, second):
        metrics.write_text(lines(1))
    assert mirror(folder, runs.root).problem is None
    assert runs.curve("second", "train/loss") == points(1)


def test_an_emptied_store_is_filled_anew(runs: Runs, tracking_database: Path) -> None:
    folder = runs.stage("teacher")
    (folder / "metrics.jsonl").write_text(lines(1, 2))
    mirror(runs.run("r1", "running", teacher="running"), runs.root)
    shutil.copy(tracking_database, runs.root / "empty.db")
    plan_run = runs.run("r1", teacher="done")
    runs.record(folder)
    runs.uri = f"sqlite:///{runs.root}/empty.db"
    state = json.loads((plan_run / "tracking.json").read_text())
    write(plan_run / "tracking.json", {**state, "tracking_uri": runs.uri})
    assert mirror(plan_run, runs.root, runs.uri).is_complete
    assert sorted(runs.runs()) == ["r1", "teacher"]
    assert runs.curve("teacher", "train/loss") == points(1, 2)


# --- stores that do not answer --------------------------------------------------------------------------------------


def test_an_unreachable_server_costs_little_and_sync_delivers_later(
    runs: Runs, undisturbed: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_two_stages(runs)
    started = time.monotonic()
    result = mirror(folder, runs.root, NOWHERE)
    assert time.monotonic() - started < 5
    assert result.problem is not None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert list(sync(runs.root, runs.uri)) == [f"p/r1 → {runs.uri}"]
    assert shown(runs) == undisturbed
    assert list(sync(runs.root)) == []


def test_sync_goes_where_the_run_was_meant_for_and_says_when_it_cannot(runs: Runs) -> None:
    mirror(write_two_stages(runs), runs.root, NOWHERE)
    with pytest.raises(DistillError, match=f"p/r1 could not be sent to `{NOWHERE}`"):
        list(sync(runs.root))
    assert runs.runs() == {}


def test_one_run_that_cannot_be_sent_does_not_hold_up_the_others(runs: Runs) -> None:
    experiment = runs.client.create_experiment("gone")
    runs.client.delete_experiment(experiment)
    runs.run("r1", plan="a", tracking={"experiment": "gone"})
    runs.run("r2", plan="b")
    lines_sent = sync(runs.root)
    assert next(lines_sent) == f"b/r2 → {runs.uri}"
    with pytest.raises(DistillError, match="`gone` was deleted in MLflow"):
        next(lines_sent)


def test_the_environment_names_the_store_and_passwords_are_not_written_down(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    folder = runs.run("r1")
    assert mirror(folder, runs.root).tracking_uri == "http://***@127.0.0.1:9"
    assert "secret" not in (folder / "tracking.json").read_text()


def test_a_run_or_search_without_tracking_is_sent_by_nobody(runs: Runs) -> None:
    runs.record(runs.stage("teacher"))
    folder = runs.run("r1", tracking="none", teacher="done")
    search = BuiltSearch(runs.root, {}, plan="p")
    (search.folder / "plan.yaml").write_text("name: p\ntracking: none\n")
    assert list(sync(runs.root)) == []
    assert runs.runs() == {}
    assert not (folder / "tracking.json").exists()


def test_sync_closes_the_runs_of_a_dead_driver(runs: Runs) -> None:
    (runs.stage("teacher") / "metrics.jsonl").write_text(lines(1, 2))
    runs.run("r1", "running", teacher="running")
    assert len(list(sync(runs.root))) == 1
    assert {run.info.status for run in runs.runs().values()} == {"KILLED"}
    assert runs.curve("teacher", "train/loss") == points(1, 2)


# --- beside a running plan ------------------------------------------------------------------------------------------


def wait_until(is_so: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def quick_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background_module, "PERIOD", 0.05)


@pytest.mark.usefixtures("quick_mirror")
def test_the_mirror_shows_a_stage_while_it_runs_and_sync_leaves_it_alone(runs: Runs) -> None:
    metrics = runs.stage("teacher") / "metrics.jsonl"
    folder = runs.run("r1", "running", teacher="running")
    mirroring = Mirror(folder, runs.root)
    mirroring.start()
    wait_until(lambda: "teacher" in runs.runs())
    assert list(sync(runs.root)) == []
    metrics.write_text(lines(1, 2, 3))
    runs.record(metrics.parent)
    runs.run("r1", teacher="done")
    result = mirroring.finish()
    assert result.is_complete
    assert runs.curve("teacher", "train/loss") == points(1, 2, 3)
    assert mirroring.description()["run_id"] == runs.runs()["r1"].info.run_id


def test_a_mirror_that_is_hurried_waits_for_nothing(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background_module, "PERIOD", 3600.0)
    folder = runs.run("r1", "running", teacher="running")
    mirroring = Mirror(folder, runs.root)
    mirroring.start()
    wait_until(lambda: "r1" in runs.runs() and mirroring.result.run_id is not None)
    runs.record(runs.stage("teacher"))
    runs.run("r1", teacher="done")
    mirroring.hurry()
    wait_until(lambda: mirroring.result.is_complete)
    assert mirroring.finish().is_complete


@pytest.mark.usefixtures("quick_mirror")
def test_the_mirror_sends_what_an_earlier_run_could_not(runs: Runs) -> None:
    runs.run("r1", plan="earlier")
    mirroring = Mirror(runs.run("r2"), runs.root)
    mirroring.start()
    mirroring.finish()
    assert sorted(runs.runs()) == ["r1", "r2"]


@pytest.mark.usefixtures("quick_mirror")
def test_a_run_that_repeats_a_tracked_one_is_not_a_second_run_in_mlflow(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.record(runs.stage("teacher"))
    first = runs.run("r1", teacher="done")
    assert mirror(first, runs.root).is_complete
    again = runs.run("r2", teacher="cached")
    mirroring = Mirror(again, runs.root)
    assert mirroring.has_sent(first)
    monkeypatch.setattr(background_module, "import_mlflow", lambda: pytest.fail("MLflow was imported"))
    mirroring.adopt(first)
    mirroring.finish()
    assert mirroring.description()["run_id"] == runs.runs()["r1"].info.run_id
    assert list(sync(runs.root)) == []
    assert sorted(runs.runs()) == ["r1", "teacher"]


@pytest.mark.usefixtures("quick_mirror")
def test_a_run_stands_for_itself_when_the_one_before_is_not_all_in_this_store(
    runs: Runs, tmp_path: Path
) -> None:
    first = runs.run("r1", teacher="failed")
    assert not Mirror(first, runs.root).has_sent(first), "never sent"
    assert mirror(first, runs.root).is_complete
    mirroring = Mirror(runs.run("r2", teacher="cached"), runs.root)
    assert not Mirror(first, runs.root, NOWHERE).has_sent(first), "another store"
    (first / "report.html").write_text("made later")
    assert not mirroring.has_sent(first), "sent without its report"
    mirroring.adopt(first)
    mirroring.finish()
    assert sorted(runs.runs()) == ["r1", "r2", "teacher"]
    assert mirror(first, runs.root).is_complete
    (runs.root / "mlflow.db").unlink()
    assert not Mirror(first, runs.root).has_sent(first), "the database was deleted"


@pytest.mark.usefixtures("quick_mirror")
def test_models_of_earlier_runs_do_not_hold_up_the_end_of_a_quick_run(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export_for_ever(folders: Mapping[Path, Path], give_up: threading.Event) -> None:
        give_up.wait(60)
        raise GivenUp("another time")

    monkeypatch.setattr(students_module, "export", export_for_ever)
    runs.record(runs.stage("student", "distill"))
    runs.run("r1", plan="earlier", student=("done", "student", []))
    mirroring = Mirror(runs.run("r2"), runs.root)
    mirroring.start()
    started = time.monotonic()
    assert mirroring.finish(30).is_complete
    assert time.monotonic() - started < 15
    assert sorted(runs.runs()) == ["r1", "r2", "student"]
    monkeypatch.setattr(students_module, "export", lambda folders, give_up: dict.fromkeys(folders, "no"))
    assert list(sync(runs.root)) == [f"earlier/r1 → {runs.uri}"]


@pytest.mark.usefixtures("quick_mirror")
def test_a_store_that_hangs_delays_the_end_no_longer_than_allowed(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answer = threading.Event()
    real = store.open_client

    def open_slowly(uri: str, root: Path) -> Any:
        answer.wait(60)
        return real(uri, root)

    monkeypatch.setattr(store, "open_client", open_slowly)
    mirroring = Mirror(runs.run("r1"), runs.root)
    mirroring.start()
    started = time.monotonic()
    assert not mirroring.finish(0.2).is_complete
    assert time.monotonic() - started < 5
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    answer.set()
    wait_until(lambda: list(sync(runs.root)) != [])
    assert sorted(runs.runs()) == ["r1"]


@pytest.mark.slow
@pytest.mark.usefixtures("quick_mirror")
def test_what_takes_longer_than_the_plan_waits_is_sent_by_a_process_that_stays(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answer = threading.Event()

    def open_slowly(uri: str, root: Path) -> Any:
        answer.wait(60)
        raise OSError("only in this process")

    monkeypatch.setattr(store, "open_client", open_slowly)
    runs.record(runs.stage("teacher"))
    folder = runs.run("r1", teacher="done")
    mirroring = Mirror(folder, runs.root)
    mirroring.start()
    assert not mirroring.finish(0.2, "in background").is_complete
    (told,) = caplog.records
    assert "goes on in the background" in told.getMessage()
    assert "wait" in told.getMessage()
    assert runs.runs() == {}, "this process holds the lock"
    answer.set()
    wait_until(lambda: "all is sent" in (folder / "tracking.log").read_text(), 120)
    assert sorted(runs.runs()) == ["r1", "teacher"]
    assert list(sync(runs.root)) == []


@pytest.fixture
def refusing_server() -> Iterator[Callable[[int], str]]:
    """Starts a server that answers everything with this status; returns its address."""
    started: list[http.server.HTTPServer] = []

    def start(status: int) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                login = base64.b64encode(b"me:right").decode()
                is_known = self.headers.get("Authorization") == f"Basic {login}"
                self.send_response(200 if is_known else status)
                self.end_headers()
                self.wfile.write(b"{}")

            do_POST = do_GET  # noqa: N815

            def log_message(self, *_: Any) -> None:
                return

        started.append(http.server.HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=started[-1].serve_forever, daemon=True).start()
        return f"http://me:wrong@127.0.0.1:{started[-1].server_port}"

    yield start
    for one in started:
        one.shutdown()
        one.server_close()


@pytest.fixture
def no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of whoever runs the tests."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("USERNAME", "PASSWORD", "TOKEN", "AUTH"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)


@pytest.mark.usefixtures("quick_mirror", "no_login")
@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "error 401; write its user and password"), (403, "--allowed-hosts"), (404, "an MLflow server?")],
)
def test_a_server_that_refuses_us_is_named_at_once_and_once(
    runs: Runs,
    refusing_server: Callable[[int], str],
    caplog: pytest.LogCaptureFixture,
    status: int,
    words: str,
) -> None:
    uri = refusing_server(status)
    mirroring = Mirror(runs.run("r1"), runs.root, uri)
    mirroring.check()
    wait_until(lambda: bool(caplog.records), 5.0)
    mirroring.start()
    mirroring.finish()
    (told,) = [record.getMessage() for record in caplog.records]
    assert words in told
    assert "wrong" not in told
    with pytest.raises(DistillError, match=re.escape(words)):
        list(sync(runs.root, uri))


@pytest.mark.usefixtures("no_login")
def test_a_login_from_the_environment_counts_and_one_that_only_mlflow_knows_is_left_to_it(
    refusing_server: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = refusing_server(401).replace("me:wrong@", "")
    assert "401" in str(problem_of(uri))
    monkeypatch.setenv("MLFLOW_TRACKING_AUTH", "plugin")
    assert problem_of(uri) is None
    monkeypatch.delenv("MLFLOW_TRACKING_AUTH")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "right")
    assert problem_of(uri) is None


@pytest.mark.parametrize("uri", [NOWHERE, "http://no-such-host.invalid:5000"])
def test_a_host_that_is_not_there_is_named_with_the_reason(uri: str) -> None:
    assert f"nobody answers at `{uri}`" in str(problem_of(uri))


def test_a_database_that_refuses_is_asked_twice_and_not_for_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def refuse(uri: str) -> Any:
        asked.append(uri)
        return sqlalchemy.create_engine("sqlite:////proc/no/such/folder/x.db")

    monkeypatch.setattr("mlflow.store.db.utils.create_sqlalchemy_engine", refuse)
    started = time.monotonic()
    with pytest.raises(Exception, match="unable to open database file"):
        store.open_client("postgresql://me:wrong@127.0.0.1:9/x", tmp_path)
    assert time.monotonic() - started < 5
    assert len(asked) == 2


@pytest.mark.usefixtures("quick_mirror")
def test_a_store_that_stays_away_is_told_of_once(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[str] = []
    real = store.open_client

    def open_and_count(uri: str, root: Path) -> Any:
        asked.append(uri)
        return real(uri, root)

    monkeypatch.setattr(store, "open_client", open_and_count)
    mirroring = Mirror(runs.run("r1"), runs.root, NOWHERE)
    mirroring.start()
    wait_until(lambda: len(asked) > 3)
    mirroring.finish()
    assert len(caplog.records) == 1
    assert mirroring.description() == {"tracking_uri": NOWHERE, "experiment_id": None, "run_id": None}


@pytest.mark.slow
def test_two_drivers_make_a_new_store_at_once_without_a_word(tmp_path: Path) -> None:
    new = Runs(tmp_path / "runs")
    code = "import sys; from pathlib import Path; from raydistill.tracking import mirror\n"
    code += "sys.exit(0 if mirror(Path(sys.argv[1]), Path(sys.argv[2])).is_complete else 1)"
    folders = [new.run(name, plan=name) for name in ("r1", "r2")]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW")}
    drivers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder), str(new.root)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        for folder in folders
    ]
    assert [driver.communicate()[0] for driver in drivers] == [b"", b""]
    assert [driver.returncode for driver in drivers] == [0, 0]
    assert sorted(new.runs()) == ["r1", "r2"]


# --- students -------------------------------------------------------------------------------------------------------

NOT_EXPORTABLE = """
from torch import nn

class Moody(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.linear = nn.Linear(16, classes)

    def forward(self, inputs):
        values = self.linear(inputs.flatten(1))
        return values if values.sum() > 0 else -values

def build(num_classes):
    return Moody(num_classes)
"""


def write_student(runs: Runs, name: str, model: Mapping[str, Any], accuracy: float = 0.9) -> torch.nn.Module:
    folder = runs.stage(name, "distill")
    torch.manual_seed(len(name))
    network = build_model(model["name"], model["options"], (1, 4, 4), 3)
    save_file(network.state_dict(), folder / "model.safetensors")
    description = {"model": model, "num_classes": 3, "input_shape": [1, 4, 4], "class_names": ["a", "b", "c"]}
    write(
        folder / "model.json",
        {**description, "mean": [[[0.25]]], "std": [[[0.5]]], "task": {"name": "digits"}},
    )
    runs.record(folder, accuracy=accuracy, payload=("model.safetensors", "model.json"))
    return network.eval()


@pytest.fixture
def students(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> torch.nn.Module:
    """Two students of one plan run, mirrored: `good`, and `moody`, whose forward depends on the data."""
    (tmp_path / "moody_model.py").write_text(NOT_EXPORTABLE)
    monkeypatch.syspath_prepend(str(tmp_path))
    good = write_student(runs, "good", {"name": "mlp", "options": {"widths": [8]}})
    write_student(runs, "moody", {"name": "moody_model:build", "options": {}}, accuracy=0.8)
    tracking = {"register_student_as": "digits"}
    student = {"good": ("done", "student", []), "moody": ("done", "student", [])}
    result = mirror(runs.run("r1", tracking=tracking, **student), runs.root)
    assert result.problem is None
    assert result.is_complete
    assert "`moody` is not logged as a model" in caplog.text
    return good


@pytest.mark.slow
def test_students_are_logged_as_models_or_as_weights_and_the_best_is_registered(
    runs: Runs, students: torch.nn.Module
) -> None:
    from mlflow.models import get_model_info
    from mlflow.pyfunc import load_model

    found = runs.runs()
    output = found["good"].outputs.model_outputs[0]
    model = runs.client.get_logged_model(output.model_id)
    assert (model.name, str(model.status)) == ("good", "READY")
    assert {metric.key: metric.value for metric in model.metrics}["test/accuracy"] == 0.5

    # A local folder, read directly: nothing global of MLflow is touched.
    folder = model.artifact_location.removeprefix("file://")
    signature = get_model_info(folder).signature
    assert signature.inputs.inputs[0].shape == (-1, 1, 4, 4)
    assert signature.outputs.inputs[0].shape == (-1, 3)
    raw = np.random.default_rng(3).random((7, 1, 4, 4), dtype=np.float32)
    with torch.no_grad():
        ours = students((torch.from_numpy(raw) - 0.25) / 0.5).softmax(dim=1).numpy()
    np.testing.assert_allclose(load_model(folder).predict(raw), ours, atol=1e-6)

    kept = runs.root / "mlartifacts" / found["moody"].info.run_id / "artifacts" / "model" / "moody"
    assert sorted(path.name for path in kept.iterdir()) == ["model.json", "model.safetensors"]

    again = {"good": ("cached", "student", []), "moody": ("cached", "student", [])}
    mirror(runs.run("r2", tracking={"register_student_as": "digits"}, **again), runs.root)
    mirror(runs.run("r3", tracking={"register_student_as": "late"}, **again), runs.root)
    for name in ("digits", "late"):
        versions = runs.client.search_model_versions(f"name = '{name}'")
        assert [(version.version, version.tags["stage"]) for version in versions] == [(1, "good")]
        assert versions[0].source == model.artifact_location


def test_a_plot_that_is_still_being_written_is_not_sent(tmp_path: Path) -> None:
    (tmp_path / "plots").mkdir()
    for name in ("comparison.png", ".comparison.png.8addba93.tmp"):
        (tmp_path / "plots" / name).write_bytes(b"png")
    assert list(signatures(tmp_path)) == ["plots/comparison.png"]
