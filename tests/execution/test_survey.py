"""What is looked at before the first stage, through the local back end: all of it once, and what was wrong again."""

import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydistill.execution.local_backend import LocalBackend
from raydistill.execution.ray_backend import RayBackend
from raydistill.execution.request import Backend, StageRequest
from raydistill.execution.survey import PlanSurvey, Remark, probed_models, survey_plan
from raydistill.plan.order import Graph, order_stages
from raydistill.plan.schema import Plan
from raydistill.stages import survey

TEACHER = {"stage": "train", "epochs": 1, "batch_size": 16, "model": {"name": "mlp", "widths": [16]}}
STUDENT = {"stage": "distill", "epochs": 1, "batch_size": 16, "teachers": ["teacher"]}
SMALL = {"name": "mlp", "widths": [4]}


class Counting(LocalBackend):
    """Remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: list[str] = []

    def placements(self) -> dict[str, Any]:
        return {}

    def try_start(self, request: StageRequest) -> bool:
        self.kinds.append(request.kind)
        return super().try_start(request)


class Bench:
    """Surveys plans over one file of 60 images in three classes and one storage root."""

    def __init__(self, folder: Path) -> None:
        self.file, self.root, self.kinds = folder / "t.npz", folder / "runs", list[str]()
        self.metrics: list[str] = []
        self.data()

    def data(self, **changes: Any) -> None:
        inputs = np.random.default_rng(0).normal(size=(60, 1, 4, 4)).astype("float32")
        np.savez(self.file, **{"inputs": inputs, "labels": np.arange(60) % 3, **changes})

    def plan(self, stages: dict[str, Any]) -> tuple[Plan, Graph]:
        task = {"name": "tensors", "file": str(self.file)}
        plan = Plan.model_validate({"name": "p", "task": task, "metrics": self.metrics, "stages": stages})
        return plan, order_stages(plan)

    def survey(self, stages: dict[str, Any], backend: Backend | None = None) -> PlanSurvey:
        plan, graph = self.plan(stages)
        counting = Counting()
        found = survey_plan(graph, list(graph.nodes.values()), backend or counting, plan.task, self.root)
        self.kinds = counting.kinds
        return found


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def texts(survey: PlanSurvey, level: str) -> list[str]:
    return [str(remark) for remark in survey.remarks if remark.level == level]


def test_a_plan_in_order_has_no_remarks_and_is_looked_at_once(bench: Bench) -> None:
    plan = {"teacher": TEACHER, "student": STUDENT | {"student": SMALL}}
    first = bench.survey(plan)
    assert (first.remarks, first.errors) == ((), [])
    assert sum(first.counts["train"]) + sum(first.counts["validation"]) == 48
    assert bench.kinds == ["survey_data", "probe_models"]
    assert bench.survey(plan) == first
    assert bench.kinds == []
    bench.survey({"other": TEACHER | {"model": {"name": "mlp", "widths": [5]}}})
    assert bench.kinds == ["probe_models"]


def test_models_that_are_alike_are_tried_once(bench: Bench) -> None:
    stages = {"teacher": TEACHER | {"replicas": 3}, "other": TEACHER | {"seed": 9}}
    plan, graph = bench.plan(stages)
    (probed,) = probed_models(graph, list(graph.nodes.values()), plan.task)
    assert probed.stages == ("teacher.0", "teacher.1", "teacher.2", "other")


def test_data_that_nothing_can_be_learned_from_belongs_to_the_first_stages(bench: Bench) -> None:
    bench.data(inputs=np.full((60, 1, 4, 4), np.nan, "float32"))
    found = bench.survey({"teacher": TEACHER, "student": STUDENT | {"student": SMALL}})
    assert bench.kinds == ["survey_data"]
    (line,) = texts(found, "error")
    assert line.startswith("data: task `tensors`: sample ")
    _, graph = bench.plan({"teacher": TEACHER, "student": STUDENT | {"student": SMALL}})
    assert list(found.errors_of(list(graph.nodes.values()))) == ["teacher"]


def test_a_model_that_is_not_fit_names_all_its_stages_until_it_is_put_right(
    bench: Bench, users_module: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = users_module("from torch import nn\ndef build(num_classes): return nn.Linear(4, num_classes)")
    plan = {"teacher": TEACHER | {"model": {"name": name}}, "student": STUDENT | {"student": {"name": name}}}
    for _ in range(2):
        found = bench.survey(plan)
        assert bench.kinds[-1] == "probe_models"
        (line,) = texts(found, "error")
        assert line.startswith(f"`teacher`, `student`: model `{name}` gives outputs of shape (2, 1, 4, 3)")


def test_an_assistant_that_is_smaller_than_its_student_is_warned_of(bench: Bench) -> None:
    assistant = STUDENT | {"student": SMALL}
    student = STUDENT | {"teachers": ["assistant"], "student": {"name": "mlp", "widths": [8]}}
    found = bench.survey({"teacher": TEACHER, "assistant": assistant, "student": student})
    assert texts(found, "error") == []
    assert texts(found, "warning") == [
        "`student`: learns from the assistant `assistant`, which is smaller: 83 weights against 163"
    ]


def test_a_teacher_that_is_smaller_than_its_student_is_noted(bench: Bench) -> None:
    found = bench.survey(
        {"teacher": TEACHER, "student": STUDENT | {"student": {"name": "mlp", "widths": [32]}}}
    )
    assert found.remarks == (
        Remark("note", "learns from `teacher`, which is smaller: 323 weights against 643", ("student",)),
    )


def test_a_survey_that_fails_itself_stops_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> None:
        raise MemoryError("too large")

    monkeypatch.setattr("raydistill.stages.survey.probe_model", broken)
    found = bench.survey({"teacher": TEACHER})
    assert found.errors == []
    assert texts(found, "warning") == [
        "data: the survey itself failed, and stages start without it: MemoryError: too large"
    ]


def test_a_survey_that_is_interrupted_leaves_nothing_running(bench: Bench) -> None:
    plan, graph = bench.plan({"teacher": TEACHER})
    stop, backend = threading.Event(), Counting()
    stop.set()
    found = survey_plan(graph, list(graph.nodes.values()), backend, plan.task, bench.root, stop)
    assert found.errors == []
    assert backend.stop() == []
    assert bench.survey({"teacher": TEACHER}).counts


def test_specialists_need_a_model_that_follows_the_number_of_classes(
    bench: Bench, users_module: Callable[[str], str]
) -> None:
    name = users_module(
        "from torch import nn\ndef build(num_classes): return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))"
    )
    plan = {
        "generalist": TEACHER | {"model": {"name": name}},
        "clusters": {"stage": "confusion_clusters", "given": [[0, 1]]},
        "experts": {
            "stage": "train_specialists",
            "generalist": "generalist",
            "clusters": "clusters",
            "epochs": 1,
        },
    }
    (line,) = texts(bench.survey(plan), "error")
    assert line.startswith("`experts.0`: model")
    assert "gives 3 outputs for each sample, but the stage needs 4" in line


NEEDY = """
from raydistill.metrics import Metric

