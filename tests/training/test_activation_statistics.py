"""Statistics of activations against numpy, and records drawn from them against what they are drawn for."""

import numpy as np
import pytest
import torch
from torch import Tensor

from raydistill.training.activation_statistics import (
    LayerMoments,
    LayerStatistics,
    factor_of,
    recorded_layers,
)

# Standard deviations from 0.5 to 3, so that a covariance Σ² in place of Σ would be far off.
MIXING = torch.tensor([[3.0, 0, 0, 0], [1.0, 0.5, 0, 0], [-0.7, 0.2, 0.8, 0], [0.1, 0.9, -0.4, 0.6]])


def moments_of(activations: Tensor, *, with_covariance: bool = True) -> LayerMoments:
    moments = LayerMoments.empty(activations.shape[1], with_covariance=with_covariance)
    moments.add(activations)
    return moments


def test_means_and_covariances_are_those_of_numpy() -> None:
    values = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) @ MIXING.T + 5
    found = moments_of(values).statistics()
    assert found.factor is not None
    np.testing.assert_allclose(found.mean, values.numpy().mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.factor @ found.factor.T, np.cov(values.numpy().T), atol=1e-5)
    np.testing.assert_allclose(found.deviation, values.numpy().std(axis=0, ddof=1), rtol=1e-5)


@pytest.mark.parametrize("with_covariance", [True, False])
def test_pieces_add_up_exactly(with_covariance: bool) -> None:
    """Multiples of 1/8 have exact sums: not a bit may differ, whatever the pieces."""
    draw = torch.Generator().manual_seed(1)
    values = torch.randint(-80, 80, (97, 5), generator=draw) / 8
    pieces = LayerMoments.empty(5, with_covariance=with_covariance)
    for piece in values.split([1, 60, 3, 33]):
        pieces.add(piece)
    whole = moments_of(values, with_covariance=with_covariance)
    assert pieces.count == whole.count == 97
    assert torch.equal(pieces.first, whole.first)
    assert torch.equal(pieces.second, whole.second)


def test_the_covariance_of_many_records_is_that_of_the_statistics() -> None:
    """With the release's sampling, noise times Σ, the covariance would be Σ²: here up to ten times as large."""
    covariance = MIXING @ MIXING.T
    mean = torch.tensor([1.0, -2, 0, 4])
    statistics = LayerStatistics(mean, covariance.diagonal().sqrt(), factor_of(covariance.double()).float())
    records = statistics.draw(100_000, torch.Generator().manual_seed(2))
    found = torch.from_numpy(np.cov(records.numpy().T)).float()
    assert torch.linalg.norm(found - covariance) < 0.02 * torch.linalg.norm(covariance)
    torch.testing.assert_close(records.mean(dim=0), mean, atol=0.03, rtol=0)


def test_without_a_factor_units_are_independent() -> None:
    deviation = torch.tensor([0.5, 3.0])
    records = LayerStatistics(torch.zeros(2), deviation, None).draw(100_000, torch.Generator().manual_seed(3))
    found = torch.from_numpy(np.cov(records.numpy().T)).float()
    torch.testing.assert_close(found, torch.diag(deviation**2), atol=0.1, rtol=0.02)


@pytest.mark.parametrize("with_covariance", [True, False])
@pytest.mark.parametrize("count", [1, 6])
def test_without_variance_every_record_is_the_mean(with_covariance: bool, count: int) -> None:
    values = torch.tensor([[1.5, -2.0, 0.25]]).expand(count, -1)
    statistics = moments_of(values, with_covariance=with_covariance).statistics()
    records = statistics.draw(7, torch.Generator().manual_seed(4))
    assert torch.equal(records, values[:1].expand(7, -1))


def test_fewer_samples_than_units_give_a_factor_of_their_rank() -> None:
    values = torch.randn(5, 30, generator=torch.Generator().manual_seed(5))
    factor = moments_of(values).statistics().factor
    assert factor is not None
    assert factor.shape == (30, 4)
    np.testing.assert_allclose(factor @ factor.T, np.cov(values.numpy().T), atol=1e-5)


def test_an_eigenvalue_that_rounding_made_negative_is_left_out() -> None:
    factor = factor_of(torch.diag(torch.tensor([4.0, -1e-12, 1.0], dtype=torch.float64)))
    torch.testing.assert_close(factor @ factor.T, torch.diag(torch.tensor([4.0, 0, 1.0])).double())


def test_layers_are_the_top_those_before_a_relu_or_those_that_are_listed() -> None:
    named = ["hidden1_pre", "hidden1", "stage2_pre", "embedding"]
    assert recorded_layers(named, "top") == ()
    assert recorded_layers(named, "all") == ("hidden1_pre", "stage2_pre")
    assert recorded_layers(named, ("embedding",)) == ("embedding",)
