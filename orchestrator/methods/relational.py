"""RKD (Park et al., CVPR 2019, arXiv 1904.05068): the student's samples lie to each other as the teacher's do."""

import torch
import torch.nn.functional as F
from torch import Tensor

from raydistill.kinds.relation_methods import RelationalConfig
from raydistill.methods.embedding import EmbeddingMethod
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch
from raydistill.training.method import MethodContext


class Relational(EmbeddingMethod):
    """Smooth L1 between the two networks' relative distances, and between their angles."""

    def __init__(self, config: RelationalConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.config = config

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        own, other = (distances(vectors) for vectors in self.embeddings(student, teacher))
        config, terms = self.config, {}
        if config.distance_weight > 0:
            distance = F.smooth_l1_loss(relative_distances(own), relative_distances(other))
            terms["distance"] = config.distance_weight * distance
        if config.angle_weight > 0:
            terms["angle"] = config.angle_weight * F.smooth_l1_loss(angles(own), angles(other))
        return terms


def distances(embeddings: Tensor) -> Tensor:
    """‖f_i - f_j‖ at [i, j], (B, B) from (B, d); equal samples have no gradient.

    From differences: by inner products, near samples would lose their digits.
    """
    return torch.cdist(embeddings, embeddings, compute_mode="donot_use_mm_for_euclid_dist")


def relative_distances(lengths: Tensor) -> Tensor:
    """Distances (B, B) divided by their mean over all pairs of two samples; all zero where none differ.

    Equal embeddings count: the release gives them a distance of 1e-6, and takes the mean of what is above 0.
    """
    size = len(lengths)
    mean = lengths.sum() / max(size * (size - 1), 1)
    return lengths / mean.masked_fill(mean == 0, 1)


def angles(lengths: Tensor) -> Tensor:
    """cos of the angle at f_j between f_i and f_k, at [j, i, k], (B, B, B); 0 where a side has no length.

    By the law of cosines, so that no difference of embeddings (B, B, d) is kept.
    """
    squares = lengths.square()
    sides = lengths[:, :, None] * lengths[:, None, :]
    cosines = (squares[:, :, None] + squares[:, None, :] - squares) / (2 * sides.masked_fill(sides == 0, 1))
    return cosines * (sides > 0)
