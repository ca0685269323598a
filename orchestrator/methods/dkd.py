"""DKD (Zhao et al., CVPR 2022, arXiv 2203.08679): the label's part of the divergence and the others', weighed apart."""

import torch
import torch.nn.functional as F
from torch import Tensor

from raydistill.kinds.logit_methods import DkdConfig
from raydistill.methods.losses import divergence_terms, log_rest, of_label, other_divergence, over_labels
from raydistill.methods.soft_targets import SoftTargets
from raydistill.targets.mixing import TeacherTargets, tempered, tempered_log_probabilities
from raydistill.training.data import Batch


class Dkd(SoftTargets):
    """Two divergences of one pair of distributions."""

    stacks = True
    config: DkdConfig

    def soft_terms(self, logits: Tensor, teacher: TeacherTargets, batch: Batch) -> dict[str, Tensor]:
        heat = self.config.temperature
        own = F.log_softmax(tempered(logits, heat), dim=1)
        aim = tempered_log_probabilities(teacher, heat)
        target = over_labels(lambda labels: target_divergence(own, aim, labels), batch).mean()
        other = over_labels(lambda labels: other_divergence(own, aim, labels), batch).mean()
        return {
            "target": self.config.target_weight * heat**2 * target,
            "other": self.config.other_weight * heat**2 * other,
        }


def target_divergence(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """KL of the label against all the rest, (B,), from log-probabilities (B, C) of both."""
    own, aim = (
        torch.stack((of_label(logs, labels), log_rest(logs, labels)), dim=1) for logs in (student, teacher)
    )
    return divergence_terms(own, aim).sum(dim=1)
