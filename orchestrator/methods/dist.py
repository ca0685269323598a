"""DIST (Huang et al., NeurIPS 2022, arXiv 2205.10536): correlations of probabilities, by samples and by classes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from raydistill.kinds.logit_methods import DistConfig
from raydistill.methods.soft_targets import SoftTargets
from raydistill.targets.mixing import TeacherTargets, tempered, tempered_probabilities
from raydistill.training.data import Batch

EVEN = 1e-6  # the norm below which what is centred is rounding


class Dist(SoftTargets):
    """One less Pearson's correlation, over rows and over columns of the batch's probabilities."""

    stacks = True
    config: DistConfig

    def soft_terms(self, logits: Tensor, teacher: TeacherTargets, batch: Batch) -> dict[str, Tensor]:
        heat = self.config.temperature
        own = F.softmax(tempered(logits, heat), dim=1)
        aim = tempered_probabilities(teacher, heat)
        rows, columns = (1 - correlation(own, aim, dim).mean() for dim in (1, 0))
        return {
            "rows": self.config.row_weight * heat**2 * rows,
            "columns": self.config.column_weight * heat**2 * columns,
        }


def correlation(one: Tensor, other: Tensor, dim: int) -> Tensor:
    """Pearson's ρ along a dimension; 0, without gradient, where one of both is the same everywhere."""
    return (_direction(one, dim) * _direction(other, dim)).sum(dim=dim)


def _direction(values: Tensor, dim: int) -> Tensor:
    """What is left of values without their mean, of length 1; nearly 0 where they are all but equal."""
    centred = values - values.mean(dim=dim, keepdim=True)
    squares = centred.square().sum(dim=dim, keepdim=True)
    # Dividing by a tiny norm would make a gradient of rounding errors, and a root has no slope at 0.
    return torch.where(
        squares > EVEN**2, centred / torch.where(squares > EVEN**2, squares, 1).sqrt(), 0 * centred
    )
