"""Triplets with the teacher's margins against loops in float64, and batches that hold no triplet."""

from typing import Any

import pytest
import torch
from torch import Tensor

from raydistill.methods.triplet import teacher_margins
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch

SMALL = {"name": "cnn", "widths": [4, 6]}
LARGE = {"name": "cnn", "widths": [6, 8]}


def loss_of(method: Any, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """The loss for embeddings (B, d) and (B, d')."""
    targets = TeacherTargets(
        torch.zeros(len(labels), 1, 2), torch.ones(len(labels), 1), {"embedding": teacher}
    )
    rows = torch.arange(len(labels))
    output = Output(torch.zeros(len(labels), 2), {"embedding": student})
    loss: Tensor = method.losses(output, targets, Batch(student, labels, rows, rows))["triplet"]
    return loss


def slow_distance(one: Tensor, other: Tensor) -> Tensor:
    lengths = [sum(value**2 for value in vector) ** 0.5 for vector in (one, other)]
    return sum((a / lengths[0] - b / lengths[1]) ** 2 for a, b in zip(one, other, strict=True))


def slow_triplet(student: Tensor, teacher: Tensor, labels: list[int], low: float, high: float) -> Tensor:
    """Feng et al. by loops: mine, measure the gaps, then the margins."""
    triplets, gaps = [], []
    for anchor, label in enumerate(labels):
        others = [index for index in range(len(labels)) if index != anchor]
        same = [index for index in others if labels[index] == label]
        different = [index for index in others if labels[index] != label]
        if same and different:
            from_anchor = [float(slow_distance(student[anchor], other).detach()) for other in student]
            positive, negative = (
                max(same, key=from_anchor.__getitem__),
                min(different, key=from_anchor.__getitem__),
            )
            near, far = (slow_distance(teacher[anchor], teacher[index]) for index in (positive, negative))
            triplets.append((anchor, positive, negative))
            gaps.append(max(float(far - near), 0.0))
    total = 0 * student.sum()
    for (anchor, positive, negative), gap in zip(triplets, gaps, strict=True):
        margin = low + ((high - low) * gap / max(gaps) if max(gaps) > 0 else 0)
        near, far = (slow_distance(student[anchor], student[index]) for index in (positive, negative))
        total = total + max(near - far + margin, 0 * near)
    return total / max(len(triplets), 1)


@pytest.mark.parametrize(("size", "classes", "widths"), [(1, 2, (3, 3)), (2, 2, (3, 5)), (9, 3, (4, 2))])
def test_loss_and_gradient_are_those_of_loops(pair: Any, size: int, classes: int, widths: Any) -> None:
    draw = torch.Generator().manual_seed(size)
    student = torch.randn(size, widths[0], generator=draw, requires_grad=True)
    teacher = torch.randn(size, widths[1], generator=draw)
    labels = torch.randint(classes, (size,), generator=draw)
    method = pair.of(SMALL, LARGE).method("triplet", min_margin=0.3, max_margin=0.9)
    loss = loss_of(method, student, teacher, labels)
    loss.backward()
    exact = student.detach().double().requires_grad_()
    expected = slow_triplet(exact, teacher.double(), labels.tolist(), 0.3, 0.9)
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(student.grad.double(), exact.grad, atol=1e-6, rtol=1e-5)
    assert size < 9 or loss > 0


def test_margins_grow_with_the_teachers_gap_between_their_bounds() -> None:
    margins = teacher_margins(torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0]), 0.2, 0.5)
    torch.testing.assert_close(margins, torch.tensor([0.2, 0.2, 0.275, 0.35, 0.5]))


def test_a_teacher_that_tells_nothing_apart_leaves_the_smallest_margin() -> None:
    assert teacher_margins(torch.zeros(3), 0.2, 0.5).tolist() == pytest.approx([0.2] * 3)


@pytest.mark.parametrize("labels", [[0], [1, 1, 1], [0, 1, 2]])
def test_without_a_triplet_loss_and_gradient_are_zero(pair: Any, labels: list[int]) -> None:
    student = torch.randn(len(labels), 4, requires_grad=True)
    method = pair.of(SMALL, LARGE).method("triplet")
    loss = loss_of(method, student, torch.randn(len(labels), 3), torch.tensor(labels))
    loss.backward()
    assert loss.item() == 0
    assert student.grad.tolist() == torch.zeros_like(student).tolist()


def test_an_anchor_without_a_partner_counts_for_nothing_and_sets_no_margin(pair: Any) -> None:
    student, teacher = torch.randn(5, 4), torch.randn(5, 3)
    teacher[4] *= -9
    method = pair.of(SMALL, LARGE).method("triplet")
    loss = loss_of(method, student, teacher, torch.tensor([0, 0, 1, 1, 2]))
    expected = slow_triplet(student.double(), teacher.double(), [0, 0, 1, 1, 2], 0.2, 0.5)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_dead_embedding_has_a_finite_gradient(pair: Any) -> None:
    student = torch.cat([torch.zeros(2, 4), torch.randn(2, 4)]).requires_grad_()
    labels = torch.tensor([0, 1, 0, 1])
    loss_of(pair.of(SMALL, LARGE).method("triplet"), student, torch.zeros(4, 3), labels).backward()
    assert student.grad.abs().max() < 100


def test_length_rotation_and_order_do_not_matter(pair: Any) -> None:
    student, teacher, labels = torch.randn(8, 4), torch.randn(8, 3), torch.arange(8) % 3
    method = pair.of(SMALL, LARGE).method("triplet")
    loss = loss_of(method, student, teacher, labels)
    rotation = torch.linalg.qr(torch.randn(4, 4))[0]
    order = torch.randperm(8)
    torch.testing.assert_close(loss_of(method, 5 * student @ rotation, 0.1 * teacher, labels), loss)
    torch.testing.assert_close(loss_of(method, student[order], teacher[order], labels[order]), loss)


def test_no_gradient_reaches_the_teacher_and_autocast_changes_nothing(pair: Any) -> None:
    student, labels = torch.randn(8, 4, requires_grad=True), torch.arange(8) % 2
    teacher = torch.randn(8, 3, requires_grad=True)
    method = pair.of(SMALL, LARGE).method("triplet")
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(method, student, teacher, labels)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, loss_of(method, student, teacher, labels))
    loss.backward()
    assert teacher.grad is None


def test_a_batch_is_learned_by_heart(pair: Any, images: Any) -> None:
    models = pair.of(SMALL, LARGE)
    method = models.method("triplet")
    optimizer = torch.optim.Adam(models.student.parameters(), 0.02)
    first = last = models.losses(method, *images)["triplet"]
    for _ in range(40):
        last = models.losses(method, *images)["triplet"]
        optimizer.zero_grad()
        last.backward()
        optimizer.step()
    assert last.item() < 0.02 < first.item()


def test_a_missing_feature_is_refused_with_the_setting_that_mends_it(pair: Any) -> None:
    with pytest.raises(ValueError, match=r"no feature `stage9`.*with `teacher_feature`"):
        pair.of(SMALL, LARGE).method("triplet", teacher_feature="stage9")


def test_margins_in_the_wrong_order_are_refused(pair: Any) -> None:
    with pytest.raises(ValueError, match="`max_margin` is below `min_margin`"):
        pair.of(SMALL, LARGE).method("triplet", min_margin=0.6)
