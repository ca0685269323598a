"""Contrastive distillation with a memory bank: known values, slow loops, and what becomes of the banks."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from raydistill.methods.contrastive_bank import (
    ContrastiveBank,
    by_class,
    first_alike,
    first_banks,
    told_apart,
)
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.tasks.labels import UNLABELLED
from raydistill.training.data import Batch

TWO = {"name": "mlp", "widths": [2]}


def at(*angles: float) -> Tensor:
    """Unit vectors (B, 2)."""
    return torch.tensor([[math.cos(angle), math.sin(angle)] for angle in angles], dtype=torch.float64)


def counted(drawn: Sequence[Sequence[int]], size: int) -> Tensor:
    """How often each row was drawn, (B, N)."""
    return torch.tensor([[row.count(index) for index in range(size)] for row in drawn], dtype=torch.float64)


# Two samples, six rows, three negatives each: the release's functions give the numbers below for them.
OWN, AIM, ROWS = at(0.3, 2), at(0.1, 1.5), torch.tensor([0, 3])
STUDENTS, TEACHERS = at(0, 1, 2, 3, 4, 5), at(0, 0.5, 1, 1.5, 2, 2.5)
DRAWN = counted([[1, 2, 4], [0, 1, 5]], 6)
NORMALIZERS = [24.302467015, 14.836755819]


@pytest.fixture
def built(pair: Any) -> Any:
    """A method that takes embeddings (B, 2) as they are, over the banks above or drawn ones."""

    def build(labels: Tensor | None = None, **options: Any) -> ContrastiveBank:
        options = {"dimensions": 2, "negatives": 3, "temperature": 0.5} | options
        labels = torch.arange(6) if labels is None else labels
        method = pair.of(TWO, TWO).method("contrastive_bank", {"labels": labels, "seed": 7}, **options)
        for head in method.heads:
            torch.nn.init.eye_(head.weight)
            torch.nn.init.zeros_(head.bias)
        if len(labels) == 6:
            method.student_bank.copy_(STUDENTS)
            method.teacher_bank.copy_(TEACHERS)
        return method

    return build


def losses(
    method: ContrastiveBank, own: Tensor, aim: Tensor, rows: Tensor, ids: Tensor | None = None
) -> dict[str, Tensor]:
    """Of given embeddings (B, 2) of the samples in these rows."""
    student = Output(torch.zeros(len(rows), 3), {"embedding": own})
    teacher = TeacherTargets(
        torch.zeros(len(rows), 1, 3), torch.ones(len(rows), 1), {"embedding": aim.float()}
    )
    return method.losses(student, teacher, Batch(own, rows, rows if ids is None else ids, rows))


def test_a_side_has_its_known_value_at_equal_exponentials() -> None:
    negatives, size = 16_384, 50_000
    logits, normalizer = torch.ones(2, size, dtype=torch.float64), torch.tensor(size).log() + 1  # e = 1/N
    drawn = torch.full((2, size), negatives / size, dtype=torch.float64)
    found = told_apart(logits, normalizer, torch.tensor([3, 4]), drawn, negatives)
    expected = math.log(1 + negatives) + negatives * math.log(1 + 1 / negatives)
    assert expected == pytest.approx(10.7041, abs=1e-4)
    with_epsilon = expected + negatives * 1e-7 / (negatives / size)
    assert found.tolist() == pytest.approx([with_epsilon] * 2, abs=1e-5)


@pytest.mark.parametrize(
    ("vectors", "bank", "normalizer", "expected"),
    [(OWN, TEACHERS, NORMALIZERS[0], 1.759775996), (AIM, STUDENTS, NORMALIZERS[1], 1.965522238)],
)
def test_the_loss_has_its_known_value(
    vectors: Tensor, bank: Tensor, normalizer: float, expected: float
) -> None:
    log = torch.tensor(normalizer, dtype=torch.float64).log()
    assert told_apart(vectors @ bank.mT / 0.5, log, ROWS, DRAWN, 3).mean().item() == pytest.approx(
        expected, rel=1e-8
    )


def test_a_step_has_the_known_losses_and_leaves_the_known_rows(
    built: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = built()
    monkeypatch.setattr(method, "drawn", lambda rows, ids: DRAWN.float())
    told = losses(method, OWN, AIM, ROWS)
    assert method.log_normalizers.exp().tolist() == pytest.approx(NORMALIZERS, rel=1e-6)
    assert [loss.item() for loss in told.values()] == pytest.approx([1.759775996, 1.965522238], rel=1e-6)
    expected = torch.tensor([[0.988771078, 0.149438132], [-0.801143616, 0.598472144]])
    torch.testing.assert_close(method.student_bank[ROWS], expected)
    for bank, before in ((method.student_bank, STUDENTS), (method.teacher_bank, TEACHERS)):
        assert torch.equal(bank[[1, 2, 4, 5]], before[[1, 2, 4, 5]].float())
        torch.testing.assert_close(bank.norm(dim=1), torch.ones(6))


def test_the_normalizers_are_those_of_the_first_batch(built: Any) -> None:
    method = built()
    losses(method, OWN, AIM, ROWS)
    first = method.log_normalizers.clone()
    method.at_step(1)
    losses(method, AIM, OWN, ROWS)
    assert torch.equal(method.log_normalizers, first)
    resumed = built()
    resumed.load_state_dict(method.state_dict())
    losses(resumed, AIM, OWN, ROWS)
    assert torch.equal(resumed.log_normalizers, first)


def slow_loss(vector: Tensor, bank: Tensor, row: int, drawn: Sequence[int], normalizer: float) -> Tensor:
    """As the paper writes it, of one sample."""
    noise = len(drawn) / len(bank)
    exponentials = [(vector @ bank[index] / 0.5).exp() / normalizer for index in (row, *drawn)]
    total = -(exponentials[0] / (exponentials[0] + noise + 1e-7)).log()
    for each in exponentials[1:]:
        total = total - (noise / (each + noise + 1e-7)).log()
    return total


def test_loss_and_gradient_are_those_of_a_loop() -> None:
    draw = torch.Generator().manual_seed(0)
    vectors, bank = (torch.randn(count, 4, dtype=torch.float64, generator=draw) for count in (5, 9))
    rows, drawn = [2, 0, 8, 3, 3], [[1, 1, 5], [4, 3, 3], [0, 7, 0], [0, 1, 2], [2, 1, 0]]
    vectors.requires_grad_()
    slow = torch.stack(
        [slow_loss(*given, 3.0) for given in zip(vectors, [bank] * 5, rows, drawn, strict=True)]
    )
    (expected,) = torch.autograd.grad(slow.sum(), vectors)
    log = torch.tensor(3.0, dtype=torch.float64).log()
    found = told_apart(vectors @ bank.mT / 0.5, log, torch.tensor(rows), counted(drawn, 9), 3)
    torch.testing.assert_close(found, slow, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), vectors)[0], expected)


def test_what_would_overflow_has_a_value_and_a_gradient() -> None:
    logits = torch.tensor([[1000.0, -1000.0], [-1000.0, 1000.0]], requires_grad=True)
    drawn = torch.tensor([[0.0, 2.0], [0.0, 2.0]])
    found = told_apart(logits, torch.zeros(()), torch.tensor([0, 0]), drawn, 2)
    assert found.tolist() == pytest.approx([0, 3000], abs=1e-6)  # one miss of its own row, two taken for it
    found.sum().backward()
    assert logits.grad.isfinite().all()


def test_the_order_of_samples_does_not_matter(built: Any) -> None:
    draw = torch.Generator().manual_seed(1)
    own, aim = (torch.randn(6, 2, generator=draw) for _ in range(2))
    order = torch.randperm(6, generator=draw)
    one, other = built(), built()
    told = losses(one, own, aim, torch.arange(6), torch.arange(6) * 11)
    again = losses(other, own[order], aim[order], order, order * 11)
    torch.testing.assert_close(again, told)
    torch.testing.assert_close(other.student_bank, one.student_bank)
    torch.testing.assert_close(other.log_normalizers, one.log_normalizers)


def test_a_sample_that_comes_twice_is_written_once(built: Any) -> None:
    draw = torch.Generator().manual_seed(1)
    own, aim = (torch.randn(2, 2, generator=draw) for _ in range(2))
    one, other = built(), built()
    losses(one, own, aim, torch.tensor([4, 1]))
    losses(other, own[[0, 1, 0]], aim[[0, 1, 0]], torch.tensor([4, 1, 4]))
    assert torch.equal(one.student_bank, other.student_bank)
    torch.testing.assert_close(other.log_normalizers, one.log_normalizers)
    assert first_alike(torch.tensor([4, 1, 4, 4, 1])).tolist() == [0, 1, 0, 0, 1]


def test_negatives_are_of_other_classes_and_all_of_them_as_often(built: Any) -> None:
    labels = torch.tensor([2, 0, 2, 1, 0, 2, UNLABELLED, 0, UNLABELLED, 2])
    method = built(labels, negatives=20_000)
    rows = torch.arange(10)
    counts = method.drawn(rows, rows)
    for row, label in enumerate(labels.tolist()):
        own = (labels == label) if label != UNLABELLED else rows == row
        assert counts[row, own].sum() == 0
        others = counts[row, ~own]
        assert others.sum() == 20_000
        part = 1 / len(others)
        deviation = math.sqrt(20_000 * part * (1 - part))
        assert (others - 20_000 * part).abs().max() < 4.5 * deviation


def test_without_looking_at_labels_only_the_sample_itself_is_spared(built: Any) -> None:
    labels = torch.tensor([0, 0, 0, 1])
    method = built(labels, negatives=1000, spare_own_class=False)
    assert not method.config.needs_labels
    counts = method.drawn(torch.arange(4), torch.arange(4))
    assert counts.diagonal().tolist() == [0] * 4
    assert (counts > 0).sum() == 12


def test_draws_are_those_of_a_sample_in_a_batch(built: Any) -> None:
    method, ids = built(torch.arange(30), negatives=50), torch.arange(30) + 100
    whole = method.drawn(torch.arange(30), ids)
    rows = torch.tensor([7, 3])
    assert torch.equal(method.drawn(rows, ids[rows]), whole[rows])
    losses(method, torch.rand(2, 2), torch.rand(2, 2), rows)
    assert not torch.equal(method.drawn(rows, ids[rows]), whole[rows])


def test_rows_are_sorted_by_class() -> None:
    order, first, sizes = by_class(torch.tensor([1, UNLABELLED, 0, 1, UNLABELLED]))
    assert order.tolist() == [2, 0, 3, 1, 4]
    assert first.tolist() == [1, 3, 0, 1, 4]
    assert sizes.tolist() == [2, 1, 1, 2, 1]


@pytest.mark.parametrize("labels", [[0, 0, 0], [0]])
def test_samples_of_one_class_are_refused(built: Any, labels: list[int]) -> None:
    with pytest.raises(ValueError, match="other classes, and the transfer set has none"):
        built(torch.tensor(labels))


def test_banks_begin_with_vectors_of_length_one_on_average() -> None:
    banks = first_banks(2000, 128, 3)
    assert banks.abs().max() <= math.sqrt(3 / 128)
    assert banks.square().sum(dim=2).mean().item() == pytest.approx(1, abs=0.01)
    assert torch.equal(first_banks(2000, 128, 3), banks)
    assert not torch.equal(first_banks(2000, 128, 4), banks)
    assert not torch.equal(banks[0], banks[1])


def test_gradients_reach_the_student_and_both_heads_and_nobody_else(built: Any) -> None:
    method = built()
    own, aim = torch.rand(2, 2, requires_grad=True), torch.rand(2, 2, requires_grad=True)
    told = losses(method, own, aim, ROWS)
    told["contrast"].backward(retain_graph=True)
    assert own.grad.abs().max() > 0
    assert method.heads[0].weight.grad.abs().max() > 0
    assert method.heads[1].weight.grad is None
    told["contrast_teacher"].backward()
    assert method.heads[1].weight.grad.abs().max() > 0
    assert aim.grad is None
    assert not any(bank.requires_grad for bank in (method.student_bank, method.teacher_bank))


def test_a_transfer_set_is_learned_by_heart(pair: Any, images: Any) -> None:
    models = pair.of({"name": "mlp", "widths": [40, 40]}, {"name": "mlp", "widths": [20, 9]})
    method = models.method("contrastive_bank", negatives=7)
    optimizer = torch.optim.Adam([*models.student.parameters(), *method.parameters()], 0.003)
    for _ in range(200):
        told = models.losses(method, *images)
        loss = torch.stack(list(told.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.at_step(1)
    assert loss.item() < 0.5  # 6.5 in the beginning
