"""One number that is added to the logits of some classes (arXiv 1503.02531, section 3: a class never seen)."""

import torch
from torch import Tensor

WIDEST = 50.0  # nats: beyond, a class is predicted always or never


def offset_to_prior(logits: Tensor, classes: Tensor, prior: float) -> float:
    """The offset of `classes` at which their mean predicted probability over logits (N, C) is `prior`."""
    is_shifted = torch.zeros(logits.shape[1], dtype=torch.bool).scatter_(0, classes, value=True)
    within = logits[:, is_shifted].double().logsumexp(dim=1)
    odds = within - logits[:, ~is_shifted].double().logsumexp(dim=1)
    low, high = -WIDEST, WIDEST
    while high - low > 1e-9:
        middle = (low + high) / 2
        if torch.sigmoid(odds + middle).mean().item() < prior:
            low = middle
        else:
            high = middle
    return (low + high) / 2


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
    ends = torch.cat([torch.tensor([-WIDEST]), overtakes.clamp(-WIDEST, WIDEST), torch.tensor([WIDEST])])
    low, high = ends[:-1], ends[1:]
    is_best = (right == right[high > low].max()) & (high > low)
    if bool((is_best & (low < 0) & (high > 0)).any()):
        return 0.0
    middles = ((low + high) / 2)[is_best]
    return middles[middles.abs().argmin()].item()
