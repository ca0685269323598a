"""Plain training on labels."""

from torch import Tensor

from models.taps import Output
from orchestrator.methods.losses import hard_loss
from orchestrator.targets.mixing import TeacherTargets
from orchestrator.training.data import Batch
from orchestrator.training.method import Method


class Supervised(Method):
    """Cross-entropy with hard labels."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        return {"hard": hard_loss(student.logits, batch, self.label_smoothing)}
