"""Soft targets (Hinton, Vinyals, Dean 2015, arXiv 1503.02531)."""

from torch import Tensor

from raydistill.kinds.methods import HintonConfig
from raydistill.methods.losses import hard_loss, soft_loss
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch
from raydistill.training.method import NO_CONTEXT, Method, MethodContext


class Hinton(Method):
    """Match the teachers' softened distribution, and the labels with a weight of their own."""

    def __init__(self, config: HintonConfig, context: MethodContext = NO_CONTEXT) -> None:
        super().__init__()
        self.config = config
        self.label_smoothing = context.label_smoothing

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        config, terms = self.config, {}
        if config.soft_weight > 0:
            assert teacher is not None
            terms["soft"] = config.soft_weight * soft_loss(
                student.logits,
                teacher,
                config.temperature,
                scale_by_temperature_squared=config.scale_by_temperature_squared,
            )
        if config.hard_weight > 0:
            terms["hard"] = config.hard_weight * hard_loss(student.logits, batch, self.label_smoothing)
        return terms
