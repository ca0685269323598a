"""One number that is added to the logits of some classes (arXiv 1503.02531, section 3: a class never seen)."""

import math

import torch
from torch import Tensor

WIDEST = 50.0  # nats, or as wide as the logits are: beyond, a class is predicted always or never


def offset_to_prior(logits: Tensor, classes: Tensor, prior: float) -> float:
    """The offset of `classes` at which their mean predicted probability over logits (N, C) is `prior`.

    It lies between those of the two samples that are hardest to move, however far apart these are. Where infinite
    logits fix the answer of so many samples that no offset reaches the prior, it is the nearer end.
    """
    odds = _log_odds(logits.double(), classes)
    movable = odds[odds.isfinite()]
    if not len(movable):
        return 0.0
    aim = math.log(prior / (1 - prior))
    # Where some odds are infinite, the others have to make up for them.
    low, high = aim - movable.max().item() - WIDEST, aim - movable.min().item() + WIDEST
    while high - low > 1e-9 and low < (middle := (low + high) / 2) < high:
        if torch.sigmoid(odds + middle).mean().item() < prior:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def mean_probability(logits: Tensor, classes: Tensor) -> float:
    """The mean predicted probability of `classes` over logits (N, C)."""
    return torch.sigmoid(_log_odds(logits.double(), classes)).mean().item()


def _log_odds(logits: Tensor, classes: Tensor) -> Tensor:
    """log (p / (1 - p)), (N,), of the probability p of all `classes` together."""
    is_shifted = torch.zeros(logits.shape[1], dtype=torch.bool).scatter_(0, classes, value=True)
    return logits[:, is_shifted].logsumexp(dim=1) - logits[:, ~is_shifted].logsumexp(dim=1)


def offset_of_fewest_errors(logits: Tensor, labels: Tensor, classes: Tensor) -> float:
    """The offset of `classes` with the fewest errors on logits (N, C) and labels (N,).

    Errors change only where a sample's best of the classes overtakes its best of the others. Of all offsets that are
    equally good, the middle of the interval that is nearest to 0 is taken; 0 itself when that is among them.
    """
    is_shifted = torch.zeros(logits.shape[1], dtype=torch.bool).scatter_(0, classes, value=True)
    inside, best_inside = logits.double().masked_fill(~is_shifted, -torch.inf).max(dim=1)
    outside, best_outside = logits.double().masked_fill(is_shifted, -torch.inf).max(dim=1)
    overtakes, order = (outside - inside).sort()
    gains = (best_inside == labels).long() - (best_outside == labels).long()
    right = torch.cat([torch.zeros(1, dtype=torch.int64), gains[order].cumsum(dim=0)])
    widest = max([WIDEST, *(2 * overtakes[overtakes.isfinite()].abs()).tolist()])
    ends = torch.cat([torch.tensor([-widest]), overtakes.clamp(-widest, widest), torch.tensor([widest])])
    low, high = ends[:-1], ends[1:]
    is_best = (right == right[high > low].max()) & (high > low)
    if bool((is_best & (low < 0) & (high > 0)).any()):
        return 0.0
    middles = ((low + high) / 2)[is_best]
    return middles[middles.abs().argmin()].item()
