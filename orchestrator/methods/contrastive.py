"""CRD (Tian et al., ICLR 2020, arXiv 1910.10699) among the samples of a batch: InfoNCE in place of a memory bank."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydistill.kinds.relation_methods import ContrastiveConfig
from raydistill.methods.embedding import EmbeddingMethod
from raydistill.methods.features import direction
from raydistill.methods.projected import pooled
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.tasks.labels import UNLABELLED
from raydistill.training.data import Batch
from raydistill.training.method import MethodContext


class Contrastive(EmbeddingMethod):
    """Each network's projected embedding picks the other's of the same sample out of the batch."""

    def __init__(self, config: ContrastiveConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.config = config
        student, teacher = context.both()
        (own,), (aim,) = student.shapes(self.student_features), teacher.shapes(self.teacher_features)
        self.heads = nn.ModuleList(nn.Linear(shape[0], config.dimensions) for shape in (own, aim))

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        assert teacher is not None
        own, aim = (
            student.features[self.student_features[0]],
            teacher.features[self.teacher_features[0]].detach(),
        )
        with torch.autocast(student.logits.device.type, enabled=False):
            own, aim = (head(pooled(part)) for head, part in zip(self.heads, (own, aim), strict=True))
            labels = batch.labels if self.config.spare_own_class else None
            return {"contrast": contrast(own, aim, self.config.temperature, labels)}


def contrast(own: Tensor, aim: Tensor, temperature: float, labels: Tensor | None = None) -> Tensor:
    """Mean of both directions' cross-entropies of the cosines of vectors (B, d) over the temperature, with the own
    sample as the label; of other samples with the same of the `labels` (B,) nothing is asked."""
    logits = direction(own) @ direction(aim).mT / temperature
    size = len(logits)
    if labels is not None:
        is_alike = (labels[:, None] == labels) & (labels != UNLABELLED)
        is_self = torch.eye(size, dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(is_alike & ~is_self, -torch.inf)
    same = torch.arange(size, device=logits.device)
    return (F.cross_entropy(logits, same) + F.cross_entropy(logits.mT, same)) / 2
