"""ReviewKD (Chen et al., CVPR 2021, arXiv 2104.09044): a student's stages learn from the teacher's above them, too."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydistill.kinds.connector_methods import ReviewConfig
from raydistill.methods.features import check_maps, check_paired
from raydistill.models.layers import LoneBatchNorm2d
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch
from raydistill.training.method import Features, Method, MethodContext

LEVELS = (4, 2, 1)
WIDEST = 512


class Review(Method):
    """Distances of joined maps from the teacher's, from the embedding down to the first stage."""

    def __init__(self, config: ReviewConfig, context: MethodContext) -> None:
        super().__init__()
        student, teacher = context.both()
        own = config.student_features or student.stages_unless("student_features")
        aims = config.teacher_features or tuple(
            f"{stage}_pre" for stage in teacher.stages_unless("teacher_features")
        )
        check_paired(config.method, own, aims)
        self.student_features = (*own, config.student_embedding)
        self.teacher_features = (*aims, config.teacher_embedding)
        check_maps(config.method, student, own, "student_features")
        check_maps(config.method, teacher, aims, "teacher_features")
        channels, targets = (
            _channels(features, names)
            for features, names in ((student, self.student_features), (teacher, self.teacher_features))
        )
        width = config.channels or min(WIDEST, channels[-2])
        joins = [
            Join(*pair, width, is_top=place == len(own))
            for place, pair in enumerate(zip(channels, targets, strict=True))
        ]
        self.joins = nn.ModuleList(reversed(joins))

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        assert teacher is not None
        names = zip(reversed(self.student_features), reversed(self.teacher_features), strict=True)
        distances: list[Tensor] = []
        above: Tensor | None = None
        with torch.autocast(student.logits.device.type, enabled=False):
            for join, (own, aim) in zip(self.joins, names, strict=True):
                target = _as_map(teacher.features[aim].detach().float())
                above, brought = join(_as_map(student.features[own].float()), above, target)
                distances.append(level_distance(brought, target))
            return {"review": torch.stack(distances).sum()}


class Join(nn.Module):
    """A stage's map of the student, joined to the map from above."""

    def __init__(self, channels: int, target: int, width: int, *, is_top: bool) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), LoneBatchNorm2d(width))
        self.out = nn.Sequential(nn.Conv2d(width, target, 3, padding=1, bias=False), LoneBatchNorm2d(target))
        self.gates = None if is_top else nn.Sequential(nn.Conv2d(2 * width, 2, 1), nn.Sigmoid())
        for part in (self.inner, self.out):
            nn.init.kaiming_uniform_(part[0].weight, a=1)  # type: ignore[arg-type]

    def forward(self, own: Tensor, above: Tensor | None, target: Tensor) -> tuple[Tensor, Tensor]:
        """Joined maps (B, width, H, W) on the grid of the teacher's `target`; and the same with its channels."""
        joined: Tensor = self.inner(own)
        if self.gates is not None:
            assert above is not None
            above = _on_grid(above, joined)
            first, second = self.gates(torch.cat([joined, above], dim=1)).split(1, dim=1)
            joined = first * joined + second * above
        joined = _on_grid(joined, target)
        return joined, self.out(joined)


def level_distance(own: Tensor, aim: Tensor) -> Tensor:
    """Mean squares of maps (B, C, H, W), and of both on the coarser grids, weighed ½, ¼, ⅛ (their "HCL")."""
    total, weights, weight = F.mse_loss(own, aim), 1.0, 1.0
    for places in LEVELS:
        if places < min(own.shape[2:]):
            weight /= 2
            coarse, wanted = (F.adaptive_avg_pool2d(maps, places) for maps in (own, aim))
            total, weights = total + weight * F.mse_loss(coarse, wanted), weights + weight
    return total / weights


def _on_grid(maps: Tensor, other: Tensor) -> Tensor:
    size = (other.shape[2], other.shape[3])
    return maps if maps.shape[2:] == size else F.interpolate(maps, size=size, mode="nearest")


def _as_map(feature: Tensor) -> Tensor:
    """Vectors (B, C) as maps of one place."""
    return feature if feature.dim() == 4 else feature.flatten(1)[:, :, None, None]


def _channels(features: Features, names: tuple[str, ...]) -> list[int]:
    return [shape[0] if len(shape) == 3 else shape.numel() for shape in features.shapes(names)]
