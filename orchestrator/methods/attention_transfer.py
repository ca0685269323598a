"""AT (Zagoruyko and Komodakis, ICLR 2017, arXiv 1612.03928): the student is active where the teacher is."""

import torch
import torch.nn.functional as F
from torch import Tensor

from raydistill.methods.features import MapsMethod, direction, levelled
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch


class AttentionTransfer(MapsMethod):
    """Mean squared difference of the two networks' maps of activity, summed over pairs of layers."""

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        distances = [F.mse_loss(activity(own), activity(aim)) for own, aim in self.pairs(student, teacher)]
        return {"attention": torch.stack(distances).sum()}


def activity(maps: Tensor) -> Tensor:
    """Unit vectors (B, H · W) of the mean squares over channels, from maps (B, C, H, W)."""
    return direction(levelled(maps, 1, 2, 3).square().mean(dim=1).flatten(1))
