"""NST (Huang and Wang 2017, arXiv 1707.01219): the student's channels look for what the teacher's do, as a set."""

import torch
from torch import Tensor

from raydistill.methods.features import MapsMethod, direction, levelled
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch


class NeuronSelectivity(MapsMethod):
    """Squared maximum mean discrepancy of the channels' patterns, summed over pairs of layers."""

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        distances = [
            discrepancy(patterns(own), patterns(aim)).mean() for own, aim in self.pairs(student, teacher)
        ]
        return {"selectivity": torch.stack(distances).sum()}


def patterns(maps: Tensor) -> Tensor:
    """A unit vector for each channel, (B, C, H · W), from maps (B, C, H, W)."""
    return direction(levelled(maps, 2, 3).flatten(2))


def discrepancy(own: Tensor, aim: Tensor) -> Tensor:
    """‖mean s sᵀ - mean t tᵀ‖², (B,), of patterns (B, C, N) and (B, C', N).

    Where there are fewer channels than places, from the channels' products, which are fewer: the same number.
    """
    if own.shape[2] <= max(own.shape[1], aim.shape[1]):
        return (own.mT @ own / own.shape[1] - aim.mT @ aim / aim.shape[1]).square().sum(dim=(1, 2))
    return _mean_kernel(own, own) + _mean_kernel(aim, aim) - 2 * _mean_kernel(own, aim)


def _mean_kernel(left: Tensor, right: Tensor) -> Tensor:
    return (left @ right.mT).square().mean(dim=(1, 2))
