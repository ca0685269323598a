"""A stage that may not see the test split: what it lacks, and that completing it equals an undisturbed run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raydistill.execution.local_backend import LocalBackend
from raydistill.execution.scheduler import run_stages
from raydistill.plan.order import order_stages
from raydistill.plan.schema import Plan
from raydistill.runs.folder import StageFolder
from raydistill.runs.record import Record

PEERS = {"stage": "train_peers", "peers": [{"name": "mlp", "widths": [8]}, {"name": "mlp", "widths": [6]}]}


@pytest.fixture
def run(real_bench: Callable[..., Any], tmp_path: Path) -> Callable[..., tuple[str, StageFolder, Record]]:
    """Run a stage of a plan without Ray; returns its outcome, its folder and its record."""
    bench = real_bench(early_stopping={"patience": 1}, epochs=4)
    values = bench.plan | {"stages": bench.plan["stages"] | {"peers": PEERS | {"epochs": 2}}}
    values["stages"]["judged"] = {"stage": "evaluate", "models": ["student"]}
    plan = Plan.model_validate(values)
    graph = order_stages(plan)

    def run(name: str, folder: str = "runs", **options: bool) -> tuple[str, StageFolder, Record]:
        root = tmp_path / folder
        part = graph.needed_for([name])
        states = run_stages(part, LocalBackend(), task=plan.task, root=root, **options)
        stage = StageFolder(root / graph.nodes[name].folder)
        return states[name].status, stage, stage.done_record()

    return run


@pytest.mark.parametrize("name", ["student", "peers"])
def test_nothing_of_the_test_split_is_in_a_trial(run: Callable[..., Any], name: str) -> None:
    _, folder, record = run(name, sees_test=False)
    assert record.untested
    assert "validation/accuracy" in record.metrics
    assert not [metric for metric in record.metrics if metric.startswith("test/")]
    assert "predictions-test.safetensors" not in record.payload
    assert not (folder.path / "predictions-test.safetensors").exists()


@pytest.mark.parametrize("name", ["student", "peers"])
def test_a_completed_trial_is_an_undisturbed_run_without_training(run: Callable[..., Any], name: str) -> None:
    _, folder, before = run(name, sees_test=False)
    curve = (folder.path / "metrics.jsonl").read_bytes()
    status, folder, completed = run(name)
    _, _, undisturbed = run(name, "elsewhere")
    assert status == "done"
    assert (folder.path / "metrics.jsonl").read_bytes() == curve
    assert "resumed at step" in (folder.path / "log.txt").read_text()
    assert (completed.metrics, completed.payload) == (undisturbed.metrics, undisturbed.payload)
    assert completed.costs == before.costs
    assert completed.seconds >= before.seconds
    assert not (folder.path / "checkpoint").exists()
    assert run(name)[0] == "cached"


def test_a_trial_is_content_with_what_lacks_the_test_split_and_with_what_does_not(
    run: Callable[..., Any],
) -> None:
    run("student", sees_test=False)
    assert run("student", sees_test=False)[0] == "cached"
    run("student")
    assert run("student", sees_test=False)[0] == "cached"


def test_who_reads_a_trial_waits_for_its_judgement(run: Callable[..., Any]) -> None:
    run("student", sees_test=False)
    _, _, judged = run("judged")
    assert not run("student")[2].untested
    assert judged.metrics["test/accuracy"] == run("student")[2].metrics["test/accuracy"]
