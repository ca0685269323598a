"""What a class's activations look like: means and covariances, and new activations drawn from them.

Covariances are kept as factors L with L Lᵀ = Σ, so that μ + L ε has the covariance Σ. (Multiplying the noise by Σ
itself, as the release of arXiv 1710.07535 does, gives the covariance Σ².)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

SMALLEST_EIGENVALUE = 1e-9  # of the largest: what rounding leaves of a direction without variance


class LayerStatistics(NamedTuple):
    """Of one layer of D units, float32: mean (D,), standard deviation (D,), and a factor (D, R) of the covariance.

    Without a factor the units are taken for independent. R, the rank, is at most the number of samples less one.
    """

    mean: Tensor
    deviation: Tensor
    factor: Tensor | None

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` records (count, D): normal, with this mean and covariance."""
        width = len(self.mean) if self.factor is None else self.factor.shape[1]
        noise = torch.randn(count, width, generator=generator)
        spread = noise * self.deviation if self.factor is None else noise @ self.factor.T
        return self.mean + spread


@dataclass
class LayerMoments:
    """Of `count` activations of a layer: the sum (D,), and the sum of the products of any two units (D, D) or of
    squares (D,).

    Sums in float64 over samples, in whatever pieces they come.
    """

    count: int
    first: Tensor
    second: Tensor

    @classmethod
    def empty(cls, units: int, *, with_covariance: bool, device: str = "cpu") -> "LayerMoments":
        """No samples yet."""
        shape = (units, units) if with_covariance else (units,)
        kind = torch.float64
        return cls(
            0, torch.zeros(units, dtype=kind, device=device), torch.zeros(shape, dtype=kind, device=device)
        )

    def add(self, activations: Tensor) -> None:
        """Take the activations (B, D) of more samples."""
        values = activations.double()
        self.count += len(values)
        self.first += values.sum(dim=0)
        self.second += values.square().sum(dim=0) if self.second.dim() == 1 else values.T @ values

    def covariance(self) -> Tensor:
        """The unbiased covariance (D, D), or the variances (D,); zero for a single sample."""
        mean = self.first / self.count
        product = mean.square() if self.second.dim() == 1 else torch.outer(mean, mean)
        return (self.second - self.count * product) / max(self.count - 1, 1)

    def statistics(self) -> LayerStatistics:
        """Mean, deviation and factor."""
        covariance = self.covariance()
        is_full = covariance.dim() == 2
        variance = covariance.diagonal() if is_full else covariance
        return LayerStatistics(
            (self.first / self.count).float(),
            variance.clamp(min=0).sqrt().float(),
            factor_of(covariance).float() if is_full else None,
        )


def factor_of(covariance: Tensor) -> Tensor:
    """L (D, R) with L Lᵀ = the covariance (D, D); directions without variance, and those that rounding made negative,
    are left out."""
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > SMALLEST_EIGENVALUE * values[-1].clamp(min=0)
    kept &= values > 0
    return vectors[:, kept] * values[kept].sqrt()


def recorded_layers(named: Sequence[str], layers: str | Sequence[str]) -> tuple[str, ...]:
    """The features that statistics are of, besides the logits: none for `top`; for `all`, those before a ReLU."""
    if layers == "top":
        return ()
    if layers == "all":
        return tuple(name for name in named if name.endswith("_pre"))
    return tuple(layers)
