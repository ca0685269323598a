"""NKD (Yang et al., ICCV 2023, arXiv 2303.13005): the teacher's sureness of the label, and the other classes."""

import torch.nn.functional as F
from torch import Tensor

from raydistill.kinds.logit_methods import NkdConfig
from raydistill.methods.losses import of_label, other_divergence, over_labels
from raydistill.methods.soft_targets import SoftTargets
from raydistill.targets.mixing import TeacherTargets, tempered, tempered_log_probabilities
from raydistill.training.data import Batch


class Nkd(SoftTargets):
    """The label's term is taken at T = 1, the others' at the method's temperature."""

    stacks = True
    config: NkdConfig

    def soft_terms(self, logits: Tensor, teacher: TeacherTargets, batch: Batch) -> dict[str, Tensor]:
        heat = self.config.temperature
        plain, sure = F.log_softmax(logits.float(), dim=1), tempered_log_probabilities(teacher, 1)
        own = F.log_softmax(tempered(logits, heat), dim=1)
        aim = tempered_log_probabilities(teacher, heat)
        label = over_labels(lambda labels: label_terms(plain, sure, labels), batch).mean()
        other = over_labels(lambda labels: other_divergence(own, aim, labels), batch).mean()
        return {"label": label, "other": self.config.other_weight * heat**2 * other}


def label_terms(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """-p_y log q_y, (B,), from log-probabilities (B, C): 0 where the teacher excludes the label."""
    sure, own = of_label(teacher, labels).exp(), of_label(student, labels)
    return -sure * own.masked_fill(sure == 0, 0)
