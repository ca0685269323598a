"""Hinton's method as a whole: its terms, what it looks at, and that it makes a student what its teacher is."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydistill.kinds.methods import HintonConfig
from raydistill.kinds.train import TrainConfig
from raydistill.lookup import load_object
from raydistill.methods.hinton import Hinton
from raydistill.models.taps import Output
from raydistill.runs.context import StageContext
from raydistill.runs.folder import StageFolder
from raydistill.targets.mixing import TeacherTargets
from raydistill.tasks.mnist import Mnist
from raydistill.tasks.normalisation import Normalisation
from raydistill.tasks.splits import TensorSplit
from raydistill.training.data import Batch, TransferSet
from raydistill.training.loop import fit
from raydistill.training.method import MethodContext


def batch_of(labels: Tensor) -> Batch:
    return Batch(labels.float(), labels, labels, labels)


def losses(student: Tensor, teacher: Tensor | None, labels: Tensor, **config: Any) -> dict[str, Tensor]:
    targets = None if teacher is None else TeacherTargets(teacher.unsqueeze(1), torch.ones(len(teacher), 1))
    method = Hinton(HintonConfig.model_validate(config))
    return method.losses(Output(student, {}), targets, batch_of(labels))


def random_case() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 12, 5, generator=generator)
    return 2 * student, 2 * teacher, torch.arange(12) % 5


def test_the_loss_is_the_weighted_sum_of_the_paper() -> None:
    student, teacher, labels = random_case()
    terms = losses(student, teacher, labels, temperature=3.0, soft_weight=0.7, hard_weight=0.2)
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    soft = 9 * (p * (p / q).log()).sum(dim=1).mean()
    hard = -student.log_softmax(1)[torch.arange(12), labels].mean()  # always at T = 1
    torch.testing.assert_close(terms["soft"], 0.7 * soft, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(terms["hard"], 0.2 * hard, rtol=1e-5, atol=1e-6)


def test_the_scale_by_temperature_squared_can_be_left_out() -> None:
    student, teacher, labels = random_case()
    config = {"temperature": 5.0, "soft_weight": 1.0}
    scaled = losses(student, teacher, labels, **config)["soft"]
    plain = losses(student, teacher, labels, **config, scale_by_temperature_squared=False)["soft"]
    assert scaled.item() == pytest.approx(25 * plain.item(), rel=1e-6)


def test_terms_without_weight_are_left_out() -> None:
    student, teacher, labels = random_case()
    assert set(losses(student, teacher, labels, soft_weight=1.0, hard_weight=0.0)) == {"soft"}
    assert set(losses(student, None, labels, soft_weight=0.0, hard_weight=1.0)) == {"hard"}


def test_without_hard_weight_the_labels_do_not_matter() -> None:
    student, teacher, labels = random_case()
    config = {"soft_weight": 1.0, "hard_weight": 0.0}
    (one,), (other,) = (
        losses(student, teacher, which, **config).values() for which in (labels, labels.flip(0))
    )
    assert torch.equal(one, other)


def test_smoothing_is_for_the_hard_labels_only() -> None:
    student, teacher, labels = random_case()
    targets = TeacherTargets(teacher.unsqueeze(1), torch.ones(12, 1))
    plain, smooth = (
        Hinton(HintonConfig(), MethodContext(label_smoothing=smoothing)).losses(
            Output(student, {}), targets, batch_of(labels)
        )
        for smoothing in (0.0, 0.2)
    )
    assert torch.equal(plain["soft"], smooth["soft"])
    expected = 0.1 * F.cross_entropy(student, labels, label_smoothing=0.2)
    torch.testing.assert_close(smooth["hard"], expected)


def test_it_trains_nothing_of_its_own() -> None:
    assert list(Hinton(HintonConfig()).parameters()) == []
    assert load_object(HintonConfig.implementation) is Hinton


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_a_student_of_a_linear_teacher_becomes_the_teacher(tmp_path: Path, temperature: float) -> None:
    torch.manual_seed(0)
    teacher, inputs = nn.Linear(6, 4), torch.randn(256, 6)
    with torch.no_grad():
        teacher.weight.mul_(3)
    before = copy.deepcopy(teacher.state_dict())

    def ask(batch: Batch) -> TeacherTargets:
        with torch.no_grad():
            return TeacherTargets(teacher(batch.inputs).unsqueeze(1), torch.ones(len(batch.inputs), 1))

    student = nn.Linear(6, 4)
    method = {"temperature": temperature, "soft_weight": 1.0, "hard_weight": 0.0}
    split = TensorSplit(inputs, torch.zeros(256, dtype=torch.int64), torch.arange(256))
    fit(
        student,
        Hinton(HintonConfig.model_validate(method)),
        TransferSet(split, Normalisation(torch.zeros(1), torch.ones(1))),
        None,
        TrainConfig.model_validate(
            {
                "stage": "train",
                "model": {"name": "mlp"},
                "epochs": 60,
                "batch_size": 64,
                "optimizer": {"name": "adamw", "learning_rate": 0.1},
                "schedule": {"name": "cosine"},
            }
        ),
        StageContext("student", StageFolder(tmp_path), tmp_path, Mnist()),
        ask,
    )
    p, q = teacher(inputs).softmax(1), student(inputs).softmax(1)
    assert (p * (p / q).log()).sum(dim=1).mean() < 1e-4
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
