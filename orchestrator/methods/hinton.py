"""Soft targets (Hinton, Vinyals, Dean 2015, arXiv 1503.02531)."""

from torch import Tensor

from raydistill.kinds.methods import HintonConfig
from raydistill.methods.losses import soft_loss
from raydistill.methods.soft_targets import SoftTargets
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch


class Hinton(SoftTargets):
    """Match the teachers' softened distribution, and the labels with a weight of their own."""

    stacks = True
    config: HintonConfig

    def soft_terms(self, logits: Tensor, teacher: TeacherTargets, batch: Batch) -> dict[str, Tensor]:
        config = self.config
        scaled = config.scale_by_temperature_squared
        return {"soft": soft_loss(logits, teacher, config.temperature, scale_by_temperature_squared=scaled)}
