"""The losses on logits against values by hand, closed forms and torch's own pieces."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from raydistill.methods.losses import hard_loss, soft_loss
from raydistill.plan.config import Temperature
from raydistill.targets.mixing import TeacherTargets, tempered_probabilities
from raydistill.training.data import Batch

# T, KL, T² · KL, T (q - p) for z = (1, 2, 3) and v = (3, 1, 0.5).
TABLE = [
    (1, 1.573961, 1.573961, (-0.731378, 0.133563, 0.597816)),
    (2, 0.453638, 1.814553, (-0.836262, 0.169659, 0.666603)),
    (4, 0.114152, 1.826430, (-0.850494, 0.173230, 0.677264)),
    (20, 0.004429, 1.771554, (-0.839066, 0.168622, 0.670445)),
]
TEMPERATURES = [0.5, 1.0, 4.0, 20.0]


@pytest.mark.parametrize("temperature", [1e-3, 0.1, 1, 30, 100, 101, 1e3, 1e4])
@pytest.mark.parametrize("deviation", [1.0, 4.0, 60.0])
def test_at_any_temperature_that_a_plan_may_name_loss_and_gradient_are_those_of_float64(
    temperature: float, deviation: float
) -> None:
    """Where T is large, T² magnifies what float32 rounds."""
    TypeAdapter(Temperature).validate_python(temperature)
    draw = torch.Generator().manual_seed(0)
    student, teacher = (deviation * torch.randn(64, 100, generator=draw) for _ in range(2))
    student.requires_grad_()
    loss = soft_loss(student, one_teacher(teacher), temperature)
    exact = student.detach().double().requires_grad_()
    logs = [torch.log_softmax(part / temperature, dim=1) for part in (teacher.double(), exact)]
    expected = temperature**2 * (logs[0].exp() * (logs[0] - logs[1])).sum(dim=1).mean()
    (slope,) = torch.autograd.grad(expected, exact)
    (found,) = torch.autograd.grad(loss, student)
    assert loss.item() == pytest.approx(expected.item(), rel=2e-4)
    assert (found.double() - slope).norm() <= 2e-5 * slope.norm()


@pytest.mark.parametrize("temperature", [0, 1e-4, 10_001, 1e5, 1e6])
def test_other_temperatures_are_refused(temperature: float) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Temperature).validate_python(temperature)


def one_teacher(logits: Tensor) -> TeacherTargets:
    return TeacherTargets(logits.unsqueeze(1), torch.ones(len(logits), 1))


def example() -> tuple[Tensor, TeacherTargets]:
    student = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    return student, one_teacher(torch.tensor([[3.0, 1.0, 0.5]]))


def random_logits(rows: int = 16, classes: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student = 3 * torch.randn(rows, classes, generator=generator)
    return student.requires_grad_(), 3 * torch.randn(rows, classes, generator=generator)


def gradient(loss: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    (result,) = torch.autograd.grad(loss(logits), logits)
    return result


def batch_of(labels: Tensor, **changes: Tensor) -> Batch:
    nothing = torch.zeros(len(labels), dtype=torch.int64)
    return Batch(nothing.float(), labels, nothing, nothing, **changes)


@pytest.mark.parametrize(("temperature", "divergence", "scaled", "slope"), TABLE)
def test_the_soft_loss_and_its_gradient_are_those_of_the_table(
    temperature: float, divergence: float, scaled: float, slope: tuple[float, ...]
) -> None:
    student, teacher = example()
    plain = soft_loss(student, teacher, temperature, scale_by_temperature_squared=False)
    assert plain.item() == pytest.approx(divergence, abs=1e-6)
    # A difference of entropies near log 3: each rounds by 1e-7, and T² magnifies that.
    assert soft_loss(student, teacher, temperature).item() == pytest.approx(
        scaled, abs=1e-6 + 1e-7 * temperature**2
    )
    found = gradient(lambda logits: soft_loss(logits, teacher, temperature), student)
    torch.testing.assert_close(found, torch.tensor([slope]), atol=2e-6, rtol=0)


def test_at_high_temperature_the_soft_loss_matches_logits() -> None:
    student, teacher = example()
    # What is left of the limit falls as 1 / T: 0.0216 at T = 20.
    assert soft_loss(student, teacher, 100.0).item() == pytest.approx(1.75, abs=0.006)
    found = gradient(lambda logits: soft_loss(logits, teacher, 100.0), student)
    torch.testing.assert_close(found, torch.tensor([[-5 / 6, 1 / 6, 4 / 6]]), atol=2e-3, rtol=0)


def test_at_low_temperature_only_the_largest_logits_count() -> None:
    # T · KL → max z - z at the teacher's largest logit, 3 - 1 = 2.
    student, teacher = example()
    plain = soft_loss(student, teacher, 0.05, scale_by_temperature_squared=False)
    assert 0.05 * plain.item() == pytest.approx(2.0, abs=1e-4)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_equal_logits_cost_nothing_and_teach_nothing(temperature: float) -> None:
    student, _ = random_logits()
    teacher = one_teacher(student.detach().clone())
    assert abs(soft_loss(student, teacher, temperature).item()) < 1e-6 * temperature**2
    found = gradient(lambda logits: soft_loss(logits, teacher, temperature), student)
    assert found.abs().max() < 1e-7 * max(temperature, 1)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_a_constant_added_to_a_row_changes_nothing(temperature: float) -> None:
    student, teacher = random_logits()
    shift = torch.linspace(-5, 5, len(student)).unsqueeze(1)
    expected = soft_loss(student, one_teacher(teacher), temperature)
    moved = soft_loss(student + shift, one_teacher(teacher - 2 * shift), temperature)
    torch.testing.assert_close(moved, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_cross_entropy_with_soft_targets_has_the_same_gradient(temperature: float) -> None:
    student, teacher = random_logits()
    probabilities = torch.softmax(teacher / temperature, dim=1)

    def crossed(logits: Tensor) -> Tensor:
        return temperature**2 * F.cross_entropy(logits / temperature, probabilities)

    found = gradient(lambda logits: soft_loss(logits, one_teacher(teacher), temperature), student)
    torch.testing.assert_close(found, gradient(crossed, student), rtol=1e-4, atol=1e-6)
    entropy = -(probabilities * probabilities.log()).sum(dim=1).mean()
    apart = crossed(student) - soft_loss(student, one_teacher(teacher), temperature)
    torch.testing.assert_close(apart, temperature**2 * entropy, rtol=1e-4, atol=1e-4)


def test_the_teacher_is_the_first_argument_of_the_divergence() -> None:
    half, three_quarters = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.75, 0.25]]).log()
    assert soft_loss(three_quarters, one_teacher(half), 1.0).item() == pytest.approx(0.143841, abs=1e-6)
    assert soft_loss(half, one_teacher(three_quarters), 1.0).item() == pytest.approx(0.130812, abs=1e-6)


def test_the_soft_loss_is_summed_over_classes_and_averaged_over_the_batch() -> None:
    student, teacher = random_logits(rows=6, classes=5)
    expected = 0.0
    for z, v in zip(student.double().tolist(), teacher.double().tolist(), strict=True):
        p = [math.exp(value / 2) / sum(math.exp(other / 2) for other in v) for value in v]
        q = [math.exp(value / 2) / sum(math.exp(other / 2) for other in z) for value in z]
        expected += 4 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 6
    assert soft_loss(student, one_teacher(teacher), 2.0).item() == pytest.approx(expected, rel=1e-5)
    wrong = F.kl_div((student / 2).log_softmax(1), (teacher / 2).softmax(1), reduction="none").mean()
    assert soft_loss(student, one_teacher(teacher), 2.0).item() / (4 * wrong.item()) == pytest.approx(5)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_scale_is_the_temperature_squared(temperature: float) -> None:
    student, teacher = random_logits()
    plain = soft_loss(student, one_teacher(teacher), temperature, scale_by_temperature_squared=False)
    scaled = soft_loss(student, one_teacher(teacher), temperature)
    assert scaled.item() == pytest.approx(temperature**2 * plain.item(), rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_several_teachers_teach_as_the_mean_of_their_losses(temperature: float) -> None:
    # Σ w KL(p_m ‖ q) = KL(p̄ ‖ q) + Σ w KL(p_m ‖ p̄), the last term without q.
    student, _ = random_logits()
    members = torch.stack([random_logits(seed=seed)[1] for seed in (1, 2, 3)], dim=1)
    weights = torch.tensor([0.5, 0.3, 0.2])
    teachers = TeacherTargets(members, weights.expand(len(members), -1))

    def mean_of_losses(logits: Tensor) -> Tensor:
        parts = [
            w * soft_loss(logits, one_teacher(members[:, m]), temperature) for m, w in enumerate(weights)
        ]
        return torch.stack(parts).sum()

    found = gradient(lambda logits: soft_loss(logits, teachers, temperature), student)
    torch.testing.assert_close(found, gradient(mean_of_losses, student), rtol=1e-4, atol=1e-6)
    mean = tempered_probabilities(teachers, temperature).log() * temperature
    torch.testing.assert_close(
        mean_of_losses(student) - soft_loss(student, teachers, temperature),
        mean_of_losses(mean),
        rtol=1e-4,
        atol=1e-4,
    )


def test_no_gradient_reaches_the_teachers() -> None:
    student, teacher = random_logits()
    teacher.requires_grad_()
    soft_loss(student, one_teacher(teacher), 4.0).backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_half_precision_logits_are_computed_in_float32() -> None:
    student, teacher = random_logits()
    low, labels = student.detach().bfloat16(), torch.arange(len(student)) % 7
    soft = soft_loss(low, one_teacher(teacher.bfloat16()), 4.0)
    hard = hard_loss(low, batch_of(labels))
    assert soft.dtype == hard.dtype == torch.float32
    assert torch.equal(soft, soft_loss(low.float(), one_teacher(teacher.bfloat16().float()), 4.0))
    assert torch.equal(hard, hard_loss(low.float(), batch_of(labels)))


@pytest.mark.parametrize("size", [100.0, 10_000.0])
def test_very_large_logits_give_finite_losses_and_gradients(size: float) -> None:
    student = torch.tensor([[0.0, size, -size]], requires_grad=True)
    teacher = one_teacher(torch.tensor([[size, -size, 0.0]]))
    loss = soft_loss(student, teacher, 1.0)
    assert loss.item() == pytest.approx(size)
    assert gradient(lambda logits: soft_loss(logits, teacher, 1.0), student).isfinite().all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_hard_loss_is_a_cross_entropy_with_smoothed_labels(smoothing: float) -> None:
    student, _ = random_logits()
    labels = torch.arange(len(student)) % 7
    spread = F.one_hot(labels, 7) * (1 - smoothing) + smoothing / 7
    expected = -(spread * student.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(hard_loss(student, batch_of(labels), smoothing), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_under_mixup_the_labels_are_mixed_as_the_inputs_are(smoothing: float) -> None:
    student, _ = random_logits()
    labels, partners = torch.arange(len(student)) % 7, torch.arange(len(student)) % 5
    weights = torch.linspace(0, 1, len(student))
    mixed = weights[:, None] * F.one_hot(labels, 7) + (1 - weights[:, None]) * F.one_hot(partners, 7)
    expected = F.cross_entropy(student, mixed, label_smoothing=smoothing)
    batch = batch_of(labels, partner_labels=partners, weights=weights)
    torch.testing.assert_close(hard_loss(student, batch, smoothing), expected)
