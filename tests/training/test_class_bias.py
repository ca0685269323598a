"""Shifts of classes against a search over a grid, and against priors that are known."""

import pytest
import torch
from torch import Tensor

from raydistill.training.class_bias import (
    Contest,
    log_odds,
    mean_probability,
    offset_of_fewest_errors,
    offset_to_prior,
)

CLASSES = torch.tensor([3, 1])


def shifted(logits: Tensor, offset: float) -> Tensor:
    logits = logits.double().clone()
    logits[:, CLASSES] += offset
    return logits


def errors(logits: Tensor, labels: Tensor, offset: float) -> int:
    return int((shifted(logits, offset).argmax(dim=1) != labels).sum())


@pytest.mark.parametrize("prior", [0.01, 0.4, 0.97])
def test_the_mean_probability_becomes_the_prior(prior: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(200, 5) * 3
    offset = offset_to_prior(log_odds(logits, CLASSES), prior)
    mass = shifted(logits, offset).softmax(dim=1)[:, CLASSES].sum(dim=1).mean()
    assert mass.item() == pytest.approx(prior, abs=1e-8)


def test_a_known_shift_is_found_again() -> None:
    torch.manual_seed(0)
    logits = torch.randn(200, 5) * 3
    prior = logits.double().softmax(dim=1)[:, CLASSES].sum(dim=1).mean().item()
    assert offset_to_prior(log_odds(shifted(logits, -3.5).float(), CLASSES), prior) == pytest.approx(
        3.5, abs=1e-5
    )


@pytest.mark.parametrize("spread", [1e-3, 30.0, 300.0, 1e4, 1e7])
@pytest.mark.parametrize("prior", [1e-4, 0.102, 0.5, 0.9])
def test_the_prior_is_reached_however_far_logits_are_apart(spread: float, prior: float) -> None:
    """Against a mean of softmaxes in float64; 49 of 50 samples may have to be moved over the whole spread."""
    torch.manual_seed(1)
    logits = torch.randn(50, 5) * spread
    offset = offset_to_prior(log_odds(logits, CLASSES), prior)
    mass = shifted(logits, offset).softmax(dim=1)[:, CLASSES].sum(dim=1).mean()
    assert mass.item() == pytest.approx(prior, rel=1e-6)


def test_a_prior_that_infinite_logits_forbid_is_missed_by_as_little_as_can_be() -> None:
    logits = torch.zeros(10, 5)
    logits[:3, CLASSES] = -torch.inf  # three of ten samples will never say the classes
    offset = offset_to_prior(log_odds(logits, CLASSES), 0.9)
    assert mean_probability(log_odds(shifted(logits, offset), CLASSES)) == pytest.approx(0.7, abs=1e-9)
    assert offset_to_prior(log_odds(logits[:3], CLASSES), 0.9) == 0.0


def test_the_fewest_errors_are_found_also_where_classes_are_far_apart() -> None:
    logits, labels = torch.zeros(4, 5), torch.tensor([3, 3, 0, 0])
    logits[:2, 0], logits[2:, 0] = (
        700.0,
        900.0,
    )  # 3 is right between the two, 1 ties with it and is never best
    logits[:, 1] = -1.0
    offset = offset_of_fewest_errors(Contest.of(logits, CLASSES), labels)
    assert errors(logits, labels, offset) == 0
    assert 700 < offset < 900


@pytest.mark.parametrize("seed", range(5))
def test_no_offset_of_a_grid_makes_fewer_errors(seed: int) -> None:
    torch.manual_seed(seed)
    labels = torch.randint(5, (150,))
    logits = shifted(torch.randn(150, 5) + 2.5 * torch.nn.functional.one_hot(labels, 5), -2.0)
    offset = offset_of_fewest_errors(Contest.of(logits, CLASSES), labels)
    fewest = min(errors(logits, labels, value) for value in torch.linspace(-20, 20, 4001).tolist())
    assert errors(logits, labels, offset) == fewest
    assert 0.5 < offset < 3.5


def test_a_model_that_needs_no_shift_gets_none() -> None:
    labels = torch.arange(5)
    assert offset_of_fewest_errors(Contest.of(torch.eye(5) * 4, CLASSES), labels) == 0.0


def test_classes_that_never_occur_are_never_predicted() -> None:
    logits = torch.zeros(10, 5)
    logits[:, 3] = 2.0
    logits[:, 0] = 1.0
    labels = torch.zeros(10, dtype=torch.int64)
    assert errors(logits, labels, offset_of_fewest_errors(Contest.of(logits, CLASSES), labels)) == 0


def test_samples_come_in_any_pieces() -> None:
    draw = torch.Generator().manual_seed(5)
    logits, labels = torch.randn(60, 5, generator=draw), torch.randint(5, (60,), generator=draw)
    parts = logits.split(7)
    assert torch.equal(torch.cat([log_odds(part, CLASSES) for part in parts]), log_odds(logits, CLASSES))
    joined = Contest.joined(Contest.of(part, CLASSES) for part in parts)
    whole = offset_of_fewest_errors(Contest.of(logits, CLASSES), labels)
    assert offset_of_fewest_errors(joined, labels) == whole
