"""The common part of methods that learn from soft targets and labels; a method adds what it makes of the targets."""

import torch
from torch import Tensor

from raydistill.kinds.method_options import SoftTargetOptions
from raydistill.methods.losses import hard_loss
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets, mean_logits, standardized
from raydistill.training.data import Batch
from raydistill.training.method import NO_CONTEXT, Method, MethodContext


class SoftTargets(Method):
    """soft_weight times the soft terms, and the labels with a weight of their own."""

    def __init__(self, config: SoftTargetOptions, context: MethodContext = NO_CONTEXT) -> None:
        super().__init__()
        if config.standardize and context.num_classes == 2:
            raise ValueError(
                "two logits less their mean and divided by their deviation are always the same; leave `standardize` out"
            )
        self.config = config
        self.label_smoothing = context.label_smoothing

    def soft_terms(self, logits: Tensor, teacher: TeacherTargets, batch: Batch) -> dict[str, Tensor]:
        """Named terms from student logits (B, C) and what the teachers say; standardised, if asked for."""
        raise NotImplementedError

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        config, terms = self.config, {}
        if config.soft_weight > 0:
            assert teacher is not None
            own = standardized(student.logits) if config.standardize else student.logits
            aim = self.standardized_targets(teacher) if config.standardize else teacher
            found = self.soft_terms(own, aim, batch)
            terms = {name: config.soft_weight * term.float() for name, term in found.items()}
        if config.hard_weight > 0:
            terms["hard"] = config.hard_weight * hard_loss(student.logits, batch, self.label_smoothing)
        return terms

    def standardized_targets(self, teacher: TeacherTargets) -> TeacherTargets:
        """Of several teachers the mean logits, as if they were one teacher's: a mixture has no logits of its own."""
        logits = standardized(mean_logits(teacher)).unsqueeze(1)
        return TeacherTargets(logits, torch.ones_like(logits[:, :, 0]))
