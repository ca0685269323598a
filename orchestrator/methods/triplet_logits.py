"""Triplets of logits (Oki et al. 2020, arXiv 2004.08116): the anchor is the teacher's, positive and negative are the
student's."""

import torch
from torch import Tensor

from raydistill.kinds.relation_methods import TripletLogitsConfig
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets, mean_logits
from raydistill.training.data import Batch
from raydistill.training.method import NO_CONTEXT, Method, MethodContext


class TripletLogits(Method):
    """A sample's logits should be closer to the teacher's of the same sample than the student's of another class
    are."""

    def __init__(self, config: TripletLogitsConfig, context: MethodContext = NO_CONTEXT) -> None:
        super().__init__()
        self.config = config

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        assert teacher is not None
        own, anchors = student.logits.float(), mean_logits(teacher).detach()
        is_same = batch.labels[:, None] == batch.labels
        # `cdist` may lose digits to cancellation: good enough to choose by, and the distances themselves are exact.
        score = (
            -torch.cdist(anchors, own.detach())
            if self.config.negative == "hard"
            else _class_first(is_same).to(own)
        )
        is_other = ~is_same
        negatives = score.masked_fill(is_same, -torch.inf).argmax(dim=1)
        near = torch.linalg.vector_norm(anchors - own, dim=1)
        far = torch.linalg.vector_norm(anchors - own[negatives], dim=1)
        is_valid = is_other.any(dim=1)
        hinge = (near - far + self.config.margin).relu() * is_valid
        return {"triplet": hinge.sum() / is_valid.sum().clamp(min=1)}


def _class_first(is_same: Tensor) -> Tensor:
    """Scores (B, B) of which the largest of every subset of classes is a draw of a class, then of a sample of it.

    A sample's chance is one over the size of its class: the first of exponential clocks with these rates.
    """
    sizes = is_same.sum(dim=1)
    return -sizes * torch.empty(is_same.shape, device=is_same.device).exponential_()
