"""The common part of methods that weigh several teachers anew for every sample or batch; a method adds the weights."""

import torch
import torch.nn.functional as F
from torch import Tensor

from raydistill.methods.losses import divergence_terms
from raydistill.methods.soft_targets import SoftTargets
from raydistill.targets.mixing import TeacherTargets, standardized, tempered
from raydistill.training.data import Batch


class AdaptiveWeights(SoftTargets):
    """soft_weight · mean over the batch of Σ_m w_m T² KL(p_m^T ‖ q^T), and the labels with a weight of their own.

    KL is linear in what the teachers say: the gradient is that of the target Σ_m w_m p_m / Σ_m w_m.
    """

    def weights(self, student_logits: Tensor, teacher_logits: Tensor, batch: Batch) -> Tensor:
        """Weights (B, M) of teachers' logits (B, M, C) for student logits (B, C), all float32 and without gradient."""
        raise NotImplementedError

    def standardized_targets(self, teacher: TeacherTargets) -> TeacherTargets:
        return teacher._replace(logits=standardized(teacher.logits))

    def soft_terms(self, logits: Tensor, teacher: TeacherTargets, batch: Batch) -> dict[str, Tensor]:
        own, members = logits.float(), teacher.logits.detach().float()
        with torch.no_grad():
            weights = self.weights(own, members, batch)
        return {"soft": (weights * member_losses(own, members, self.config.temperature)).sum(dim=1).mean()}


def member_losses(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T² · KL(p_m^T ‖ q^T) of each teacher, (B, M), from logits (B, C) and (B, M, C)."""
    student = F.log_softmax(tempered(student_logits, temperature), dim=-1).unsqueeze(1)
    members = F.log_softmax(tempered(teacher_logits, temperature), dim=-1)
    return (temperature**2 * divergence_terms(student, members).sum(dim=-1)).float()
