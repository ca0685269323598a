"""The labels alone, and FitNets' second phase that is made of them."""

import math

import pytest
import torch

from raydistill.kinds.distill import DistillConfig
from raydistill.kinds.methods import LabelsConfig
from raydistill.methods.labels import Labels
from raydistill.models.taps import Output
from raydistill.stages.distill import build_method
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch
from raydistill.training.method import NO_CONTEXT, MethodContext


def batch_of(labels: list[int], epoch: int = 0) -> Batch:
    rows = torch.arange(len(labels))
    return Batch(torch.rand(len(labels), 1), torch.tensor(labels), rows, rows, epoch=epoch)


def cross_entropy(scores: list[float], label: int, temperature: float = 1.0) -> float:
    powers = [math.exp(score / temperature) for score in scores]
    return math.log(sum(powers)) - scores[label] / temperature


SCORES = [[1.0, -0.5, 2.0], [0.0, 3.0, 0.5]]


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_loss_is_the_mean_cross_entropy_with_the_smoothed_labels(smoothing: float) -> None:
    expected = 0.0
    for scores, label in zip(SCORES, [2, 0], strict=True):
        for index in range(3):
            share = smoothing / 3 + (1 - smoothing) * (index == label)
            expected += share * cross_entropy(scores, index) / 2
    method = Labels(LabelsConfig(method="labels"), MethodContext(label_smoothing=smoothing))
    losses = method.losses(Output(torch.tensor(SCORES), {}), None, batch_of([2, 0]))
    assert losses["hard"].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("epoch", "weight"), [(0, 4.0), (5, 2.5), (10, 1.0), (50, 1.0)])
def test_fitnets_second_phase_fades_the_soft_term_alone(epoch: int, weight: float) -> None:
    soft = {"method": "hinton", "temperature": 3, "soft_weight": 1, "hard_weight": 0}
    soft |= {"scale_by_temperature_squared": False, "ramp": {"start": 4, "end": 1, "epochs": 10}}
    written = {"stage": "distill", "student": {"name": "mlp"}, "teachers": ["t"], "epochs": 10}
    config = DistillConfig.model_validate(written | {"methods": [{"method": "labels"}, soft]})
    teacher = [[2.0, 0.0, 1.0], [0.5, 1.0, 0.0]]
    targets = TeacherTargets(torch.tensor(teacher)[:, None], torch.ones(2, 1))
    losses = build_method(config, NO_CONTEXT).losses(
        Output(torch.tensor(SCORES), {}), targets, batch_of([2, 0], epoch)
    )

    hard = (cross_entropy(SCORES[0], 2) + cross_entropy(SCORES[1], 0)) / 2
    divergence = 0.0
    for own, theirs in zip(SCORES, teacher, strict=True):
        for index in range(3):
            wanted = math.exp(-cross_entropy(theirs, index, 3.0))
            divergence += wanted * (math.log(wanted) + cross_entropy(own, index, 3.0)) / 2
    assert losses["labels/hard"].item() == pytest.approx(hard, rel=1e-6)
    assert losses["hinton/soft"].item() == pytest.approx(weight * divergence, rel=1e-5)
