"""Searches that weigh a metric against a cost: which trials no other beats, and what becomes of them."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from raydistill.cli import main
from raydistill.plan.search import SearchConfig
from raydistill.runs.inventory import StoredSearch
from raydistill.runs.search_run import TrialRecord, TrialStatus, front_of
from raydistill.runs.search_view import SearchView, open_search
from raydistill.search import latencies
from raydistill.search.suggestions import Suggestions

HEAT, WIDTHS = "student.method.temperature", "student.student.widths"
# Of ten parameters each unit: at 5 the student is best, so (16, 5) is beaten by (8, 5) in cost alone.
SPACE = {HEAT: {"choice": [5, 9, 20]}, WIDTHS: {"choice": [[4], [8], [16]]}}


def record_of(
    number: int, metric: float | None, cost: float | None, status: TrialStatus = "done"
) -> TrialRecord:
    return TrialRecord(
        id=f"{number:08x}",
        number=number,
        values={"student.seed": number},
        status=status,
        metric=metric,
        cost=cost,
    )


def slow_front(records: list[TrialRecord], mode: str) -> set[str]:
    """Of all pairs: who is as good in both and better in one beats the other."""

    def beats(one: Any, other: Any) -> bool:
        gain = one.metric - other.metric if mode == "max" else other.metric - one.metric
        saved = other.cost - one.cost
        return gain >= 0 and saved >= 0 and bool(gain > 0 or saved > 0)

    return {one.id for one in records if not any(beats(other, one) for other in records)}


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_what_no_other_beats(mode: str, seed: int) -> None:
    draw = random.Random(seed)
    # Few values, so that many trials are equal in one or in both.
    records = [record_of(number, draw.randint(0, 6) / 8, draw.randint(1, 7)) for number in range(1, 40)]
    front = front_of(records, mode)
    assert {record.id for record in front} == slow_front(records, mode)
    costs = [record.cost for record in front]
    assert costs == sorted(costs, key=float)  # type: ignore[arg-type]


def test_only_finished_trials_that_were_measured_are_in_front() -> None:
    records = [
        record_of(1, 0.5, 10),
        record_of(2, 0.9, 5, "stopped_early"),
        record_of(3, None, None, "failed"),
        record_of(4, 0.9, None),
        record_of(5, 0.4, 10),
    ]
    assert [record.number for record in front_of(records, "max")] == [1]
    assert front_of([], "max") == []


def view_of(bench: Any) -> SearchView:
    return open_search(bench.run.folder, bench.root)


def test_a_search_with_a_cost_ends_with_its_front(bench: Any) -> None:
    result = bench.tune(
        {HEAT: {"choice": [5, 9]}, WIDTHS: {"choice": [[4], [8]]}}, "--local", cost="parameters"
    )
    assert result.exit_code == 0, result.output
    trials = bench.trials()
    assert {tuple(trial.values[WIDTHS]): trial.cost for trial in trials} == {(4,): 40.0, (8,): 80.0}
    # At the same temperature the smaller student is as good: only the smallest of the best is left.
    (only,) = bench.search().front
    assert (only.values, only.metric, only.cost) == ({HEAT: 5, WIDTHS: [4]}, 1.0, 40.0)
    assert bench.best.values == only.values


def test_every_trial_of_the_front_has_a_plan_whose_training_is_there(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow_with_size(monkeypatch)
    assert bench.tune(SPACE, "--local", cost="parameters").exit_code == 0
    front = bench.search().front
    assert [(trial.values[WIDTHS], trial.values[HEAT]) for trial in front] == [([4], 5), ([8], 5), ([16], 5)]
    assert bench.best.trial == front[-1].trial, "the best metric is the winner"
    files = {path.stem for path in bench.run.front.glob("*.yaml")}
    assert files == {trial.trial for trial in front} == slow_front(bench.trials(), "max")
    smallest = bench.run.folder / front[0].plan
    stages = yaml.safe_load(smallest.read_text())["stages"]
    assert (stages["student"]["student"]["widths"], stages["student"]["method"]["temperature"]) == ([4], 5)
    dry = bench.invoke("run", "--dry-run", file=smallest)
    assert "to be judged on the test split" in dry.output
    trained = bench.calls.count("student")
    assert bench.invoke("run", "--local", file=smallest).exit_code == 0
    assert bench.calls.count("student") == trained + 1  # its judgement on the test split
    student = bench.results(f"p-trial-{front[0].number}")["stages"]["student"]
    assert student["metrics"]["test/accuracy"] == pytest.approx(front[0].metric / 2)


def test_the_stages_of_the_front_are_kept_and_of_others_not(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow_with_size(monkeypatch)
    bench.tune(SPACE, "--local", cost="parameters")
    kept = StoredSearch(bench.run.folder, view_of(bench)).kept_stages
    front = slow_front(bench.trials(), "max")
    stages = {
        trial.id: {folder.split("/")[-1] for folder in trial.stages.values()} for trial in bench.trials()
    }
    assert kept == set().union(*(stages[name] for name in front))
    assert len(kept) == 3


def test_more_samples_change_the_front_and_leave_no_plan_of_the_old_one(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow_with_size(monkeypatch)
    for samples in (1, 3, 9):
        assert bench.tune(SPACE, "--local", cost="parameters", samples=samples).exit_code == 0
        expected = slow_front(bench.trials(), "max")
        assert {trial.trial for trial in bench.search().front} == expected
        assert {path.stem for path in bench.run.front.glob("*.yaml")} == expected
        assert {trial.id for trial in view_of(bench).front()} == expected


def test_tables_name_the_front_and_its_plans(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    grow_with_size(monkeypatch)
    monkeypatch.setenv("COLUMNS", "300")
    printed = bench.tune(SPACE, "--local", cost="parameters").output
    assert re.search(
        r"front: no other trial beats these .*: trial \d \(40\), trial \d \(80\), trial \d \(160\)", printed
    )
    rows = [line.split() for line in printed.splitlines() if re.match(r" *\d+ +done ", line)]
    assert [row[-1] == "front" for row in rows] == [True] * 3 + [False] * 6
    name, runs = bench.run.folder.name, ("--runs", str(bench.root))
    shown = CliRunner().invoke(main, ["show", name, *runs], catch_exceptions=False).output
    front = shown.partition("front: ")[2].partition("trials")[0]
    assert [trial.plan in front for trial in bench.search().front] == [True] * 3
    values = json.loads(CliRunner().invoke(main, ["show", name, "--json", *runs]).output)
    assert [trial["cost"] for trial in values["front"]] == [40, 80, 160]


def test_a_search_that_is_run_again_has_the_same_front_and_runs_nothing(bench: Any) -> None:
    bench.tune(SPACE, "--local", cost="parameters")
    before, calls = (bench.trials(), bench.search().front), bench.calls
    assert bench.tune(SPACE, "--local", cost="parameters").exit_code == 0
    assert ((bench.trials(), bench.search().front), bench.calls) == (before, calls)


def test_the_cost_makes_another_search_and_none_the_same_as_ever(bench: Any) -> None:
    bench.write(SPACE)
    plain = bench.problem().fingerprint
    bench.write(SPACE, cost=None)
    assert bench.problem().fingerprint == plain
    found = {plain}
    for cost in ("parameters", "multiply_adds", "bytes", "latency"):
        bench.write(SPACE, cost=cost)
        found.add(bench.problem().fingerprint)
    assert len(found) == 5


def test_a_cost_that_cannot_be_counted_is_a_trial_that_failed(bench: Any) -> None:
    result = bench.tune(SPACE, "--local", cost="multiply_adds")
    assert result.exit_code == 1
    errors = {trial.error for trial in bench.trials()}
    assert errors == {"the multiply_adds of `student` could not be counted; search with another `cost`"}


def test_a_record_without_its_cost_is_damaged_and_its_values_are_tried_again(bench: Any) -> None:
    bench.tune(SPACE, "--local", cost="parameters")
    before = bench.trials()
    file = bench.run.folder / "trials" / f"{before[0].id}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"cost": None}))
    assert bench.tune(SPACE, "--local", cost="parameters").exit_code == 0
    assert {trial.id: trial.cost for trial in bench.trials()} == {trial.id: trial.cost for trial in before}


@pytest.mark.slow
def test_a_killed_search_ends_with_the_front_of_one_that_was_not(
    real_bench: Callable[..., Any], tmp_path: Path
) -> None:
    bench = real_bench(epochs=60)
    space = {f"{WIDTHS}.0": {"choice": [2, 4, 8, 16]}, HEAT: {"loguniform": [1, 20]}}
    bench.write(space, samples=4, cost="bytes")
    command = [sys.executable, str(Path(__file__).parent / "driver.py"), "tune", str(bench.file), "--local"]
    with subprocess.Popen([*command, "--runs", str(bench.root)], stderr=subprocess.DEVNULL) as process:
        try:
            while not is_in_the_midst(bench.trials()):
                assert process.poll() is None, "it ended before it could be killed"
                time.sleep(0.02)
        finally:
            process.kill()
    done = [trial for trial in bench.trials() if trial.status == "done"]
    assert bench.invoke("tune", "--local").exit_code == 0
    trials, front = bench.trials(), bench.search().front
    assert [trial for trial in trials if trial.id in {one.id for one in done}] == done
    bench.root = tmp_path / "elsewhere"
    assert bench.invoke("tune", "--local").exit_code == 0
    whole = bench.trials()
    assert [(one.values, one.metric, one.cost) for one in trials] == [
        (one.values, one.metric, one.cost) for one in whole
    ]
    assert bench.search().front == front
    # Four bytes for each parameter: 8 inputs, a bias and 3 outputs for each unit; the header differs by digits.
    sizes = {trial.values[f"{WIDTHS}.0"]: trial.cost for trial in whole}
    least = min(sizes)
    assert len(sizes) > 1
    for width, size in sizes.items():
        assert size - sizes[least] == pytest.approx(4 * 12 * (width - least), abs=32)


def is_in_the_midst(trials: list[TrialRecord]) -> bool:
    """One trial is over, and one trains."""
    running = any(trial.status == "running" and trial.epochs for trial in trials)
    return running and any(trial.status == "done" for trial in trials)


def timed(bench: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Latencies are milliseconds of widths; returns the names of the folders that are measured."""
    measured: list[str] = []

    def latency(folder: Path, root: Path) -> float:
        values = next(
            trial for trial in bench.trials() if f"stages/{folder.name}" in trial.stages.values()
        ).values
        assert not any(trial.status == "running" for trial in bench.trials())
        measured.append(folder.name)
        if len(measured) == 3 and (bench.root / "interrupt").exists():
            os.kill(os.getpid(), signal.SIGINT)
        return sum(values[WIDTHS]) / 1000

    monkeypatch.setattr(latencies, "latency_of", latency)
    return measured


