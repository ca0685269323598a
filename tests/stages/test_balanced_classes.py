"""Classes with few samples, through whole stages."""

from typing import Any

import torch

BALANCED = {"sampler": "balanced"}
WEIGHED = {"class_weights": "balanced", "logit_adjustment": 0.5}


def test_stopping_and_resuming_equals_not_stopping(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any]
) -> None:
    plan = {"teacher": teacher | BALANCED, "student": student | {"teachers": ["teacher"]} | WEIGHED}
    whole, other = stages.run(plan), stages.elsewhere("again")
    for name in other.write(plan).nodes:
        outcome = other.attempt(name, iter([False] * 2 + [True]).__next__)
        assert outcome.status == "stopped" or name not in plan
        if outcome.status == "stopped":
            assert other.attempt(name).status == "done"
    for name in plan:
        weights = whole.model(name).model.state_dict()
        resumed = other.model(name).model.state_dict()
        assert all(torch.equal(resumed[key], value) for key, value in weights.items())
        assert whole.metrics(name) == other.metrics(name)


def test_equal_weights_of_equal_classes_are_as_good_as_none(stages: Any, teacher: dict[str, Any]) -> None:
    stages.run({"plain": teacher, "weighed": teacher | {"class_weights": [2, 2, 2]}})
    plain, weighed = (stages.model(name).model.state_dict() for name in ("plain", "weighed"))
    for key, value in plain.items():
        torch.testing.assert_close(weighed[key], value, rtol=1e-5, atol=1e-6)


def test_a_class_of_weight_0_is_not_learned(stages: Any, teacher: dict[str, Any]) -> None:
    stages.run({"blind": teacher | {"class_weights": [1, 1, 0], "epochs": 8}})
    metrics = stages.folder("blind").done_record().metrics
    assert metrics["validation/worst_class_recall"] == 0
