"""From the logits of several teachers to one target distribution (Hinton et al. 2015, arXiv 1503.02531).

Everything is computed in float32, or better, and over dim -1 = classes. Nothing here is a matrix product on purpose:
autocast would run it in half precision.
"""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from raydistill.plan.config import FINE_TEMPERATURE


class TeacherTargets(NamedTuple):
    """What M teachers say about a batch: `logits` (B, M, C) and `weights` (B, M), float32, weights sum to 1.

    Where a method looks at them, `features` by name: of the first live teacher, and of each in `member_features`.
    """

    logits: Tensor
    weights: Tensor
    features: Mapping[str, Tensor] = MappingProxyType({})
    member_features: tuple[Mapping[str, Tensor], ...] = ()

    def of(self, members: Sequence[int]) -> "TeacherTargets":
        """What some of them say, by number; their weights sum to 1 again, and are even where all of them are 0."""
        weights = torch.stack([self.weights[:, number] for number in members], dim=1)
        total = weights.sum(dim=1, keepdim=True)
        features = tuple(self.member_features[number] for number in members)
        return TeacherTargets(
            torch.stack([self.logits[:, number] for number in members], dim=1),
            torch.where(total > 0, weights / torch.where(total > 0, total, 1), 1 / len(members)),
            features[0],
            features,
        )


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """logits / T in float32, above T = 100 in float64: divergences are of the order of 1 / T² there, and float32's
    rounding of the probabilities makes T² KL of logits from N(0, 1) 5 % wrong at T = 1,000, 300 % at 10,000."""
    exact = logits.double() if temperature > FINE_TEMPERATURE else logits.float()
    return exact / temperature


def standardized(logits: Tensor) -> Tensor:
    """(v - mean) / deviation over the classes, float32: at most (C - 1) / √C; 0 where all are equal (arXiv 2403.01427).

    The deviation is that of a sample, with C - 1 in its denominator, as released.
    """
    centred = logits.float() - logits.float().mean(dim=-1, keepdim=True)
    squares = centred.square().sum(dim=-1, keepdim=True) / (logits.shape[-1] - 1)
    deviation = torch.where(squares > 0, squares, 1).sqrt()  # a root has no slope at 0
    return centred / (deviation + 1e-7)


def tempered_probabilities(targets: TeacherTargets, temperature: float) -> Tensor:
    """Arithmetic mean Σ_m w_m softmax(v^m / T), (B, C); tempered inside the mean."""
    members = torch.softmax(tempered(targets.logits, temperature), dim=-1)
    if members.shape[1] == 1:
        return members[:, 0]
    return (members * targets.weights.float().unsqueeze(-1)).sum(dim=1)


def tempered_log_probabilities(targets: TeacherTargets, temperature: float) -> Tensor:
    """Logarithm of `tempered_probabilities`, (B, C), exact where a probability would be rounded to 0."""
    members = torch.log_softmax(tempered(targets.logits, temperature), dim=-1)
    if members.shape[1] == 1:
        return members[:, 0]
    return torch.logsumexp(members + targets.weights.float().log().unsqueeze(-1), dim=1)


def mean_logits(targets: TeacherTargets) -> Tensor:
    """Σ_m w_m v^m, (B, C): logits of the geometric mean at any temperature. A teacher of weight 0 has no say, also not
    with the logit -inf."""
    weights = targets.weights.float().unsqueeze(-1)
    return torch.where(weights == 0, 0.0, targets.logits.float() * weights).sum(dim=1)


def geometric_log_probabilities(targets: TeacherTargets, temperature: float) -> Tensor:
    """log softmax(Σ_m w_m v^m / T), (B, C): the normalised product Π_m (p^m)^w_m."""
    return torch.log_softmax(mean_logits(targets) / temperature, dim=-1)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of softmax(logits) in nats, (...,)."""
    log_probabilities = torch.log_softmax(logits.float(), dim=-1)
    probabilities = log_probabilities.exp()
    return -(probabilities * torch.where(probabilities == 0, 0.0, log_probabilities)).sum(dim=-1)


def entropy_weights(logits: Tensor, tau: float) -> Tensor:
    """Weights per sample w_m ∝ exp(-H_m / τ), H at T = 1: (B, M) from logits (B, M, C)."""
    if not (tau > 0 and math.isfinite(tau)):
        raise ValueError(f"the entropy weights' tau must be above 0, not {tau}")
    return torch.softmax(-entropy(logits) / tau, dim=-1)


def divergence_from(logits: Tensor, log_mean: Tensor) -> Tensor:
    """KL(p^m ‖ p̄) at T = 1 in nats, (B, M), from logits (B, M, C) and log p̄ (B, C)."""
    members = torch.log_softmax(logits.float(), dim=-1)
    probabilities = members.exp()
    apart = torch.where(probabilities == 0, 0.0, members - log_mean.unsqueeze(1))
    return (probabilities * apart).sum(dim=-1)
