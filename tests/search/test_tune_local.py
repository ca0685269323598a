"""`distill tune --local` from the command line to the exit code, with stages that only answer."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from raydistill import run_plan
from raydistill.cli import main
from raydistill.errors import StageError
from raydistill.execution import run_stage
from raydistill.runs.folder import StageFolder
from raydistill.search import local_trials

HEAT = "student.method.temperature"
SPACE = {HEAT: {"choice": [2, 4, 5, 20]}}


def test_a_search_ends_with_the_best_plan_which_is_cached(bench: Any) -> None:
    result = bench.tune(SPACE, "--local")
    assert result.exit_code == 0, result.output
    assert bench.best.values == {HEAT: 5}
    assert bench.best.metrics["test/accuracy"] == 0.5
    calls = bench.calls
    again = bench.invoke("run", "--local", file=bench.run.best_plan)
    assert again.exit_code == 0, again.output
    assert bench.calls == calls
    student = bench.results("p-best")["stages"]["student"]
    assert (student["status"], student["metrics"]["test/accuracy"]) == ("cached", 0.5)


def test_the_best_plan_is_the_users_with_the_best_values(bench: Any) -> None:
    bench.tune(SPACE, "--local", seeds=2)
    best = yaml.safe_load(bench.run.best_plan.read_text())
    student = best["stages"]["student"]
    assert student.pop("method") == {
        **bench.problem().defaults["stages"]["student"]["method"],
        "temperature": 5,
    }
    assert student.pop("replicas") == 2
    assert student == bench.plan["stages"]["student"]
    assert best["stages"]["teacher"] == bench.plan["stages"]["teacher"]
    assert "search" not in best
    assert best["tracking"] == {"experiment": "p"}


def test_a_search_without_tracking_leaves_a_best_plan_without_it(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(run_plan, "Mirror")
    result = bench.tune(SPACE, "--local", "--no-tracking")
    assert result.exit_code == 0, result.output
    for plan in (bench.run.best_plan, bench.run.folder / "plan.yaml"):
        assert yaml.safe_load(plan.read_text())["tracking"] == "none"


def test_what_trials_share_runs_once_and_trials_see_no_test_split(bench: Any) -> None:
    bench.tune(SPACE, "--local")
    assert bench.calls.count("teacher") == bench.calls.count("teacher.targets") == 1
    assert bench.calls.count("student") == 5  # four trials, and the winner's judgement
    tested = [
        "test/accuracy" in StageFolder(bench.root / folder).done_record().metrics
        for trial in bench.trials()
        for folder in trial.stages.values()
    ]
    best = [trial.values == {HEAT: 5} for trial in bench.trials()]
    assert tested == best


def test_a_run_of_the_plan_judges_a_trial_that_it_meets(bench: Any) -> None:
    bench.tune(SPACE, "--local")
    bench.plan["stages"]["student"]["method"] = {"method": "hinton", "temperature": 20}
    bench.file.write_text(json.dumps(bench.plan))
    dry = bench.invoke("run", "--dry-run")
    assert "to be judged on the test split" in dry.output
    assert bench.invoke("run", "--local").exit_code == 0
    student = bench.results("p")["stages"]["student"]
    assert student["metrics"]["test/accuracy"] == pytest.approx(0.425)
    assert bench.invoke("run", "--local").exit_code == 0
    assert bench.results("p")["stages"]["student"]["status"] == "cached"


def test_a_second_search_runs_nothing_and_more_samples_only_more(bench: Any) -> None:
    space = {HEAT: {"uniform": [1, 20]}}
    bench.tune(space, "--local", samples=3)
    first, calls = bench.trials(), bench.calls
    assert bench.tune(space, "--local", samples=3).exit_code == 0
    assert (bench.trials(), bench.calls) == (first, calls)
    bench.tune(space, "--local", samples=5)
    assert bench.trials()[:3] == first
    assert [trial.number for trial in bench.trials()] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "change", [{"samples": 2}, {"time_budget": "1h"}, {"concurrency": 3}, {"scheduler": {"name": "none"}}]
)
def test_how_long_and_where_is_no_part_of_a_search(bench: Any, change: dict[str, Any]) -> None:
    bench.write(SPACE)
    before = bench.problem().fingerprint
    bench.write(SPACE, **change)
    assert bench.problem().fingerprint == before


@pytest.mark.parametrize(
    "change",
    [{"seeds": 2}, {"metric": "student.validation/loss"}, {"mode": "min"}, {"searcher": {"name": "tpe"}}],
)
def test_what_is_searched_makes_a_search(bench: Any, change: dict[str, Any]) -> None:
    bench.write(SPACE)
    before = bench.problem().fingerprint
    bench.write(SPACE, **change)
    assert bench.problem().fingerprint != before


def test_a_trial_that_fails_is_recorded_and_ends_nothing(bench: Any) -> None:
    result = bench.tune({HEAT: {"choice": [0.5, 3]}}, "--local")
    assert result.exit_code == 0
    errors = {trial.values[HEAT]: trial.error for trial in bench.trials()}
    assert errors == {0.5: "the loss is not finite at step 3", 3: None}


def test_a_search_of_which_all_trials_fail_has_failed(bench: Any) -> None:
    result = bench.tune({HEAT: {"choice": [0.5, 0.25]}}, "--local")
    assert result.exit_code == 1
    assert bench.search().status == "failed"
    assert not bench.run.best_plan.exists()


def test_values_that_do_not_go_together_are_a_trial_that_failed(bench: Any) -> None:
    space = {
        "student.method.soft_weight": {"choice": [0, 1]},
        "student.method.hard_weight": {"choice": [0, 1]},
    }
    bench.plan["stages"]["student"]["method"] = {"method": "hinton", "soft_weight": 1, "hard_weight": 1}
    assert bench.tune(space, "--local").exit_code == 0
    (failed,) = [trial for trial in bench.trials() if trial.status == "failed"]
    assert set(failed.values.values()) == {0}
    assert "both 0" in failed.error


def test_several_seeds_are_judged_by_their_mean(bench: Any) -> None:
    bench.tune({HEAT: {"choice": [5, 9]}}, "--local", seeds=3)
    metrics = {trial.values[HEAT]: trial.metric for trial in bench.trials()}
    assert metrics == pytest.approx({5: 1 - 0.001, 9: 0.96 - 0.001})
    epochs = {trial.values[HEAT]: trial.epochs for trial in bench.trials()}
    assert epochs[5] == pytest.approx({1: 0.4995, 2: 0.999})
    assert {len(trial.stages) for trial in bench.trials()} == {3}


def test_targets_of_all_teachers_that_may_be_chosen_are_made_before_the_trials(bench: Any) -> None:
    bench.plan["stages"]["teacher"]["replicas"] = 3
    space = {
        "student.teachers": {"choice": [["teacher.0"], ["teacher.1", "teacher.2"], ["teacher"]]},
        "student.combine.rule": {"choice": ["arithmetic", "geometric"]},
        HEAT: {"choice": [4, 5]},
    }
    assert bench.tune(space, "--local").exit_code == 0
    first_trial = bench.calls.index("student")
    before, after = bench.calls[:first_trial], bench.calls[first_trial:]
    assert sorted(call for call in before if call.startswith("teacher.") and call.count(".") == 2) == [
        "teacher.0.targets",
        "teacher.1.targets",
        "teacher.2.targets",
    ]
    assert set(after) == {"student"}
    assert len(bench.trials()) == 12


def test_an_interrupted_search_goes_on(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = local_trials.run_trial

    def interrupting(*arguments: Any, **options: Any) -> Any:
        if len(bench.trials()) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(local_trials, "run_trial", interrupting)
        result = bench.tune(SPACE, "--local")
    assert result.exit_code == 130, result.output
    assert "goes on from here" in result.output
    assert "report:" not in result.output, "there is none"
    before = bench.trials()
    assert [trial.status for trial in before] == ["done", "interrupted"]
    assert not bench.run.stop_file.exists()
    sessions = [bench.search().seconds]
    again = bench.tune(SPACE, "--local")
    assert again.exit_code == 0
    sessions.append(bench.search().seconds)
    in_all, now = sessions[1], sessions[1] - sessions[0]
    assert f"done in {now:.1f} s ({in_all:.1f} s with earlier sessions): 4 trials" in again.output
    after = bench.trials()
    assert after[0] == before[0]
    assert (after[1].number, after[1].values, after[1].status) == (2, before[1].values, "done")
    assert len(after) == 4


def test_a_shared_stage_that_fails_ends_the_search_before_its_trials(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(config: Any, context: Any) -> dict[str, float]:
        raise StageError("the teacher has a fault")

    monkeypatch.setattr(run_stage, "load_object", lambda path: broken)
    result = bench.tune(SPACE, "--local")
    assert result.exit_code == 1
    assert "a stage that all trials share failed, so none was tried: `teacher`: the teacher has a fault" in (
        result.stderr
    )
    assert bench.search().status == "failed"


def test_a_student_that_cannot_be_trained_is_found_before_its_teacher_is(
    real_bench: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "searched_nets.py").write_text(
        "from torch import nn\ndef build(num_classes): return nn.Linear(8, 9)"
    )
    monkeypatch.syspath_prepend(tmp_path)
    bench = real_bench(student={"name": "searched_nets:build"})
    result = bench.tune(SPACE, "--local")
    assert result.exit_code == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert "error: `student`: model `searched_nets:build` gives 9 outputs" in line
    assert not (bench.root / "stages").exists()
    assert bench.search().status == "failed"


def test_a_time_budget_that_is_over_ends_with_the_best_so_far(bench: Any) -> None:
    bench.tune(SPACE, "--local", samples=2)
    result = bench.tune(SPACE, "--local", time_budget="0s")
    assert result.exit_code == 0
    assert len(bench.trials()) == 2


def test_a_dry_run_says_what_is_searched_and_starts_nothing(bench: Any) -> None:
    result = bench.tune(SPACE | {"student.seed": {"integer": [1, 1000]}}, "--dry-run", samples=7)
    assert result.exit_code == 0, result.output
    assert "7 trials of 4,000 points by `random`" in result.output
    assert "shared by all trials: 2 stages, 2 to run; trials: 0 finished, 7 to run" in result.output
    assert not bench.root.exists()


def test_a_large_grid_is_asked_about(bench: Any) -> None:
    space = {"student.seed": {"integer": [1, 1000]}, "teacher.seed": {"integer": [1, 1000]}}
    result = bench.tune(space, "--local", searcher={"name": "grid"})
    assert result.exit_code == 2
    assert "the grid has 1,000,000 points; add `--yes` to try them all" in result.stderr
    few = bench.tune(space, "--local", searcher={"name": "grid"}, samples=1)
    assert few.exit_code == 0, few.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--force", "student"], "--force student: it depends on what is searched"),
        (["--only", "nobody"], "--only nobody: the plan has no such stage"),
        (["--set", "search.scheduler.name=asha"], "`asha` stops trials that run side by side"),
        (["--set", "search.space.x={choice: [1]}"], "the plan has no stage `x`"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(bench: Any, arguments: list[str], message: str) -> None:
    bench.write(SPACE)
    result = bench.invoke("tune", "--local", *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr


def test_a_search_as_json_is_all_of_stdout(bench: Any) -> None:
    bench.write(SPACE, samples=2)
    before = json.loads(bench.invoke("tune", "--local", "--dry-run", "--json").stdout)
    assert (before["trials"], before["left"]) == (2, 2)
    assert {stage["state"] for stage in before["shared"]} == {"new"}
    after = json.loads(bench.invoke("tune", "--local", "--json").stdout)
    assert (after["status"], len(after["trials"])) == ("done", 2)
    assert after["best"]["values"] == json.loads(json.dumps(bench.best.values))


def test_run_ignores_the_search(bench: Any) -> None:
    bench.write(SPACE)
    first = bench.problem().graph.nodes["student"].fingerprint
    assert bench.invoke("run", "--local").exit_code == 0
    assert bench.results("p")["stages"]["student"]["fingerprint"] == first


@pytest.mark.parametrize("file", sorted(Path("configs/search").glob("*.yaml")), ids=str)
def test_every_search_that_we_ship_can_be_planned(file: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["tune", str(file), "--dry-run", "--runs", str(tmp_path)])
    if "finds no" in result.stderr:
        pytest.skip("the task's files are not on this machine")
    assert result.exit_code == 0, result.output
