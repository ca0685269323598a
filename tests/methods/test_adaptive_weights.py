"""What holds for every method that weighs several teachers: one slow loss in float64, and invariances."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raydistill.kinds.method_options import MethodOptions
from raydistill.lookup import load_object
from raydistill.methods.adaptive_weights import AdaptiveWeights
from raydistill.methods.losses import soft_loss
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch

METHODS = MethodOptions.choices()

NAMES = ["ebkd", "ca_mkd", "ae_kd", "teacher_switching"]
SlowWeights = Callable[[Tensor, Tensor, list[int]], list[list[float]]]


def build(name: str, **options: Any) -> AdaptiveWeights:
    kind = METHODS[name]
    method: AdaptiveWeights = load_object(kind.implementation)(
        kind.model_validate({"method": name, **options})
    )
    return method


def batch_of(labels: Tensor) -> Batch:
    rows = torch.arange(len(labels))
    return Batch(labels.float(), labels, rows, rows)


def terms_of(method: AdaptiveWeights, student: Tensor, teachers: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The losses for student logits (B, C), teachers' logits (B, M, C), labels (B,)."""
    weights = torch.full(teachers.shape[:2], 1 / teachers.shape[1])
    return method.losses(Output(student, {}), TeacherTargets(teachers, weights), batch_of(labels))


