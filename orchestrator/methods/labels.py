"""The true labels alone: the term that methods without labels, and schedules of the soft term, are combined with."""

from collections.abc import Sequence

from torch import Tensor

from raydistill.kinds.methods import LabelsConfig
from raydistill.methods.losses import hard_loss
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch
from raydistill.training.method import NO_CONTEXT, Method, MethodContext


class Labels(Method):
    """Cross-entropy with the labels."""

    def __init__(self, config: LabelsConfig, context: MethodContext = NO_CONTEXT) -> None:
        super().__init__()
        self.label_smoothing = context.label_smoothing

    def asked(self, batch: Batch, count: int) -> Sequence[int]:
        return ()

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        return {"hard": hard_loss(student.logits, batch, self.label_smoothing)}
