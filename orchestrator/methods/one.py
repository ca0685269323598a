"""ONE (Lan, Zhu, Gong 2018, arXiv 1806.04606): branches on one trunk learn from labels and from their ensemble."""

import torch
from torch import Tensor

from raydistill.kinds.method_options import RampConfig
from raydistill.kinds.online import TrainBranchesConfig
from raydistill.methods.combined import ramp
from raydistill.methods.losses import divergence, hard_loss
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch
from raydistill.training.method import Method


class One(Method):
    """Cross-entropy of every branch and of the gated ensemble, and every branch's distance from the ensemble.

    With the ensemble detached the gate learns from the ensemble's cross-entropy alone.
    """

    def __init__(self, config: TrainBranchesConfig) -> None:
        super().__init__()
        self.config = config
        self.branches = tuple(f"branch{index}" for index in range(config.branches))
        self.student_features = self.branches
        epochs = config.ramp_epochs
        self.ramp = RampConfig(shape="exponential", epochs=epochs) if epochs else None

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        config, ensemble = self.config, student.logits
        branches = [student.features[name] for name in self.branches]
        hard = [hard_loss(logits, batch, config.label_smoothing) for logits in branches]
        terms = {
            "hard": torch.stack(hard).sum(),
            "ensemble": hard_loss(ensemble, batch, config.label_smoothing),
        }
        weight = config.weight * (1.0 if self.ramp is None else ramp(self.ramp, batch.epoch))
        if weight > 0:
            target = ensemble.detach() if config.detach_teacher else ensemble
            soft = [divergence(logits, target, config.temperature) for logits in branches]
            terms["soft"] = weight * torch.stack(soft).sum()
        return terms
