"""SimKD (Chen et al. 2022, arXiv 2203.14001): the student's projected last maps match the teacher's."""

import torch.nn.functional as F
from torch import Tensor

from raydistill.models.reused_head import PROJECTOR
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch
from raydistill.training.method import Method


class Simkd(Method):
    """The mean of squares of the difference of maps (B, C, H, W), the teacher's pooled where its grid is larger."""

    student_features = (PROJECTOR,)

    def __init__(self, maps: str) -> None:
        super().__init__()
        self.teacher_features = (maps,)

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        assert teacher is not None
        own, aim = student.features[PROJECTOR].float(), teacher.features[self.teacher_features[0]].float()
        if own.shape[2:] != aim.shape[2:]:
            aim = F.adaptive_avg_pool2d(aim, (own.shape[2], own.shape[3]))
        return {"maps": F.mse_loss(own, aim)}
