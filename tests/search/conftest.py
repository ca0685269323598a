"""Searches over small plans: with stages that only answer, through `--local`; and with real ones."""

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from raydistill import report, run_plan
from raydistill.cli import main
from raydistill.errors import StageError
from raydistill.execution import local_backend, run_stage
from raydistill.execution.survey import PlanSurvey
from raydistill.kinds.changes import during
from raydistill.kinds.distill import DistillConfig
from raydistill.plan.load import check_plan, read_source
from raydistill.plan.order import order_stages
from raydistill.runs.context import StageContext
from raydistill.runs.search_run import SearchRun, TrialRecord
from raydistill.runs.search_view import BestTrial, SearchFile, open_search
from raydistill.search import run_search
from raydistill.search.problem import SearchProblem, build_problem

BEST = 5.0
MLP = {"name": "mlp", "widths": [8]}


def answer(config: Any, context: StageContext) -> dict[str, float]:
    """Leave a line; a student is the better the nearer its temperature is to `BEST`, and fails below 1. It has ten
    parameters for each of its units.

    A file `interrupt` in the storage root is Ctrl-C in the student after the next.
    """
    with (context.root / "calls.txt").open("a") as stream:
        stream.write(f"{context.name}\n")
    context.path("output.txt").write_text(context.name)
    metrics = {}
    if isinstance(config, DistillConfig):
        method = during(config, config.trained_epochs - 1).method
        heat = getattr(method, "temperature", 1.0)
        if heat < 1:
            raise StageError("the loss is not finite at step 3")
        value = 1 - abs(heat - BEST) / 100 - config.seed / 1000
        for epoch in range(1, config.trained_epochs + 1):
            context.report(epoch, {"epoch": epoch, "validation/accuracy": value * epoch / config.epochs})
        metrics = {"validation/accuracy": value}
        context.parameters = 10 * sum(config.student.options["widths"])
        context.is_untested = not context.sees_test
        if context.sees_test:
            metrics["test/accuracy"] = value / 2
    return metrics


class Bench:
    """A plan with one teacher and one student, and one storage root."""

    def __init__(self, folder: Path, task: Mapping[str, Any], **student: Any) -> None:
        self.root, self.file = folder / "runs", folder / "plan.yaml"
        self.plan: dict[str, Any] = {
            "name": "p",
            "task": dict(task),
            "stages": {
                "teacher": {"stage": "train", "model": MLP, "epochs": 1, "batch_size": 32},
                "student": {
                    "stage": "distill",
                    "student": MLP,
                    "teachers": ["teacher"],
                    "epochs": 2,
                    "batch_size": 32,
                    **student,
                },
            },
        }

    def write(self, space: Mapping[str, Any], **options: Any) -> Path:
        """The plan with a search."""
        self.plan["search"] = {"space": space, "searcher": {"name": "random"}, **options}
        self.file.write_text(json.dumps(self.plan))
        return self.file

    def problem(self) -> SearchProblem:
        source = read_source(self.file)
        plan = check_plan(source)
        return build_problem(plan, order_stages(plan))

    def invoke(self, command: str, *options: str, file: Path | None = None) -> Result:
        return CliRunner().invoke(main, [command, str(file or self.file), "--runs", str(self.root), *options])

    def tune(self, space: Mapping[str, Any], *arguments: str, **options: Any) -> Result:
        self.write(space, **options)
        return self.invoke("tune", *arguments)

    @property
    def run(self) -> SearchRun:
        problem = self.problem()
        return SearchRun(self.root, problem.plan.name, problem.fingerprint)

    def trials(self) -> list[TrialRecord]:
        return self.run.trials()

    def search(self) -> SearchFile:
        return open_search(self.run.folder, self.root).about

    @property
    def best(self) -> BestTrial:
        best = self.search().best
        assert best is not None
        return best

    @property
    def calls(self) -> list[str]:
        path = self.root / "calls.txt"
        return path.read_text().split() if path.exists() else []

    def results(self, plan_name: str) -> dict[str, Any]:
        """Of the last run of a plan."""
        files = self.root.glob(f"plans/{plan_name}/*/results.json")
        newest = max(files, key=lambda path: path.stat().st_mtime_ns)
        values: dict[str, Any] = json.loads(newest.read_text())
        return values


@pytest.fixture
def untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither MLflow nor reports."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    driver = importlib.import_module("driver")
    for module in (run_plan, run_search):
        monkeypatch.setattr(module, "Mirror", driver.NoTracking)
    monkeypatch.setattr(run_search, "write_report_of", lambda run: None)
    monkeypatch.setattr(report, "write_report", driver.write_nothing)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, untracked: None) -> Bench:
    """Stages that only answer."""
    monkeypatch.setattr(run_stage, "load_object", lambda path: answer)
    monkeypatch.setattr(run_stage, "_set_threads", lambda request: None)
    monkeypatch.setattr(local_backend, "_device", lambda request: "cpu")
    for module in (run_plan, run_search):
        monkeypatch.setattr(module, "survey_plan", lambda *arguments: PlanSurvey())
    return Bench(tmp_path, {"name": "mnist"})


@pytest.fixture
def real_bench(tmp_path: Path, untracked: None) -> Callable[..., Bench]:
    """Stages that train on 600 samples of 8 numbers in 3 classes."""
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(600, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", inputs=inputs, labels=inputs[:, :3].argmax(axis=1))
    task = {"name": "tensors", "file": str(tmp_path / "data.npz")}
    return lambda **student: Bench(tmp_path, task, **student)
