"""The teacher's embedding through a linear projector, as foundation models are distilled (VkD, LightlyTrain, Theia)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydistill.kinds.relation_methods import ProjectedConfig
from raydistill.methods.embedding import EmbeddingMethod
from raydistill.methods.features import direction
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch
from raydistill.training.method import MethodContext


class Projected(EmbeddingMethod):
    """How far the projected student's embedding is from the teacher's."""

    def __init__(self, config: ProjectedConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.config = config
        student, teacher = context.both()
        (own,), (aim,) = student.shapes(self.student_features), teacher.shapes(self.teacher_features)
        self.projector = nn.Linear(own[0], aim[0])

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        assert teacher is not None
        with torch.autocast(student.logits.device.type, enabled=False):
            own = self.projector(pooled(student.features[self.student_features[0]]))
            aim = normalised(
                pooled(teacher.features[self.teacher_features[0]].detach()), self.config.normalize
            )
            return {"embedding": distance(own, aim, self.config.distance)}


def pooled(features: Tensor) -> Tensor:
    """(B, d) float32 from features (B, d) or maps (B, d, ...), over whose places the mean is taken."""
    return features.float().flatten(2).mean(dim=2) if features.dim() > 2 else features.float()


def normalised(vectors: Tensor, how: str) -> Tensor:
    """Vectors (B, d) as they are, of length 1, or with mean 0 and deviation 1."""
    if how == "layer_norm":
        return F.layer_norm(vectors, vectors.shape[1:])
    return direction(vectors) if how == "unit" else vectors


def distance(own: Tensor, aim: Tensor, kind: str) -> Tensor:
    """Mean distance of vectors (B, d) from others."""
    if kind == "cosine":
        return (1 - (direction(own) * direction(aim)).sum(dim=1)).mean()
    return F.mse_loss(own, aim) if kind == "squared" else F.smooth_l1_loss(own, aim)
