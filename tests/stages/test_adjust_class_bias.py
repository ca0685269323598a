"""A student that never saw a class, and the shift that brings it back."""

from typing import Any

import pytest
import torch


@pytest.fixture
def plan(teacher: dict[str, Any], student: dict[str, Any]) -> dict[str, Any]:
    soft = {"method": "hinton", "temperature": 4, "soft_weight": 1, "hard_weight": 0}
    taught = student | {
        "teachers": ["teacher"],
        "transfer": {"omit_classes": [1]},
        "method": soft,
        "epochs": 6,
    }
    adjusted = {"stage": "adjust_class_bias", "model": "student", "classes": [1]}
    return {"teacher": teacher, "student": taught, "adjusted": adjusted}


@pytest.mark.parametrize("by", ["prior", "validation", "test_oracle"])
def test_the_adjusted_model_differs_by_one_number_on_the_classes(
    stages: Any, plan: dict[str, Any], by: str
) -> None:
    plan["adjusted"]["by"] = by
    stages.run(plan)
    metrics = stages.record("adjusted").metrics
    difference = stages.logits("adjusted") - stages.logits("student")
    expected = torch.tensor([0.0, metrics["class_bias/offset"], 0.0]).expand_as(difference)
    torch.testing.assert_close(difference, expected)
    logits, labels = stages.model("adjusted"), metrics["test/accuracy"]
    assert logits.description["logit_offset"][1] == pytest.approx(metrics["class_bias/offset"])
    assert labels >= stages.record("student").metrics["test/accuracy"]


def test_by_prior_the_class_has_its_share_of_the_training_split(stages: Any, plan: dict[str, Any]) -> None:
    plan["adjusted"] |= {"prior": 0.25, "transfer": {"labelled": False}}
    stages.run(plan)
    data = stages.plan.task.load()
    logits = stages.model("adjusted").logits(data.train.inputs)
    assert logits.softmax(dim=1)[:, 1].mean().item() == pytest.approx(0.25, abs=1e-4)


def test_a_second_shift_is_added_to_the_first(stages: Any, plan: dict[str, Any]) -> None:
    plan["again"] = plan["adjusted"] | {"model": "adjusted", "prior": 0.6}
    stages.run(plan)
    first, second = (stages.record(name).metrics["class_bias/offset"] for name in ("adjusted", "again"))
    assert second > 0
    assert stages.model("again").description["logit_offset"][1] == pytest.approx(first + second)