def random_case(size: int, members: int, classes: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(100 * size + members)
    student = 2 * torch.randn(size, classes, generator=draw)
    teachers = 2 * torch.randn(size, members, classes, generator=draw)
    return student, teachers, torch.randint(classes, (size,), generator=draw)


def distribution(logits: Any, temperature: float = 1.0) -> list[Any]:
    """softmax(logits / T) by a loop, for floats or for tensors that want a gradient."""
    powers = [torch.exp(logit / temperature) for logit in logits]
    return [power / sum(powers) for power in powers]


def slow_entropies(teachers: Tensor) -> list[float]:
    return [-sum(float(p) * math.log(float(p)) for p in distribution(logits)) for logits in teachers]


def slow_ebkd(student: Tensor, teachers: Tensor, labels: list[int]) -> list[list[float]]:
    rows = [slow_entropies(members) for members in teachers]
    count = teachers.shape[1]
    return [[(1 - entropy / sum(row)) / count if count > 1 else 1.0 for entropy in row] for row in rows]


def slow_ca_mkd(student: Tensor, teachers: Tensor, labels: list[int]) -> list[list[float]]:
    weights, count = [], teachers.shape[1]
    for members, label in zip(teachers, labels, strict=True):
        powers = [1 / float(distribution(logits)[label]) for logits in members]  # exp(CE) = 1 / p
        row = [(1 - power / sum(powers)) / (count - 1) if count > 1 else 1.0 for power in powers]
        weights.append([weight / count for weight in row])
    return weights


def slow_ae_kd(student: Tensor, teachers: Tensor, labels: list[int]) -> list[list[float]]:
    """The best of all weights on a grid of 1/60, where the cap 0.6 lies too; good enough for the loss, not exact."""
    size, count, classes = teachers.shape
    gradients = np.zeros((count, classes))
    for sample in range(size):
        own = distribution(student[sample], 4.0)
        for member in range(count):
            other = distribution(teachers[sample, member], 4.0)
            gradients[member] += [4 * float(q - p) / size for q, p in zip(own, other, strict=True)]
    if count == 1:
        return [[1.0]] * size
    grid = _grid(count, 60, 36)
    best = min(grid, key=lambda weights: float(np.square(np.array(weights) @ gradients).sum()))
    return [list(best)] * size


def _grid(count: int, whole: int, cap: int) -> list[tuple[float, ...]]:
    if count == 1:
        return [(whole / 60,)] if whole <= cap else []
    return [
        (first / 60, *rest)
        for first in range(min(whole, cap) + 1)
        for rest in _grid(count - 1, whole - first, cap)
    ]


SLOW: list[tuple[str, SlowWeights, float]] = [
    ("ebkd", slow_ebkd, 1e-5),
    ("ca_mkd", slow_ca_mkd, 1e-5),
    ("ae_kd", slow_ae_kd, 0.06),  # the grid's width
]


@pytest.mark.parametrize(("size", "members"), [(1, 1), (1, 3), (6, 2), (5, 3)])
@pytest.mark.parametrize(("name", "slow_weights", "tolerance"), SLOW, ids=[row[0] for row in SLOW])
def test_loss_and_gradient_are_those_of_loops(
    name: str, slow_weights: SlowWeights, tolerance: float, size: int, members: int
) -> None:
    student, teachers, labels = random_case(size, members)
    method = build(name, soft_weight=0.7, hard_weight=0.3)
    terms = terms_of(method, student.requires_grad_(), teachers, labels)
    sum(terms.values()).backward()
    exact = student.detach().double().requires_grad_()
    weights = slow_weights(exact.detach(), teachers.double(), labels.tolist())
    soft = hard = torch.zeros((), dtype=torch.float64)
    for sample in range(size):
        own = distribution(exact[sample], 4.0)
        hard = hard - distribution(exact[sample])[int(labels[sample])].log() / size
        for member in range(members):
            other = distribution(teachers[sample, member].double(), 4.0)
            divergence = sum(p * (p / q).log() for p, q in zip(other, own, strict=True))
            soft = soft + 16 * weights[sample][member] * divergence / size
    (0.7 * soft + 0.3 * hard).backward()
    torch.testing.assert_close(terms["soft"].double(), 0.7 * soft, atol=1e-6, rtol=tolerance)
    torch.testing.assert_close(terms["hard"].double(), 0.3 * hard, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(student.grad.double(), exact.grad, atol=max(1e-6, tolerance / 5), rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_one_teacher_is_hintons(name: str) -> None:
    student, teachers, labels = random_case(6, 1)
    terms = terms_of(build(name, soft_weight=1), student, teachers, labels)
    targets = TeacherTargets(teachers, torch.ones(6, 1))
    torch.testing.assert_close(terms["soft"], soft_loss(student, targets, 4.0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_that_of_the_mixture_with_these_weights(name: str) -> None:
    student, teachers, labels = random_case(6, 3)
    method = build(name, soft_weight=1, hard_weight=0)
    (own,) = terms_of(method, student.requires_grad_(), teachers, labels).values()
    own.backward()
    weights = method.weights(student.detach(), teachers, batch_of(labels))
    total = weights.sum(dim=1, keepdim=True)
    twin = student.detach().requires_grad_()
    mixed = soft_loss(twin, TeacherTargets(teachers, weights / total), 4.0, reduction="none")
    (mixed * total[:, 0]).mean().backward()
    torch.testing.assert_close(student.grad, twin.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@given(size=st.integers(1, 6), shift=st.floats(-20, 20), members=st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_a_constant_added_to_logits_changes_nothing(name: str, size: int, shift: float, members: int) -> None:
    student, teachers, labels = random_case(size, members)
    method = build(name)
    plain = terms_of(method, student, teachers, labels)["soft"]
    shifted = terms_of(method, student + shift, teachers - 2 * shift, labels)["soft"]
    torch.testing.assert_close(shifted, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NAMES[:3])
def test_the_order_of_teachers_and_of_classes_does_not_matter(name: str) -> None:
    student, teachers, labels = random_case(6, 4)
    method, order, classes = build(name), torch.tensor([2, 0, 3, 1]), torch.tensor([4, 2, 0, 1, 3])
    plain = terms_of(method, student, teachers, labels)["soft"]
    places = classes.argsort()[labels]
    moved = terms_of(method, student[:, classes], teachers[:, order][:, :, classes], places)["soft"]
    torch.testing.assert_close(moved, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_student_of_equal_teachers_that_agrees_with_them_has_nothing_to_learn(name: str) -> None:
    student, _, labels = random_case(6, 3)
    teachers = student.unsqueeze(1).repeat(1, 3, 1)
    (loss,) = terms_of(build(name, hard_weight=0), student.requires_grad_(), teachers, labels).values()
    loss.backward()
    assert abs(loss.item()) < 1e-5
    assert student.grad.abs().max() < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_no_gradient_reaches_the_teachers_and_half_precision_is_left_before_the_losses(name: str) -> None:
    student, teachers, labels = random_case(6, 3)
    student = student.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        terms = terms_of(build(name), student, teachers.requires_grad_(), labels)
    plain = terms_of(build(name), student.float(), teachers, labels)
    assert all(torch.equal(terms[key], plain[key]) for key in plain)
    sum(terms.values()).backward()
    assert teachers.grad is None


@pytest.mark.parametrize("name", NAMES)
def test_terms_without_weight_are_left_out_and_one_must_stay(name: str) -> None:
    student, teachers, labels = random_case(4, 2)
    assert set(terms_of(build(name, soft_weight=0), student, teachers, labels)) == {"hard"}
    assert set(terms_of(build(name, hard_weight=0), student, teachers, labels)) == {"soft"}
    with pytest.raises(ValueError, match="nothing to learn from"):
        build(name, hard_weight=0, soft_weight=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_learned_by_heart(name: str) -> None:
    _, teachers, labels = random_case(8, 3)
    teachers = teachers[:, :1] + 0.01 * teachers
    student = torch.zeros(8, 5, requires_grad=True)
    optimizer = torch.optim.Adam([student], 0.2)
    method = build(name, hard_weight=0)
    for _ in range(100):
        optimizer.zero_grad()
        (loss,) = terms_of(method, student, teachers, labels).values()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-3
