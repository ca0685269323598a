"""Classes with few samples: weights, order and shifts against closed forms, slow loops and torch's own weights."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from raydistill.errors import PlanError, StageError
from raydistill.kinds.distill import DistillConfig
from raydistill.kinds.train import TrainConfig
from raydistill.methods.losses import hard_loss
from raydistill.plan.order import order_stages
from raydistill.plan.schema import Plan
from raydistill.training.balance import Balance, balance_of, balanced_order
from raydistill.training.data import Batch

NAMES = ("a", "b", "c")
LABELS = torch.tensor([0] * 12 + [1] * 3 + [2] * 1)
TRAIN: dict[str, Any] = {"stage": "train", "model": {"name": "mlp"}, "epochs": 1}


def config_of(**options: Any) -> TrainConfig:
    return TrainConfig.model_validate(TRAIN | options)


def balance(labels: Tensor = LABELS, **options: Any) -> Balance:
    found = balance_of(config_of(**options), labels, NAMES)
    assert found is not None
    return found


def batch_of(labels: Tensor, told: Balance, partners: Tensor | None = None, share: float = 0.3) -> Batch:
    weights = None if partners is None else torch.full((len(labels),), share)
    return Batch(labels, labels, labels, labels, partner_labels=partners, weights=weights, balance=told)


def test_balanced_weights_make_every_class_count_alike_and_a_sample_1_in_the_mean() -> None:
    weights = balance(class_weights="balanced").weights
    assert weights is not None
    torch.testing.assert_close(weights, torch.tensor([16 / 36, 16 / 9, 16 / 3]))  # N / (C n_c)
    absent = balance(LABELS[:15], class_weights="balanced").weights
    assert absent is not None
    torch.testing.assert_close(absent, torch.tensor([15 / 24, 15 / 6, 0]))


def test_only_the_ratios_of_weights_count() -> None:
    one, other = (balance(class_weights=numbers).weights for numbers in ([1, 2, 4], [0.5, 1, 2]))
    assert one is not None
    assert other is not None
    torch.testing.assert_close(one, other)
    assert one[LABELS].mean().item() == pytest.approx(1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_weight_multiplies_the_loss_of_its_samples_as_torch_has_it(smoothing: float) -> None:
    logits = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    told, order = balance(class_weights=[1, 3, 2]), torch.randperm(16)
    assert told.weights is not None
    labels = LABELS[order]
    expected = F.cross_entropy(logits, labels, told.weights, reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(hard_loss(logits, batch_of(labels, told), smoothing), expected.mean())
    other = labels.flip(0)
    mixed = 0.3 * expected + 0.7 * F.cross_entropy(
        logits, other, told.weights, reduction="none", label_smoothing=smoothing
    )
    torch.testing.assert_close(hard_loss(logits, batch_of(labels, told, other), smoothing), mixed.mean())


def slow_binary_loss(
    logits: Tensor, batch: Batch, smoothing: float, threshold: float | None, class_weights: tuple[float, ...]
) -> float:
    """Class by class in Python's own floats; the mean over the samples that have a label."""
    total, counted = 0.0, 0
    for index, row in enumerate(logits.tolist()):
        parts = {int(batch.labels[index]): 1.0}
        if batch.partner_labels is not None and batch.weights is not None:
            share = float(batch.weights[index])
            parts = {int(batch.labels[index]): share}
            parts[int(batch.partner_labels[index])] = (
                parts.get(int(batch.partner_labels[index]), 0.0) + 1 - share
            )
        if -1 in parts:
            continue
        counted += 1
        weight = sum(part * class_weights[label] for label, part in parts.items())
        for label, logit in enumerate(row):
            part = parts.get(label, 0.0)
            aim = part if threshold is None else float(part > threshold)
            aim = (1 - smoothing) * aim + smoothing / len(row)
            sigmoid = 1 / (1 + math.exp(-logit))
            total -= weight * (aim * math.log(sigmoid) + (1 - aim) * math.log(1 - sigmoid)) / len(row)
    return total / counted


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("threshold", [None, 0.0, 0.4])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("samples", ["plain", "mixed", "unlabelled"])
def test_a_binary_loss_asks_for_every_class_by_itself(
    samples: str, smoothing: float, threshold: float | None, weighed: bool
) -> None:
    logits = torch.randn(16, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    options: dict[str, Any] = {"binary_cross_entropy": {"threshold": threshold}}
    told = balance(**options | ({"class_weights": [1, 3, 2]} if weighed else {}))
    numbers = (1.0, 1.0, 1.0) if told.weights is None else tuple(told.weights.tolist())
    labels = LABELS[torch.randperm(16, generator=torch.Generator().manual_seed(1))]
    batch = batch_of(labels, told, labels.flip(0) if samples == "mixed" else None)
    if samples == "unlabelled":
        labels = torch.where(torch.arange(16) % 3 == 0, -1, labels)
        counts = (labels >= 0).float()
        batch = replace(batch, labels=labels, label_weights=counts * 16 / counts.sum())
    expected = slow_binary_loss(logits, batch, smoothing, threshold, numbers)
    assert hard_loss(logits, batch, smoothing).item() == pytest.approx(expected, rel=1e-6)


def test_two_classes_asked_apart_are_two_regressions() -> None:
    """The gradient of each logit is sigmoid less target, over samples and classes."""
    logits = torch.randn(16, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    hard_loss(logits, batch_of(LABELS, balance(binary_cross_entropy={}))).backward()
    expected = (logits.detach().sigmoid() - F.one_hot(LABELS, 3)) / logits.numel()
    torch.testing.assert_close(logits.grad, expected)


def test_adjusted_logits_have_the_loss_of_the_paper() -> None:
    logits = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    found = hard_loss(logits, batch_of(LABELS, balance(logit_adjustment=1.5)))
    prior, slow = (12 / 16, 3 / 16, 1 / 16), 0.0
    for row, label in zip(logits.tolist(), LABELS.tolist(), strict=True):  # arXiv 2007.07314, eq. 10
        terms = [math.exp(value) * share**1.5 for value, share in zip(row, prior, strict=True)]
        slow -= math.log(terms[label] / sum(terms)) / 16
    assert found.item() == pytest.approx(slow, rel=1e-6)


def test_an_epoch_of_the_balanced_order_has_every_class_equally_often() -> None:
    seen = []
    for epoch in range(3):
        order = balanced_order(LABELS, 7, epoch)
        assert len(order) == len(LABELS)
        assert sorted(torch.bincount(LABELS[order]).tolist()) == [5, 5, 6]
        times = torch.bincount(order, minlength=16)
        assert times[:12].max() == 1  # of the frequent class nobody comes twice
        assert times[12:15].min() >= 1
        assert times[12:15].max() - times[12:15].min() <= 1
        assert torch.equal(order, balanced_order(LABELS, 7, epoch))
        seen.append(tuple(order.tolist()))
    assert len(set(seen)) == 3
    assert not torch.equal(balanced_order(LABELS, 8, 0), balanced_order(LABELS, 7, 0))


def test_a_balanced_order_of_balanced_labels_shows_everything_once() -> None:
    labels = torch.arange(30) % 3
    assert balanced_order(labels, 0, 4).sort().values.tolist() == list(range(30))


def test_what_cannot_be_balanced_is_named() -> None:
    with pytest.raises(StageError, match="`c` has no sample to train on"):
        balance(LABELS[:15], logit_adjustment=1)
    with pytest.raises(StageError, match="raise one"):
        balance(LABELS[:15], class_weights=[0, 0, 1])
    plan = Plan.model_validate(
        {"name": "p", "task": {"name": "mnist"}, "stages": {"t": TRAIN | {"class_weights": [1, 2]}}}
    )
    with pytest.raises(PlanError, match="2 weights for 10 classes"):
        order_stages(plan)
    for key, value in (("class_weights", "balanced"), ("logit_adjustment", 1)):
        with pytest.raises(ValidationError, match="correct for the same imbalance twice"):
            config_of(sampler="balanced", **{key: value})
        with pytest.raises(ValidationError, match="no method looks at them"):
            DistillConfig.model_validate(
                {"stage": "distill", "student": {"name": "mlp"}, "teachers": ["t"], "epochs": 1}
                | {"method": {"method": "hinton", "hard_weight": 0}, key: value}
            )
