"""Contrastive distillation within a batch: known values, loops, and whom it spares."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from raydistill.methods.contrastive import contrast

SMALL = {"name": "mlp", "widths": [12, 6]}
LARGE = {"name": "mlp", "widths": [20, 9]}


def at(*angles: float) -> Tensor:
    """Unit vectors (B, 2)."""
    return torch.tensor([[math.cos(angle), math.sin(angle)] for angle in angles], dtype=torch.float64)


def test_the_loss_has_its_known_value() -> None:
    assert contrast(at(0.3, 2), at(0.1, 1.5), 0.5).item() == pytest.approx(0.179557882, abs=1e-9)


def slow_contrast(own: Tensor, aim: Tensor, temperature: float, labels: list[int]) -> float:
    """Both directions by loops; -1 is no label."""
    total, size = 0.0, len(own)
    for sides in ((own, aim), (aim, own)):
        for i in range(size):
            asked = [j for j in range(size) if j == i or labels[i] != labels[j] or labels[i] == -1]
            cosines = [float(torch.cosine_similarity(sides[0][i], sides[1][j], dim=0)) for j in asked]
            energies = [math.exp(cosine / temperature) for cosine in cosines]
            total -= math.log(energies[asked.index(i)] / sum(energies)) / size
    return total / 2


@pytest.mark.parametrize("labels", [[0, 1, 2, 3, 4], [0, 1, 0, 0, 1], [0, 0, 0, 0, 0], [-1, -1, 0, 0, -1]])
def test_other_samples_of_the_same_class_are_left_out(labels: list[int]) -> None:
    draw = torch.Generator().manual_seed(0)
    own, aim = (torch.randn(5, 4, dtype=torch.float64, generator=draw) for _ in range(2))
    found = contrast(own, aim, 0.3, torch.tensor(labels)).item()
    assert found == pytest.approx(slow_contrast(own, aim, 0.3, labels), abs=1e-9)


def test_the_order_of_samples_and_the_length_of_vectors_do_not_matter() -> None:
    draw = torch.Generator().manual_seed(1)
    own, aim = (torch.randn(6, 4, dtype=torch.float64, generator=draw) for _ in range(2))
    order, expected = torch.randperm(6, generator=draw), contrast(own, aim, 0.07)
    torch.testing.assert_close(contrast(own[order], aim[order], 0.07), expected)
    torch.testing.assert_close(contrast(9 * own, aim / 7, 0.07), expected)


def test_the_gradient_is_that_of_differences_and_finite_where_all_are_spared() -> None:
    own = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    aim = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    for labels in ([0, 1, 2, 3], [0, 0, 0, 0]):
        assert torch.autograd.gradcheck(
            lambda own, aim, labels=labels: contrast(own, aim, 0.5, torch.tensor(labels)), (own, aim)
        )


def test_one_sample_costs_nothing_and_both_heads_have_a_gradient(pair: Any, images: Any) -> None:
    models = pair.of(SMALL, LARGE)
    method = models.method("contrastive", dimensions=5)
    inputs, labels = images
    single = models.losses(method, inputs[:1], labels[:1])["contrast"]
    single.backward()
    assert single.item() == 0
    assert all(parameter.grad.isfinite().all() for parameter in method.parameters())
    models.losses(method, inputs, labels)["contrast"].backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in method.parameters())
    assert all(parameter.grad is None for parameter in models.teacher.parameters())


def test_labels_are_looked_at_only_to_spare_a_class(pair: Any, images: Any) -> None:
    models = pair.of(SMALL, LARGE)
    inputs, labels = images
    torch.manual_seed(0)
    spared = models.method("contrastive")
    torch.manual_seed(0)
    all_asked = models.method("contrastive", spare_own_class=False)
    assert spared.config.needs_labels
    assert not all_asked.config.needs_labels
    hidden = torch.full_like(labels, -1)
    told = [
        models.losses(method, inputs, given)["contrast"]
        for method, given in ((all_asked, labels), (all_asked, hidden), (spared, hidden), (spared, labels))
    ]
    assert torch.equal(told[0], told[1])
    assert torch.equal(told[0], told[2])
    assert told[3] < told[0]


def test_a_batch_is_learned_by_heart(pair: Any, images: Any) -> None:
    models = pair.of({"name": "mlp", "widths": [40, 40]}, LARGE)
    method = models.method("contrastive")
    optimizer = torch.optim.Adam([*models.student.parameters(), *method.parameters()], 0.01)
    for _ in range(100):
        loss = models.losses(method, *images)["contrast"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01
