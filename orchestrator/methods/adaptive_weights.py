"""The common part of methods that weigh several teachers anew for every sample or batch; a method adds the weights."""

import torch
import torch.nn.functional as F
from torch import Tensor

from raydistill.kinds.committee_methods import AdaptiveWeightsOptions
from raydistill.methods.losses import divergence_terms, hard_loss
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets, tempered
from raydistill.training.data import Batch
from raydistill.training.method import NO_CONTEXT, Method, MethodContext


class AdaptiveWeights(Method):
    """soft_weight · mean over the batch of Σ_m w_m T² KL(p_m^T ‖ q^T), and the labels with a weight of their own.

    KL is linear in what the teachers say: the gradient is that of the target Σ_m w_m p_m / Σ_m w_m.
    """

    def __init__(self, config: AdaptiveWeightsOptions, context: MethodContext = NO_CONTEXT) -> None:
        super().__init__()
        self.config = config
        self.label_smoothing = context.label_smoothing

    def weights(self, student_logits: Tensor, teacher_logits: Tensor, batch: Batch) -> Tensor:
        """Weights (B, M) of teachers' logits (B, M, C) for student logits (B, C), all float32 and without gradient."""
        raise NotImplementedError

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        config, terms = self.config, {}
        if config.soft_weight > 0:
            assert teacher is not None
            own, logits = student.logits.float(), teacher.logits.detach().float()
            with torch.no_grad():
                weights = self.weights(own, logits, batch)
            soft = (weights * member_losses(own, logits, config.temperature)).sum(dim=1).mean()
            terms["soft"] = config.soft_weight * soft
        if config.hard_weight > 0:
            terms["hard"] = config.hard_weight * hard_loss(student.logits, batch, self.label_smoothing)
        return terms


def member_losses(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T² · KL(p_m^T ‖ q^T) of each teacher, (B, M), from logits (B, C) and (B, M, C)."""
    student = F.log_softmax(tempered(student_logits, temperature), dim=-1).unsqueeze(1)
    members = F.log_softmax(tempered(teacher_logits, temperature), dim=-1)
    return (temperature**2 * divergence_terms(student, members).sum(dim=-1)).float()
