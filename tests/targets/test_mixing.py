"""Mixing against closed forms and against slow loops."""

import math

import pytest
import torch
from torch import Tensor

from raydistill.targets.mixing import (
    TeacherTargets,
    divergence_from,
    entropy,
    entropy_weights,
    geometric_log_probabilities,
    mean_logits,
    tempered_log_probabilities,
    tempered_probabilities,
)


def members_of(*probabilities: tuple[float, ...], weights: tuple[float, ...] | None = None) -> TeacherTargets:
    """One sample whose members say `probabilities` at T = 1."""
    logits = torch.tensor(probabilities).log().unsqueeze(0)
    count = len(probabilities)
    return TeacherTargets(logits, torch.tensor([weights or (1 / count,) * count]))


def random_members(seed: int = 0) -> TeacherTargets:
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(6, 3, 7, generator=generator)
    weights = torch.rand(6, 3, generator=generator)
    return TeacherTargets(logits, weights / weights.sum(dim=1, keepdim=True))


def slow_arithmetic_mean(targets: TeacherTargets, temperature: float) -> Tensor:
    """Float64, one number at a time."""
    mean = torch.zeros(targets.logits.shape[0], targets.logits.shape[2], dtype=torch.float64)
    for sample, members in enumerate(targets.logits.tolist()):
        for member, logits in enumerate(members):
            powers = [math.exp(logit / temperature) for logit in logits]
            for label, power in enumerate(powers):
                mean[sample, label] += targets.weights[sample, member].item() * power / sum(powers)
    return mean


def near(values: Tensor, expected: tuple[float, ...], digits: int) -> bool:
    return torch.allclose(
        values.flatten().double(), torch.tensor(expected).double(), rtol=0, atol=0.6 * 10**-digits
    )


def test_one_teacher_gives_the_published_soft_targets() -> None:
    targets = TeacherTargets(torch.tensor([[[3.0, 1.0, 0.5]]]), torch.ones(1, 1))
    assert near(tempered_probabilities(targets, 1), (0.821409, 0.111166, 0.067425), 6)
    assert near(tempered_probabilities(targets, 2), (0.604455, 0.222366, 0.173179), 6)
    assert near(tempered_probabilities(targets, 4), (0.466899, 0.283188, 0.249913), 6)
    assert near(tempered_probabilities(targets, 20), (0.358766, 0.324625, 0.316610), 6)


def test_arithmetic_and_geometric_mean_give_the_published_values() -> None:
    targets = members_of((0.98, 0.01, 0.01), (0.3, 0.4, 0.3))
    assert near(tempered_probabilities(targets, 1), (0.64, 0.205, 0.155), 6)
    assert near(geometric_log_probabilities(targets, 1).exp(), (0.821249, 0.095792, 0.082959), 6)


def test_the_arithmetic_mean_is_tempered_inside() -> None:
    targets = members_of((0.9, 0.05, 0.05), (0.05, 0.9, 0.05))
    assert near(tempered_probabilities(targets, 4), (0.3768, 0.3768, 0.2463), 4)
    tempered_afterwards = torch.softmax(tempered_probabilities(targets, 1).log() / 4, dim=-1)
    assert near(tempered_afterwards, (0.3892, 0.3892, 0.2217), 4)


def test_tempering_commutes_with_the_geometric_mean() -> None:
    targets = random_members()
    tempered_first = TeacherTargets(torch.log_softmax(targets.logits / 4, dim=-1), targets.weights)
    torch.testing.assert_close(
        geometric_log_probabilities(tempered_first, 1), geometric_log_probabilities(targets, 4)
    )
    at_one = geometric_log_probabilities(targets, 1)
    torch.testing.assert_close(torch.log_softmax(at_one / 4, -1), geometric_log_probabilities(targets, 4))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_the_arithmetic_mean_equals_a_slow_loop(temperature: float) -> None:
    targets = random_members()
    expected = slow_arithmetic_mean(targets, temperature)
    torch.testing.assert_close(
        tempered_probabilities(targets, temperature).double(), expected, rtol=1e-5, atol=1e-7
    )
    logs = tempered_log_probabilities(targets, temperature).double()
    torch.testing.assert_close(logs, expected.log(), rtol=1e-5, atol=1e-5)


def test_the_mean_of_losses_and_the_loss_of_the_mean_differ_by_a_constant() -> None:
    targets = random_members()
    log_mean = tempered_log_probabilities(targets, 1)
    constant = (targets.weights * divergence_from(targets.logits, log_mean)).sum(dim=1)
    log_student = torch.log_softmax(torch.randn(6, 7, generator=torch.Generator().manual_seed(9)), dim=-1)
    mean_of_losses = (targets.weights * divergence_from(targets.logits, log_student)).sum(dim=1)
    loss_of_mean = (log_mean.exp() * (log_mean - log_student)).sum(dim=1)
    torch.testing.assert_close(mean_of_losses, loss_of_mean + constant)


def test_a_log_probability_survives_where_the_probability_is_rounded_to_zero() -> None:
    targets = TeacherTargets(torch.tensor([[[0.0, -400.0], [0.0, -500.0]]]), torch.tensor([[0.5, 0.5]]))
    assert tempered_probabilities(targets, 1)[0, 1] == 0
    assert tempered_log_probabilities(targets, 1)[0, 1].item() == pytest.approx(-400 + math.log(0.5))


def test_a_member_of_weight_zero_does_not_count() -> None:
    targets = members_of((0.9, 0.1), (0.2, 0.8), weights=(1.0, 0.0))
    assert near(tempered_probabilities(targets, 1), (0.9, 0.1), 6)
    assert near(tempered_log_probabilities(targets, 1).exp(), (0.9, 0.1), 6)
    assert near(geometric_log_probabilities(targets, 1).exp(), (0.9, 0.1), 6)


def test_entropy_weights_give_the_published_values() -> None:
    targets = members_of((0.9, 0.05, 0.05), (0.4, 0.3, 0.3))
    assert near(entropy(targets.logits), (0.39440, 1.08890), 5)
    assert near(entropy_weights(targets.logits, 1.0), (0.666968, 0.333032), 6)


def test_entropy_weights_become_equal_for_large_tau_and_choose_one_for_small_tau() -> None:
    logits = members_of((0.9, 0.05, 0.05), (0.4, 0.3, 0.3)).logits
    assert near(entropy_weights(logits, 1e6), (0.5, 0.5), 6)
    assert near(entropy_weights(logits, 1e-3), (1.0, 0.0), 6)
    with pytest.raises(ValueError, match="above 0"):
        entropy_weights(logits, 0.0)


def test_mixing_is_float32_for_half_precision_logits_and_under_autocast() -> None:
    targets = random_members()
    halves = TeacherTargets(targets.logits.half(), targets.weights)
    expected = tempered_probabilities(TeacherTargets(halves.logits.float(), targets.weights), 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tempered_probabilities(halves, 4), expected)
        assert geometric_log_probabilities(halves, 4).dtype == torch.float32
        assert mean_logits(halves).dtype == torch.float32
