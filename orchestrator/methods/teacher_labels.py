"""The teachers' labels (hard distillation of DeiT, Touvron et al., ICML 2021, arXiv 2012.12877)."""

import torch.nn.functional as F
from torch import Tensor

from raydistill.kinds.logit_methods import TeacherLabelsConfig
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets, tempered_log_probabilities
from raydistill.training.data import Batch
from raydistill.training.method import NO_CONTEXT, Method, MethodContext


class TeacherLabels(Method):
    """Cross-entropy with the class that the teachers find most probable."""

    def __init__(self, config: TeacherLabelsConfig, context: MethodContext = NO_CONTEXT) -> None:
        super().__init__()
        self.config = config

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        assert teacher is not None
        said = tempered_log_probabilities(teacher, 1).argmax(dim=1)
        return {"teacher_labels": F.cross_entropy(student.logits.float(), said)}
