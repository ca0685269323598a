"""Oki's triplets against the published value, loops in float64, and which samples may be negatives."""

from typing import Any

import pytest
import torch
from torch import Tensor

from raydistill.kinds.relation_methods import TripletLogitsConfig
from raydistill.methods.triplet_logits import TripletLogits, _class_first
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch


def loss_of(student: Tensor, teacher: Tensor, labels: Tensor, **options: Any) -> Tensor:
    """The loss for student logits (B, C) and teachers' logits (B, C) or (B, M, C)."""
    members = teacher if teacher.dim() == 3 else teacher.unsqueeze(1)
    targets = TeacherTargets(members, torch.full(members.shape[:2], 1 / members.shape[1]))
    method = TripletLogits(TripletLogitsConfig.model_validate({"method": "triplet_logits", **options}))
    rows = torch.arange(len(labels))
    return method.losses(Output(student, {}), targets, Batch(student, labels, rows, rows))["triplet"]


def slow_distance(one: Tensor, other: Tensor) -> Tensor:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5


def slow_losses(student: Tensor, teacher: Tensor, labels: list[int], anchor: int) -> list[Tensor]:
    """The hinge of an anchor with each of its negatives, by loops."""
    near = slow_distance(teacher[anchor], student[anchor])
    negatives = [index for index, label in enumerate(labels) if label != labels[anchor]]
    return [max(near - slow_distance(teacher[anchor], student[index]) + 5, 0 * near) for index in negatives]


def test_the_published_triplet_costs_nine() -> None:
    student, teacher = torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([[0.0, 0.0], [9.0, 9.0]])
    second = torch.linalg.vector_norm(teacher[1] - student[1]) - torch.linalg.vector_norm(
        teacher[1] - student[0]
    )
    loss = loss_of(student, teacher, torch.tensor([0, 1]))
    assert 2 * loss.item() - (second.item() + 5) == pytest.approx(9, abs=1e-5)


def test_a_margin_that_is_kept_teaches_nothing() -> None:
    student = torch.tensor([[0.0, 0.0], [9.0, 0.0]], requires_grad=True)
    loss = loss_of(student, student.detach(), torch.tensor([0, 1]))
    loss.backward()
    assert loss.item() == 0
    assert not student.grad.any()


@pytest.mark.parametrize(("size", "classes"), [(1, 3), (2, 2), (7, 3)])
def test_with_the_hardest_negative_loss_and_gradient_are_those_of_loops(size: int, classes: int) -> None:
    draw = torch.Generator().manual_seed(size)
    student = (2 * torch.randn(size, classes, generator=draw)).requires_grad_()
    teacher, labels = 2 * torch.randn(size, classes, generator=draw), torch.arange(size) % classes
    loss = loss_of(student, teacher, labels, negative="hard")
    loss.backward()
    exact = student.detach().double().requires_grad_()
    hinges = [slow_losses(exact, teacher.double(), labels.tolist(), anchor) for anchor in range(size)]
    hardest = [max(found) for found in hinges if found]
    expected = sum(hardest) / len(hardest) if hardest else 0 * exact.sum()
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(student.grad.double(), exact.grad, atol=1e-6, rtol=1e-5)


def test_random_negatives_are_of_all_other_classes_equally_often() -> None:
    """As in the release a class is drawn first, then one of its samples: a rare class is not a rare negative."""
    draw = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(6, 4, generator=draw), torch.randn(6, 4, generator=draw)
    labels = torch.tensor([0, 0, 1, 1, 1, 2])
    torch.manual_seed(0)
    drawn = torch.stack([loss_of(student, teacher, labels) for _ in range(2000)])
    hinges = [slow_losses(student.double(), teacher.double(), labels.tolist(), anchor) for anchor in range(6)]
    mean = 0.0
    for anchor, found in enumerate(hinges):
        others = [label for label in labels.tolist() if label != labels[anchor]]
        for label in set(others):
            of_class = [float(hinge) for hinge, own in zip(found, others, strict=True) if own == label]
            mean += sum(of_class) / len(of_class) / len(set(others)) / 6
    assert drawn.mean().item() == pytest.approx(mean, abs=4 * drawn.std().item() / 2000**0.5)
    assert drawn.min() >= sum(min(found) for found in hinges) / 6 - 1e-5
    assert drawn.max() <= sum(max(found) for found in hinges) / 6 + 1e-5


def test_in_a_batch_of_one_rare_sample_it_is_the_negative_of_half_the_draws() -> None:
    labels = torch.tensor([0] + [1] * 50 + [2])
    torch.manual_seed(0)
    is_same = labels[:, None] == labels
    draws = [_class_first(is_same).masked_fill(is_same, -torch.inf).argmax(dim=1)[0] for _ in range(4000)]
    assert sum(int(index) == 51 for index in draws) / 4000 == pytest.approx(0.5, abs=4 * 0.5 / 4000**0.5)


def test_the_draw_follows_the_generator() -> None:
    student, teacher, labels = torch.randn(9, 4), torch.randn(9, 4), torch.arange(9) % 3
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(loss_of(student, teacher, labels).item())
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("negative", ["random", "hard"])
@pytest.mark.parametrize("labels", [[1], [2, 2, 2]])
def test_without_another_class_loss_and_gradient_are_zero(labels: list[int], negative: str) -> None:
    student = torch.randn(len(labels), 3, requires_grad=True)
    loss = loss_of(student, torch.randn(len(labels), 3), torch.tensor(labels), negative=negative)
    loss.backward()
    assert loss.item() == 0
    assert student.grad.tolist() == torch.zeros_like(student).tolist()


def test_a_student_that_is_its_teacher_has_a_finite_gradient() -> None:
    student = torch.randn(4, 3, requires_grad=True)
    loss_of(student, student.detach(), torch.arange(4) % 2).backward()
    assert student.grad.isfinite().all()


def test_several_teachers_speak_through_their_mean_logits_and_get_no_gradient() -> None:
    student, labels = torch.randn(6, 4), torch.arange(6) % 3
    teachers = torch.randn(6, 3, 4, requires_grad=True)
    loss = loss_of(student.requires_grad_(), teachers, labels, negative="hard")
    torch.testing.assert_close(loss, loss_of(student, teachers.detach().mean(dim=1), labels, negative="hard"))
    loss.backward()
    assert teachers.grad is None


def test_half_precision_logits_are_compared_in_float32_under_autocast() -> None:
    student, teacher, labels = torch.randn(6, 4).bfloat16(), torch.randn(6, 4), torch.arange(6) % 3
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(student, teacher, labels, negative="hard")
    assert torch.equal(loss, loss_of(student.float(), teacher, labels, negative="hard"))


def test_a_batch_is_learned_by_heart() -> None:
    teacher, labels = 6 * torch.eye(4).repeat(2, 1), torch.arange(8) % 4
    student = torch.zeros(8, 4, requires_grad=True)
    optimizer = torch.optim.Adam([student], 0.1)
    for _ in range(100):
        optimizer.zero_grad()
        loss = loss_of(student, teacher, labels, negative="hard")
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-3