@pytest.mark.parametrize("replicas", [1, 2])
def test_latencies_are_measured_once_each_when_no_trial_runs(
    bench: Any, monkeypatch: pytest.MonkeyPatch, replicas: int
) -> None:
    measured = timed(bench, monkeypatch)
    options: dict[str, Any] = {"cost": "latency", "seeds": replicas}
    result = bench.tune(SPACE, "--local", **options)
    assert result.exit_code == 0, result.output
    assert len(set(measured)) == len(measured) == 9
    assert {(*trial.values[WIDTHS], trial.cost) for trial in bench.trials()} == {
        (4, 0.004),
        (8, 0.008),
        (16, 0.016),
    }
    assert {trial.trial for trial in bench.search().front} == slow_front(bench.trials(), "max")
    assert bench.tune(SPACE, "--local", **options).exit_code == 0
    assert len(measured) == 9


def test_latencies_of_another_machine_are_measured_again(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = timed(bench, monkeypatch)
    bench.tune(SPACE, "--local", cost="latency")
    monkeypatch.setattr(latencies, "this_machine", lambda: "elsewhere")
    assert bench.tune(SPACE, "--local", cost="latency").exit_code == 0
    assert (len(measured), bench.search().machine) == (18, "elsewhere")


def test_measuring_that_was_interrupted_goes_on(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = timed(bench, monkeypatch)
    bench.root.mkdir()
    (bench.root / "interrupt").touch()
    assert bench.tune(SPACE, "--local", cost="latency").exit_code == 130
    assert len(measured) == 3
    assert bench.tune(SPACE, "--local", cost="latency").exit_code == 0
    assert len(set(measured)) == len(measured) == 9


def grow_with_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Larger students are better at the same temperature."""
    from raydistill.execution import run_stage

    plain = run_stage.load_object("")

    def answer(config: Any, context: Any) -> dict[str, float]:
        metrics: dict[str, float] = plain(config, context)
        if "validation/accuracy" in metrics:
            gain = config.student.options["widths"][0] / 1000
            metrics = {key: value + gain * (0.5 if "test" in key else 1) for key, value in metrics.items()}
        return metrics

    monkeypatch.setattr(run_stage, "load_object", lambda path: answer)


def test_tpe_with_a_cost_draws_near_the_front() -> None:
    """Accuracy is best at a temperature of 5, and grows with the width alone, which costs: of all temperatures those
    near 5 are in front, at every width."""
    space = {HEAT: {"loguniform": [1, 20]}, "student.width": {"log_integer": [4, 400]}}
    options = {"space": space, "samples": 200, "cost": "parameters"}

    def judged(values: dict[str, Any]) -> tuple[float, float]:
        width = values["student.width"]
        return 1 - abs(values[HEAT] - 5) / 20 - 1 / width, 100.0 * width

    def drawn(searcher: dict[str, Any], count: int) -> list[dict[str, Any]]:
        config = SearchConfig.model_validate(options | {"searcher": searcher})
        suggestions, found = Suggestions(config, [], "max"), []
        for _ in range(count):
            suggestion = suggestions.next()
            assert suggestion is not None
            metric, cost = judged(suggestion.values)
            record = record_of(suggestion.number, metric, cost)
            suggestions.tell(record.model_copy(update={"id": suggestion.id, "values": suggestion.values}))
            found.append(suggestion.values)
        return found

    learned = drawn({"name": "tpe", "seed": 1}, 80)[40:]
    blind = drawn({"name": "random", "seed": 1}, 80)[40:]
    distances = [sum(abs(values[HEAT] - 5) for values in found) / len(found) for found in (learned, blind)]
    assert distances[0] < 0.6 * distances[1]
    widths = [values["student.width"] for values in learned]
    assert min(widths) < 20, "both ends of the front are looked at"
    assert max(widths) > 100


def test_tpe_takes_up_a_search_with_failed_trials() -> None:
    config = SearchConfig.model_validate(
        {
            "space": {HEAT: {"uniform": [1, 20]}},
            "samples": 9,
            "cost": "bytes",
            "searcher": {"name": "tpe", "startup": 1},
        }
    )
    first = Suggestions(config, [], "min")
    records = []
    for number in range(1, 5):
        suggestion = first.next()
        assert suggestion is not None
        record = record_of(number, 0.5, 100.0) if number % 2 else record_of(number, None, None, "failed")
        records.append(record.model_copy(update={"id": suggestion.id, "values": suggestion.values}))
    again = Suggestions(config, records, "min")
    assert again.left == 5
    assert again.next() is not None
