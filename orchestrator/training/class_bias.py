"""One number that is added to the logits of some classes (arXiv 1503.02531, section 3: a class never seen).

Of each sample a few numbers decide it, whatever the number of classes: nobody has to hold the logits of all.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

WIDEST = 50.0  # nats, or as wide as the logits are: beyond, a class is predicted always or never


class Contest(NamedTuple):
    """Of N samples the largest logit among some classes and among the others, (N,) float64, and whose it is."""

    inside: Tensor
    best_inside: Tensor
    outside: Tensor
    best_outside: Tensor

    @classmethod
    def of(cls, logits: Tensor, classes: Tensor) -> "Contest":
        """From logits (N, C)."""
        is_shifted = _among(classes, logits.shape[1])
        inside = logits.double().masked_fill(~is_shifted, -torch.inf).max(dim=1)
        outside = logits.double().masked_fill(is_shifted, -torch.inf).max(dim=1)
        return cls(*inside, *outside)

    @classmethod
    def joined(cls, parts: Iterable["Contest"]) -> "Contest":
        """Those of several batches as one."""
        return cls(*map(torch.cat, zip(*parts, strict=True)))


def log_odds(logits: Tensor, classes: Tensor) -> Tensor:
    """log (p / (1 - p)), (N,) float64, of the probability p of all `classes` together, from logits (N, C)."""
    is_shifted, logits = _among(classes, logits.shape[1]), logits.double()
    return logits[:, is_shifted].logsumexp(dim=1) - logits[:, ~is_shifted].logsumexp(dim=1)


def offset_to_prior(odds: Tensor, prior: float) -> float:
    """The offset of some classes at which their mean predicted probability is `prior`, from their log-odds (N,).

    It lies between those of the two samples that are hardest to move, however far apart these are. Where infinite
    logits fix the answer of so many samples that no offset reaches the prior, it is the nearer end.
    """
    movable = odds[odds.isfinite()]
    if not len(movable):
        return 0.0
    aim = math.log(prior / (1 - prior))
    # Where some odds are infinite, the others have to make up for them.
    low, high = aim - movable.max().item() - WIDEST, aim - movable.min().item() + WIDEST
    while high - low > 1e-9 and low < (middle := (low + high) / 2) < high:
        if mean_probability(odds + middle) < prior:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def mean_probability(odds: Tensor) -> float:
    """The mean of the probabilities with these log-odds (N,)."""
    return torch.sigmoid(odds).mean().item()


def offset_of_fewest_errors(contest: Contest, labels: Tensor) -> float:
    """The offset of some classes with the fewest errors on samples with labels (N,).

    Errors change only where a sample's best of the classes overtakes its best of the others. Of all offsets that are
    equally good, the middle of the interval that is nearest to 0 is taken; 0 itself when that is among them.
    """
    overtakes, order = (contest.outside - contest.inside).sort()
    gains = (contest.best_inside == labels).long() - (contest.best_outside == labels).long()
    right = torch.cat([torch.zeros(1, dtype=torch.int64), gains[order].cumsum(dim=0)])
    widest = max([WIDEST, *(2 * overtakes[overtakes.isfinite()].abs()).tolist()])
    ends = torch.cat([torch.tensor([-widest]), overtakes.clamp(-widest, widest), torch.tensor([widest])])
    low, high = ends[:-1], ends[1:]
    is_best = (right == right[high > low].max()) & (high > low)
    if bool((is_best & (low < 0) & (high > 0)).any()):
        return 0.0
    middles = ((low + high) / 2)[is_best]
    return middles[middles.abs().argmin()].item()


def _among(classes: Tensor, count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.bool).scatter_(0, classes, value=True)
