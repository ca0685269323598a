"""MGD (Yang et al., ECCV 2022, arXiv 2205.01529): from a part of the student's maps, all of the teacher's."""

import torch
from torch import Tensor, nn

from raydistill.kinds.connector_methods import MaskedGenerationConfig
from raydistill.methods.classifiers import last_maps
from raydistill.methods.features import check_maps, shrink_to_match
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch
from raydistill.training.method import Method, MethodContext


class MaskedGeneration(Method):
    """Squared distance of what is generated from blanked maps to the teacher's."""

    def __init__(self, config: MaskedGenerationConfig, context: MethodContext) -> None:
        super().__init__()
        self.config = config
        student, teacher = context.both()
        own = config.student_feature or last_maps(student, "student_feature")
        aim = config.teacher_feature or last_maps(teacher, "teacher_feature")
        self.student_features, self.teacher_features = (own,), (aim,)
        check_maps(config.method, student, (own,), "student_feature")
        check_maps(config.method, teacher, (aim,), "teacher_feature")
        channels, target = (
            features.shapes([name])[0][0] for features, name in ((student, own), (teacher, aim))
        )
        self.align = nn.Identity() if channels == target else nn.Conv2d(channels, target, 1)
        self.generate = nn.Sequential(
            nn.Conv2d(target, target, 3, padding=1), nn.ReLU(), nn.Conv2d(target, target, 3, padding=1)
        )

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        assert teacher is not None
        own, aim = shrink_to_match(
            student.features[self.student_features[0]].float(),
            teacher.features[self.teacher_features[0]].detach().float(),
        )
        with torch.autocast(student.logits.device.type, enabled=False):
            aligned = self.align(own)
            squares = (self.generate(self.mask(aligned) * aligned) - aim).square()
            total = squares.mean() if self.config.reduction == "mean" else squares.sum() / len(squares)
            return {"generation": total}

    def mask(self, maps: Tensor) -> Tensor:
        """1 where maps (B, C, H, W) are seen, 0 where they are blanked, drawn from the step's random numbers."""
        shape = (*maps.shape[:2], 1, 1) if self.config.mask == "channels" else (len(maps), 1, *maps.shape[2:])
        return (torch.rand(shape, device=maps.device) >= self.config.masked).float()
