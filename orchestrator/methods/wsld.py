"""WSLD (Zhou et al., ICLR 2021, arXiv 2102.00650): soft labels weighed by what the student already knows."""

import torch
import torch.nn.functional as F
from torch import Tensor

from raydistill.kinds.logit_methods import WsldConfig
from raydistill.methods.losses import of_label, over_labels, soft_loss
from raydistill.methods.soft_targets import SoftTargets
from raydistill.targets.mixing import TeacherTargets, tempered_log_probabilities
from raydistill.training.data import Batch

LEVEL = 1e-7  # beside the teacher's cross-entropy, which may be 0


class Wsld(SoftTargets):
    """The divergence of each sample, times a weight without gradient."""

    stacks = True
    config: WsldConfig

    def soft_terms(self, logits: Tensor, teacher: TeacherTargets, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            weights = sample_weights(
                F.log_softmax(logits.float(), dim=1), tempered_log_probabilities(teacher, 1), batch
            )
        apart = soft_loss(logits, teacher, self.config.temperature, reduction="none")
        return {"soft": (weights * apart).mean()}


def sample_weights(student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
    """1 - exp(-CE of the student / CE of the teacher), (B,), from log-probabilities (B, C)."""
    own = over_labels(lambda labels: of_label(student, labels), batch)
    other = over_labels(lambda labels: of_label(teacher, labels), batch)
    return -torch.expm1(own / (LEVEL - other))