class Needy(Metric):
    name = "needy"
    needs_logits = True

    def compute(self, answers):
        return float(answers.probabilities.mean())
"""


def test_a_metric_that_needs_more_logits_than_are_held_is_named_before_anything_trains(
    bench: Bench, users_module: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.metrics = [users_module(NEEDY).replace(":build", ":Needy")]
    monkeypatch.setattr(survey, "MOST_LOGITS", 3 * 12)  # of three classes for the 12 test samples
    assert texts(bench.survey({"teacher": TEACHER}), "error") == []
    monkeypatch.setattr(survey, "MOST_LOGITS", 3 * 12 - 1)
    (line,) = texts(bench.survey({"teacher": TEACHER | {"seed": 1, "model": SMALL}}), "error")
    assert "metric `needy` needs the logits of all classes" in line


@pytest.fixture
def users_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """A module of the user's; returns the address of its `build`."""

    def write(source: str) -> str:
        (tmp_path / f"{tmp_path.name.replace('-', '_')}_net.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        return f"{tmp_path.name.replace('-', '_')}_net:build"

    return write


@pytest.mark.ray
def test_on_a_ray_cluster_a_stage_worker_looks_and_finds_the_same(
    ray_cluster: None, bench: Bench, tmp_path: Path
) -> None:
    narrow = STUDENT | {"student": {"name": "mlp", "widths": [32]}}
    here = bench.survey({"teacher": TEACHER, "student": narrow})
    bench.root = tmp_path / "elsewhere"
    with closing(RayBackend()) as backend:
        there = bench.survey({"teacher": TEACHER, "student": narrow}, backend)
    assert there == here
    assert here.remarks
