"""SimKD through whole stages: what is learned, what stands still, and what is stored."""

import shutil
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from raydistill.errors import PlanError
from raydistill.methods.simkd import Simkd
from raydistill.models.taps import Output
from raydistill.stages.model_probe import check_features
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch

CNN = {"name": "cnn", "widths": [6, 8], "batch_norm": True}
SHARED = {"epochs": 2, "batch_size": 16}
TEACHER = {"stage": "train", "model": CNN, **SHARED}
STUDENT = {
    "stage": "reuse_classifier",
    "student": {"name": "cnn", "widths": [3, 4]},
    "teacher": "teacher",
    **SHARED,
}


def weights(stages: Any, name: str) -> dict[str, Tensor]:
    return load_file(stages.folder(name).path / "model.safetensors")


def fill(shape: tuple[int, ...], slope: float) -> Tensor:
    return (slope * torch.arange(1, int(np.prod(shape)) + 1, dtype=torch.float64)).sin().reshape(shape)


def loss_of(own: Tensor, aim: Tensor) -> float:
    rows = torch.arange(len(own))
    targets = TeacherTargets(torch.zeros(len(own), 1, 2), torch.ones(len(own), 1), {"stage2": aim})
    output = Output(torch.zeros(len(own), 2), {"projector": own})
    return Simkd("stage2").losses(output, targets, Batch(own, rows, rows, rows))["maps"].item()


def test_the_loss_has_its_printed_value() -> None:
    # The loss is computed in float32.
    assert loss_of(fill((2, 3, 2, 2), 0.7), fill((2, 3, 2, 2), 1.1)) == pytest.approx(1.063799991, rel=1e-6)


def test_a_teachers_larger_grid_is_pooled() -> None:
    aim = torch.arange(16.0).reshape(1, 1, 4, 4)
    pooled = torch.tensor([[[[2.5, 4.5], [10.5, 12.5]]]])
    assert loss_of(pooled, aim) == 0
    assert loss_of(pooled + 3, aim) == pytest.approx(9)


def test_the_classifier_is_the_teachers_bit_for_bit_and_the_rest_moves(stages: Any) -> None:
    still = STUDENT | {"optimizer": {"name": "sgd", "learning_rate": 1e-30}}
    stages.run({"teacher": TEACHER, "student": STUDENT | {"epochs": 6}, "still": still})
    teacher, student, still_ = (weights(stages, name) for name in ("teacher", "student", "still"))
    for key in ("classifier.weight", "classifier.bias"):
        assert torch.equal(student[key], teacher[key])
    for key in ("stage1.conv1.weight", "projector.conv2.weight"):
        assert not torch.equal(student[key], still_[key])
    losses = [line["train/loss/maps"] for line in stages.metrics("student")]
    assert losses[-1] < 0.7 * losses[0]
    assert stages.record("student").metrics["test/accuracy"] > 0.5


def test_no_label_is_looked_at(stages: Any) -> None:
    plan = {"teacher": TEACHER, "student": STUDENT, "blind": STUDENT | {"transfer": {"labelled": False}}}
    stages.run(plan)
    assert (
        stages.record("student").payload["model.safetensors"]
        == stages.record("blind").payload["model.safetensors"]
    )


def test_what_is_stored_needs_no_teacher_any_more(stages: Any, student: dict[str, Any]) -> None:
    stages.run({"teacher": TEACHER, "student": STUDENT})
    before = stages.logits("student")
    record = stages.record("student")
    shutil.rmtree(stages.folder("teacher").path)
    assert torch.equal(stages.logits("student"), before)
    model = stages.model("student").model
    assert record.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert stages.model("student").description["model"]["options"]["head"]["widths"] == [6, 8]


def test_it_teaches_and_is_adjusted_and_compared_as_any_model(stages: Any, student: dict[str, Any]) -> None:
    stages.run(
        {
            "teacher": TEACHER,
            "student": STUDENT,
            "next": student | {"teachers": ["student"]},
            "adjusted": {"stage": "adjust_class_bias", "model": "student", "classes": [1]},
            "beside": {"stage": "compare_models", "models": ["teacher", "student"], "batch_size": 5},
        }
    )
    assert stages.record("beside").status == "done"


def test_an_adjusted_teachers_classifier_counts_as_it_was(stages: Any) -> None:
    adjusted = {"stage": "adjust_class_bias", "model": "teacher", "classes": [1], "prior": 0.9}
    stages.run(
        {
            "teacher": TEACHER,
            "adjusted": adjusted,
            "student": STUDENT | {"teacher": "adjusted"},
            "plain": STUDENT,
        }
    )
    one, other = weights(stages, "student"), weights(stages, "plain")
    assert all(torch.equal(one[key], other[key]) for key in other)


@pytest.mark.parametrize("steps", [3, 14])
def test_stopping_and_resuming_equals_not_stopping(stages: Any, steps: int) -> None:
    plan = {"teacher": TEACHER, "student": STUDENT}
    whole = stages.run(plan)
    other = stages.elsewhere("again")
    other.write(plan)
    assert other.attempt("teacher").status == "done"
    assert other.attempt("student", iter([False] * (steps - 1) + [True]).__next__).status == "stopped"
    assert other.attempt("student").status == "done"
    assert other.record("student").payload == whole.record("student").payload


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"name": "mlp", "widths": [5]}, "none of its parts gives maps"),
        ({"name": "cnn", "widths": [4]}, "the classifier of the other takes maps of 4x4 alone"),
        ({"name": "resnet8", "input": {"channels": "rgb"}}, "answers through its `input`"),
    ],
)
def test_a_teacher_whose_classifier_cannot_be_reused_is_named(
    stages: Any, teacher: dict[str, Any], message: str
) -> None:
    stages.write({"teacher": TEACHER | {"model": teacher}, "student": STUDENT})
    assert stages.attempt("teacher").status == "done"
    outcome = stages.attempt("student")
    assert outcome.status == "failed"
    assert message in str(outcome.error)
    with pytest.raises(PlanError, match=r"stages.student.teacher") as caught:
        check_features(stages.graph, stages.plan)
    assert message in caught.value.message
