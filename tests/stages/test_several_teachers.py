"""Methods that weigh several teachers, through whole stages: stored, live, stopped, and plans that make no sense."""

from typing import Any

import pytest
from torch import Tensor

from raydistill.kinds.distill import DistillConfig
from raydistill.kinds.method_options import MethodOptions
from raydistill.models.taps import Output, Tapped
from raydistill.stages import teachers

METHODS = MethodOptions.choices()

WEIGHING = [name for name, kind in METHODS.items() if kind.weighs_teachers]


def plan_of(name: str, teacher: dict[str, Any], student: dict[str, Any], mode: str) -> dict[str, Any]:
    taught = student | {"teachers": ["teacher"], "mode": mode, "method": {"method": name}}
    return {"teacher": teacher | {"replicas": 3}, "student": taught}


@pytest.mark.parametrize("name", WEIGHING)
def test_stored_and_live_teachers_are_weighed_alike(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any], name: str
) -> None:
    plan = plan_of(name, teacher, student, "stored")
    plan["live"] = plan_of(name, teacher, student, "live")["student"]
    stages.run(plan)
    stored, live = (stages.metrics(stage) for stage in ("student", "live"))
    for one, other in zip(stored, live, strict=True):
        # The store holds float16.
        assert one["train/loss/soft"] == pytest.approx(other["train/loss/soft"], rel=0.01)
        assert one["train/loss/hard"] == pytest.approx(other["train/loss/hard"], rel=0.01)


@pytest.mark.parametrize(("beside", "runs"), [([], 1), (["labels"], 1), (["hinton"], 3)])
def test_a_live_teacher_that_was_not_drawn_runs_only_if_another_method_asks_it(
    stages: Any,
    teacher: dict[str, Any],
    student: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    beside: list[str],
    runs: int,
) -> None:
    calls = 0

    class Counted(Tapped):
        def forward(self, inputs: Tensor) -> Output:
            nonlocal calls
            calls += 1
            return super().forward(inputs)

    monkeypatch.setattr(teachers, "Tapped", Counted)
    plan = plan_of("teacher_switching", teacher, student, "live")
    methods = [{"method": name} for name in ["teacher_switching", *beside]]
    plan["student"] = {**plan["student"], "method": None, "methods": methods}
    steps = stages.run(plan).metrics("student")[-1]["step"]
    assert calls == runs * steps


@pytest.mark.parametrize("name", WEIGHING)
def test_stopping_and_resuming_goes_on_with_the_same_weights(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any], name: str
) -> None:
    plan = plan_of(name, teacher, student, "stored")
    whole = stages.run(plan).metrics("student")
    other = stages.elsewhere("again")
    for node in list(other.write(plan).nodes)[:-1]:
        assert other.attempt(node).status == "done"
    assert other.attempt("student", iter([False] * 4 + [True]).__next__).status == "stopped"
    assert other.attempt("student").status == "done"
    assert other.metrics("student") == whole


@pytest.mark.parametrize("name", WEIGHING)
@pytest.mark.parametrize("combine", [{"rule": "geometric"}, {"weights": "entropy"}])
def test_teachers_are_not_weighed_twice(
    teacher: dict[str, Any], student: dict[str, Any], name: str, combine: dict[str, Any]
) -> None:
    config = plan_of(name, teacher, student, "stored")["student"] | {"combine": combine}
    with pytest.raises(ValueError, match=f"`{name}` weighs the teachers by itself; leave `combine` out"):
        DistillConfig.model_validate(config)


def test_a_committee_is_one_teacher(teacher: dict[str, Any], student: dict[str, Any]) -> None:
    config = plan_of("ebkd", teacher, student, "stored")["student"] | {
        "committee": {"specialists": ["special"]}
    }
    with pytest.raises(ValueError, match="a committee answers as one"):
        DistillConfig.model_validate(config)


@pytest.mark.parametrize("options", [{"method": "ca_mkd", "hard_weight": 0}, {"method": "triplet_logits"}])
def test_methods_that_look_at_labels_are_refused_without_them(
    student: dict[str, Any], options: dict[str, Any]
) -> None:
    config = student | {"teachers": ["teacher"], "method": options, "transfer": {"labelled": False}}
    with pytest.raises(ValueError, match="take a method without labels"):
        DistillConfig.model_validate(config)


@pytest.mark.parametrize("name", ["ebkd", "ae_kd", "teacher_switching"])
def test_weights_that_need_no_labels_work_without_them(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any], name: str
) -> None:
    plan = plan_of(name, teacher, student, "stored")
    plan["student"] |= {"method": {"method": name, "hard_weight": 0}, "transfer": {"labelled": False}}
    assert stages.run(plan).metrics("student")[-1]["train/loss"] > 0
