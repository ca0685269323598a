"""Searches on a real, small Ray cluster: shared targets, failures, early stops, and a driver that is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from raydistill.runs.search_run import TrialRecord

pytestmark = pytest.mark.ray

HEAT, RATE = "student.method.temperature", "student.optimizer.learning_rate"
PATIENCE = 300.0


def attempts(root: Path, kind: str) -> int:
    """How often stages of a kind were begun in all."""
    logs = root.glob(f"stages/{kind}-*/log.txt")
    return sum(log.read_text().count("started (attempt") for log in logs)


def test_trials_share_one_teacher_and_give_the_numbers_of_a_plain_run(
    ray_cluster: None, real_bench: Callable[..., Any], tmp_path: Path
) -> None:
    bench = real_bench()
    result = bench.tune({HEAT: {"loguniform": [1, 20]}}, samples=3, concurrency=2)
    assert result.exit_code == 0, result.output
    assert [trial.status for trial in bench.trials()] == ["done"] * 3
    assert attempts(bench.root, "train") == attempts(bench.root, "predict_targets") == 1
    assert attempts(bench.root, "distill") == 4  # three trials, and the winner's judgement
    assert all(set(trial.epochs) == {1, 2} for trial in bench.trials())
    best = bench.best
    assert best.metric == max(trial.metric for trial in bench.trials())
    assert "test/accuracy" in best.metrics
    again = bench.invoke("run", file=bench.run.best_plan)
    assert again.exit_code == 0, again.output
    assert {entry["status"] for entry in bench.results("p-best")["stages"].values()} == {"cached"}
    assert attempts(bench.root, "distill") == 4

    best_plan, bench.root = bench.run.best_plan, tmp_path / "elsewhere"
    assert bench.invoke("run", "--local", file=best_plan).exit_code == 0
    assert bench.results("p-best")["stages"]["student"]["metrics"] == best.metrics


def test_a_trial_that_diverges_is_recorded_and_ends_nothing(
    ray_cluster: None, real_bench: Callable[..., Any]
) -> None:
    bench = real_bench()
    result = bench.tune({RATE: {"choice": [0.01, 1e30]}}, searcher={"name": "grid"})
    assert result.exit_code == 0, result.output
    good, bad = bench.trials()
    assert (good.status, bad.status) == ("done", "failed")
    assert "is not finite at step" in bad.error


def test_a_hopeless_trial_is_stopped_early_and_marked(
    ray_cluster: None, real_bench: Callable[..., Any]
) -> None:
    bench = real_bench(epochs=40)
    space = {RATE: {"choice": [0.3, 1e-9, 2e-9]}}
    scheduler = {"name": "asha", "grace": 2, "reduction": 2}
    result = bench.tune(space, searcher={"name": "grid"}, scheduler=scheduler, concurrency=1)
    assert result.exit_code == 0, result.output
    good, *hopeless = bench.trials()
    assert (good.status, len(good.epochs)) == ("done", 40)
    assert {trial.status for trial in hopeless} == {"stopped_early"}
    assert all(0 < len(trial.epochs) < 40 for trial in hopeless)
    assert all(trial.metric == trial.epochs[max(trial.epochs)] for trial in hopeless)
    assert bench.tune(space, searcher={"name": "grid"}, scheduler=scheduler).exit_code == 0
    assert bench.trials() == [good, *hopeless]


@contextmanager
def driver(bench: Any) -> Iterator["subprocess.Popen[bytes]"]:
    """`distill tune` in a process of its own, on a Ray cluster of its own."""
    here = Path(__file__).parent / "driver.py"
    command = [sys.executable, str(here), "tune", str(bench.file), "--runs", str(bench.root)]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def waited_for(bench: Any, claim: Callable[[list[TrialRecord]], bool]) -> list[TrialRecord]:
    """The trials as soon as the claim about them is true."""
    deadline = time.monotonic() + PATIENCE
    while not claim(trials := bench.trials()):
        assert time.monotonic() < deadline, trials
        time.sleep(0.05)
    return trials


def has_some_done_and_some_running(trials: list[TrialRecord]) -> bool:
    statuses = [trial.status for trial in trials]
    return "done" in statuses and any(trial.status == "running" and trial.epochs for trial in trials)


@pytest.mark.slow
def test_a_search_whose_driver_was_killed_goes_on_without_repeating_anything(
    ray_cluster: None, real_bench: Callable[..., Any]
) -> None:
    bench = real_bench(epochs=150)
    bench.write({HEAT: {"loguniform": [1, 20]}}, samples=6, concurrency=2)
    with driver(bench) as process:
        waited_for(bench, has_some_done_and_some_running)
        process.send_signal(signal.SIGKILL)
        process.wait()
    left = bench.trials()
    done = [trial for trial in left if trial.status == "done"]
    open_ones = [trial for trial in left if trial.status == "running"]
    assert done
    assert open_ones
    before = {trial.id: attempts_of(bench, trial) for trial in done}
    result = bench.invoke("tune")
    assert result.exit_code == 0, result.output
    after = {trial.id: trial for trial in bench.trials()}
    assert [after[trial.id] for trial in done] == done
    assert [trial.status for trial in after.values()] == ["done"] * 6
    assert {trial.number for trial in after.values()} == {1, 2, 3, 4, 5, 6}
    best = bench.best.trial
    assert all(attempts_of(bench, after[name]) == count + (name == best) for name, count in before.items())
    new = min(trial.started for trial in after.values() if trial.id not in {one.id for one in left})
    assert all(after[trial.id].started < new for trial in open_ones)
    assert attempts(bench.root, "train") == attempts(bench.root, "predict_targets") == 1


def attempts_of(bench: Any, trial: TrialRecord) -> int:
    (folder,) = trial.stages.values()
    return (bench.root / folder / "log.txt").read_text().count("started (attempt")


@pytest.mark.slow
def test_ctrl_c_leaves_checkpoints_and_the_next_search_continues_from_them(
    ray_cluster: None, real_bench: Callable[..., Any]
) -> None:
    bench = real_bench(epochs=400)
    bench.write({HEAT: {"loguniform": [1, 20]}}, samples=2, concurrency=2)
    with driver(bench) as process:
        waited_for(bench, lambda trials: len(trials) == 2 and all(len(trial.epochs) > 5 for trial in trials))
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
    stopped = bench.trials()
    assert {trial.status for trial in stopped} == {"interrupted"}
    assert json.loads((bench.run.folder / "search.json").read_text())["status"] == "interrupted"
    assert bench.invoke("tune").exit_code == 0
    assert [trial.status for trial in bench.trials()] == ["done", "done"]
    for trial in bench.trials():
        (folder,) = trial.stages.values()
        assert "resumed at step" in (bench.root / folder / "log.txt").read_text()
        assert set(trial.epochs) == set(range(1, 401))
