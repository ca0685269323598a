"""RKD against loops in float64 and what relations do not see: scale, rotation, place."""

from typing import Any

import pytest
import torch
from torch import Tensor

from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch

SMALL = {"name": "cnn", "widths": [4, 6]}
LARGE = {"name": "cnn", "widths": [6, 8]}


def losses_of(method: Any, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
    """The terms for embeddings (B, d) and (B, d')."""
    size = len(student)
    targets = TeacherTargets(torch.zeros(size, 1, 2), torch.ones(size, 1), {"embedding": teacher})
    rows = torch.arange(size)
    output = Output(torch.zeros(size, 2), {"embedding": student})
    terms: dict[str, Tensor] = method.losses(output, targets, Batch(student, rows, rows, rows))
    return terms


def slow_length(vector: Tensor) -> Tensor:
    return sum(value**2 for value in vector) ** 0.5


def slow_distances(embeddings: Tensor) -> list[Tensor]:
    """‖f_i - f_j‖ / mean for all pairs of different samples, by loops."""
    size = len(embeddings)
    pairs = [(i, j) for i in range(size) for j in range(size) if i != j]
    lengths = [slow_length(embeddings[i] - embeddings[j]) for i, j in pairs]
    return [length * len(lengths) / sum(lengths) for length in lengths]


def slow_angles(embeddings: Tensor) -> list[Tensor]:
    """cos of the angle at j for all i, k that are not j, by loops."""
    found, size = [], len(embeddings)
    for j in range(size):
        for i in range(size):
            for k in range(size):
                if j not in (i, k):
                    one, other = embeddings[i] - embeddings[j], embeddings[k] - embeddings[j]
                    product = sum(a * b for a, b in zip(one, other, strict=True))
                    found.append(product / (slow_length(one) * slow_length(other)))
    return found


def slow_huber(ones: list[Tensor], others: list[Tensor], count: int) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for one, other in zip(ones, others, strict=True):
        gap = abs(one - other)
        total = total + (gap**2 / 2 if gap < 1 else gap - 0.5)
    return total / count


@pytest.mark.parametrize(("size", "widths"), [(2, (3, 3)), (3, (2, 5)), (6, (4, 2))])
def test_losses_and_gradient_are_those_of_loops(pair: Any, size: int, widths: Any) -> None:
    draw = torch.Generator().manual_seed(size)
    student = torch.randn(size, widths[0], generator=draw, requires_grad=True)
    teacher = torch.randn(size, widths[1], generator=draw)
    method = pair.of(SMALL, LARGE).method("relational", distance_weight=3, angle_weight=5)
    terms = losses_of(method, student, teacher)
    sum(terms.values()).backward()
    exact, aim = student.detach().double().requires_grad_(), teacher.double()
    distance = 3 * slow_huber(slow_distances(exact), slow_distances(aim), size**2)
    angle = 5 * slow_huber(slow_angles(exact), slow_angles(aim), size**3)
    (distance + angle).backward()
    torch.testing.assert_close(terms["distance"].double(), distance, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(terms["angle"].double(), angle, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(student.grad.double(), exact.grad, atol=1e-5, rtol=1e-4)


def test_a_scaled_rotated_and_moved_copy_of_the_teacher_costs_nothing(pair: Any) -> None:
    teacher = torch.randn(7, 4)
    rotation = torch.linalg.qr(torch.randn(4, 4))[0]
    terms = losses_of(pair.of(SMALL, LARGE).method("relational"), 3 * teacher @ rotation + 2, teacher)
    assert all(term.item() < 1e-9 for term in terms.values())


def test_a_stretched_copy_costs_something(pair: Any) -> None:
    teacher = torch.randn(7, 4)
    terms = losses_of(
        pair.of(SMALL, LARGE).method("relational"), teacher * torch.tensor([9, 1, 1, 1]), teacher
    )
    assert all(term.item() > 0.01 for term in terms.values())


@pytest.mark.parametrize(
    "student", [torch.randn(1, 3), torch.ones(4, 3)], ids=["one sample", "equal samples"]
)
def test_without_relations_the_gradient_is_finite(pair: Any, student: Tensor) -> None:
    student = student.clone().requires_grad_()
    method = pair.of(SMALL, LARGE).method("relational")
    terms = losses_of(method, student, torch.zeros(len(student), 2))
    sum(terms.values()).backward()
    assert [term.item() for term in terms.values()] == [0, 0]
    assert student.grad.tolist() == torch.zeros_like(student).tolist()


def test_a_repeated_sample_has_a_finite_gradient(pair: Any) -> None:
    student = torch.randn(3, 4)[[0, 0, 1, 2]].requires_grad_()
    terms = losses_of(pair.of(SMALL, LARGE).method("relational"), student, torch.randn(4, 2))
    sum(terms.values()).backward()
    assert student.grad.isfinite().all()


def release_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """The release's formula in float64: squares of at least 1e-12, the mean of all that is above 0 off the diagonal."""
    relative = []
    for vectors in (student.double(), teacher.double()):
        squares = (vectors[:, None] - vectors).square().sum(dim=2).clamp(min=1e-12)
        lengths = squares.sqrt() * (1 - torch.eye(len(vectors)))
        relative.append(lengths / lengths[lengths > 0].mean())
    return torch.nn.functional.smooth_l1_loss(*relative)


@pytest.mark.parametrize("repeated", [[0, 1, 2, 3], [0, 0, 1, 2], [0, 0, 0, 1], [0, 0, 1, 1]])
def test_equal_embeddings_count_in_the_mean_distance_as_in_the_release(
    pair: Any, repeated: list[int]
) -> None:
    draw = torch.Generator().manual_seed(0)
    student = torch.randn(4, 5, generator=draw)[repeated]
    teacher = torch.randn(4, 3, generator=draw)
    terms = losses_of(pair.of(SMALL, LARGE).method("relational", distance_weight=1), student, teacher)
    assert terms["distance"].item() == pytest.approx(release_distance(student, teacher).item(), rel=1e-4)


def test_terms_without_weight_are_left_out_and_one_must_stay(pair: Any) -> None:
    models = pair.of(SMALL, LARGE)
    method = models.method("relational", angle_weight=0)
    assert set(losses_of(method, torch.randn(3, 2), torch.randn(3, 2))) == {"distance"}
    with pytest.raises(ValueError, match="nothing to learn from"):
        models.method("relational", angle_weight=0, distance_weight=0)


def test_no_gradient_reaches_the_teacher_and_autocast_changes_nothing(pair: Any) -> None:
    student, teacher = torch.randn(6, 4, requires_grad=True), torch.randn(6, 3, requires_grad=True)
    method = pair.of(SMALL, LARGE).method("relational")
    with torch.autocast("cpu", torch.bfloat16):
        terms = losses_of(method, student, teacher)
    plain = losses_of(method, student, teacher)
    assert all(torch.equal(terms[name], plain[name]) for name in plain)
    sum(terms.values()).backward()
    assert teacher.grad is None


def test_a_batch_is_learned_by_heart(pair: Any, images: Any) -> None:
    models = pair.of(SMALL, LARGE)
    method = models.method("relational")
    optimizer = torch.optim.Adam(models.student.parameters(), 0.02)
    history = []
    for _ in range(50):
        loss = sum(models.losses(method, *images).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < history[0] / 20
