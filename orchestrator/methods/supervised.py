"""Plain training on labels."""

from torch import Tensor

from raydistill.methods.losses import hard_loss
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch
from raydistill.training.method import Method


class Supervised(Method):
    """Cross-entropy with hard labels."""

    stacks = True

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        return {"hard": hard_loss(student.logits, batch, self.label_smoothing)}
