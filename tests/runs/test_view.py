"""What is read of runs and searches, whole and damaged."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built_runs import START, BuiltRun, BuiltSearch, fingerprint_of, made_up_predictions

from raydistill.errors import StoreError
from raydistill.plan.order import order_stages
from raydistill.plan.schema import Plan
from raydistill.runs.plan_run import NodeState, PlanRun, node_roles
from raydistill.runs.search_view import open_search, searches
from raydistill.runs.view import RunView, open_run, open_stage, runs_of

MODEL = {"name": "mlp", "widths": [4]}
STAGES: dict[str, Any] = {
    "teacher": {"stage": "train", "model": MODEL, "epochs": 1, "replicas": 2},
    "student": {"stage": "distill", "student": MODEL, "teachers": ["teacher"], "epochs": 1},
    "shifted": {"stage": "adjust_class_bias", "model": "student", "classes": [0]},
}
DAMAGED = [
    "",
    "{",
    "[]",
    "null",
    "3",
    '"text"',
    "\udcff",
    "[" * 100_000,
    '{"a":' * 100_000,
    '{"nodes": 3, "stages": 3}',
    '{"nodes": [[]], "stages": [[]]}',
    '{"nodes": [{"name": 1}], "stages": {"a": {"status": "odd"}}}',
    '{"nodes": [{}], "stages": {"a": {"seconds": NaN}}}',
    '{"nodes": {"a": 1}, "seconds": "soon"}',
]


def view_of(run: BuiltRun) -> RunView:
    return open_run(run.write(), run.root)


def test_what_a_run_writes_is_read_again(tmp_path: Path) -> None:
    plan = Plan.model_validate({"name": "tiny", "task": {"name": "mnist"}, "stages": STAGES})
    run = PlanRun(plan, order_stages(plan), tmp_path, command="distill run x", versions={"torch": "2"})
    run.begin()
    assert open_run(run.folder, tmp_path).status == "running"
    run.write_survey(
        {"counts": {"train": [3, 4]}, "remarks": [{"level": "note", "text": "t", "stages": ["s"]}]}
    )
    run.write_results({name: NodeState("skipped", 1.5, "why") for name in run.graph.nodes}, "failed")
    view = open_run(run.folder, tmp_path)
    assert (view.plan, view.run_id, view.status, view.key) == (
        "tiny",
        run.run_id,
        "failed",
        f"tiny/{run.run_id}",
    )
    assert {name: stage.fingerprint for name, stage in view.stages.items()} == {
        name: node.fingerprint for name, node in run.graph.nodes.items()
    }
    roles = {name: (stage.role, stage.makes, stage.is_adjusted) for name, stage in view.stages.items()}
    assert roles["teacher.1"] == ("teacher", "model", False)
    assert roles["teacher.0.targets"] == ("targets", "targets", False)
    assert roles["shifted"] == ("student", "model", True)
    assert view.stages["student"].error == "why"
    assert view.results.stages["teacher"].replicas == 2
    assert (view.results.command, view.results.task.num_classes) == ("distill run x", 10)
    assert view.survey.counts == {"train": [3, 4]}
    assert view.survey.remarks[0].stages == ("s",)
    assert [stage.name for stage in view.ancestors("teacher.targets")] == [
        "teacher.0",
        "teacher.1",
        "teacher.0.targets",
        "teacher.1.targets",
    ]


@pytest.mark.parametrize("file", ["graph.json", "results.json"])
@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_file_of_a_run_is_named_in_one_line(tmp_path: Path, file: str, text: str) -> None:
    run = BuiltRun(tmp_path)
    run.stage("only")
    folder = run.write()
    (folder / file).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(StoreError) as caught:
        open_run(folder, tmp_path)
    assert f"{file}` is damaged" in caught.value.message
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_search_is_named_in_one_line_and_a_damaged_trial_is_none(tmp_path: Path, text: str) -> None:
    search = BuiltSearch(tmp_path, {"student.seed": {"integer": [0, 9]}})
    search.trial({"student.seed": 1}, 0.5)
    (search.folder / "trials" / "ffffffff.json").write_bytes(text.encode(errors="surrogateescape"))
    view = open_search(search.folder, tmp_path)
    assert [trial.number for trial in view.trials()] == [1]
    (search.folder / "search.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(StoreError, match=r"search\.json` is damaged") as caught:
        open_search(search.folder, tmp_path)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("text", DAMAGED)
def test_damaged_files_of_a_stage_leave_it_without_what_they_held(tmp_path: Path, text: str) -> None:
    run = BuiltRun(tmp_path)
    folder = run.stage("only", accuracies=[0.5], errors=4, config={"epochs": 3})
    for name in ("record.json", "config.json", "metrics.jsonl"):
        (folder.path / name).write_bytes(text.encode(errors="surrogateescape"))
    run.write_survey({})
    (run.folder / "survey.json").write_bytes(text.encode(errors="surrogateescape"))
    view = view_of(run)
    stage = view.stages["only"]
    assert (stage.has_result, stage.config, stage.progress) == (False, {}, [])
    assert "record.json` is damaged" in (stage.error or "")
    assert open_stage(folder.path).kind == "train"
    assert (view.survey.remarks, view.survey.counts) == ((), {})


@pytest.mark.parametrize(
    "place", ["../elsewhere", "/etc", "stages/..", "stages/a/b", "plans/x", "stages", "stages/\0"]
)
def test_a_graph_leads_to_stages_alone(tmp_path: Path, place: str) -> None:
    run = BuiltRun(tmp_path / "runs")
    run.stage("only")
    run.nodes[0] = run.nodes[0].model_copy(update={"folder": place})
    with pytest.raises(StoreError, match="outside the storage root"):
        view_of(run)


@pytest.mark.parametrize("linked", ["stages", "stages/train-" + fingerprint_of("only")])
def test_a_link_among_the_stages_is_not_followed(tmp_path: Path, linked: str) -> None:
    run = BuiltRun(tmp_path / "runs")
    run.stage("only")
    run.write()
    place = run.root / linked
    place.rename(tmp_path / "moved")
    place.symlink_to(tmp_path / "moved")
    with pytest.raises(StoreError, match="outside the storage root"):
        open_run(run.folder, run.root)


def test_the_best_is_best_on_validation_and_has_a_result(tmp_path: Path) -> None:
    run = BuiltRun(tmp_path)
    run.stage("teacher", metrics={"validation/accuracy": 0.99})
    run.stage("student", role="student", status="cached", metrics={"validation/accuracy": 0.8})
    run.stage("small", role="student", status="failed", error="no")
    assert view_of(run).best("student", "model") is not None
    assert view_of(run).best("student").name == "student"  # type: ignore[union-attr]
    run.stage("large", role="student", metrics={"validation/accuracy": 0.9})
    assert view_of(run).best("student").name == "large"  # type: ignore[union-attr]
    assert view_of(run).best("model") is None
    assert view_of(run).best("model", "teacher").name == "teacher"  # type: ignore[union-attr]


def test_a_stage_by_itself_tells_how_it_ended(tmp_path: Path) -> None:
    run = BuiltRun(tmp_path)
    done, failed = run.stage("done", errors=4), run.stage("failed", status="failed", error="no")
    begun = run.stage("begun", "distill", role="student", status="running", config={"epochs": 3})
    seen = [open_stage(folder.path) for folder in (done, failed, begun)]
    assert [stage.status for stage in seen] == ["done", "failed", "stopped"]
    assert [stage.makes for stage in seen] == ["model"] * 3
    assert (seen[0].metric("test/errors"), seen[1].error, dict(seen[2].config)) == (4.0, "no", {"epochs": 3})


def test_runs_and_searches_of_a_plan_are_found_and_no_others(tmp_path: Path) -> None:
    for plan, run_id in (("p", "20260101-1"), ("p", "20260102-1"), ("p-large", "20260103-1")):
        BuiltRun(tmp_path, plan=plan, run_id=run_id).write()
    assert [path.name for path in runs_of(tmp_path, "p")] == ["20260102-1", "20260101-1"]
    assert searches(tmp_path, "p") == []
    search = BuiltSearch(tmp_path, {}, plan="p")
    assert searches(tmp_path, "p") == [search.folder]
    assert open_search(search.folder, tmp_path).started == START


def test_a_remark_of_an_unknown_shape_does_not_hide_the_run(tmp_path: Path) -> None:
    run = BuiltRun(tmp_path)
    run.stage("only")
    run.write_survey({"train": [1]}, {"level": "note"})
    assert view_of(run).survey.remarks == ()


def test_stored_predictions_are_read_or_it_is_said_why_there_are_none(tmp_path: Path) -> None:
    labels = np.arange(30) % 3
    run = BuiltRun(tmp_path)
    run.stage("good", **made_up_predictions(labels, 3, errors=4))
    run.stage("plain", errors=4)
    run.stage("late", status="waiting")
    stages = view_of(run).stages
    found = stages["good"].predictions()
    assert ((found.predicted() != found.labels).sum(), found.ids.tolist()) == (4, list(range(30)))
    assert found.probabilities(2.0).sum(axis=1) == pytest.approx(1.0)
    for name, split, why in (
        ("good", "validation", "stored no predictions on the validation split"),
        ("plain", "test", "stored no predictions on the test split"),
        ("late", "test", r"has no result \(waiting\)"),
    ):
        with pytest.raises(StoreError, match=why):
            stages[name].predictions(split)
    (run.stage_folder("good").path / "predictions-test.safetensors").write_bytes(b"")
    with pytest.raises(StoreError, match="is damaged"):
        stages["good"].predictions()


def test_who_goes_on_from_features_that_were_learned_is_the_student(tmp_path: Path) -> None:
    mlp = {"name": "mlp"}
    train = {"stage": "train", "model": mlp, "epochs": 1}
    learn = {"stage": "distill", "student": mlp, "teachers": ["teacher"], "epochs": 1, "mode": "live"}
    blind = {"methods": [{"method": "embedding"}], "transfer": {"labelled": False}}
    stages = {
        "teacher": train,
        "blind": learn | blind,
        "student": train | {"initial": "blind"},
        "baseline": train,
        "alone": learn | blind,
        "whole": learn | {"methods": [{"method": "hinton"}]},
        "longer": train | {"initial": "whole"},
    }
    graph = order_stages(Plan.model_validate({"name": "p", "task": {"name": "mnist"}, "stages": stages}))
    assert node_roles(graph) == {
        "teacher": "teacher",
        "blind": "assistant",
        "student": "student",
        "baseline": "baseline",
        "alone": "student",
        "whole": "student",
        "longer": "baseline",
    }
