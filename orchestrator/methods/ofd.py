"""Overhaul of feature distillation (Heo et al., ICCV 2019, arXiv 1904.01866): stage ends before their ReLU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydistill.kinds.feature_methods import OfdConfig
from raydistill.methods.margins import batch_norm_behind, margins
from raydistill.models.layers import LoneBatchNorm2d, initialise_convolutions
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch
from raydistill.training.method import Features, Method, MethodContext


class Ofd(Method):
    """Partial squared distance of the student's connected features to the teacher's behind a margin ReLU."""

    def __init__(self, config: OfdConfig, context: MethodContext) -> None:
        super().__init__()
        student, teacher = context.both()
        self.student_features = config.student_features or _before_activation(student, "student_features")
        self.teacher_features = config.teacher_features or _before_activation(teacher, "teacher_features")
        self.teacher_in_training_mode = config.teacher_bn == "batch"
        channels = _matched_channels(student, self.student_features, teacher, self.teacher_features)
        self.connectors = nn.ModuleList(build_connector(*pair) for pair in channels)
        for index, name in enumerate(self.teacher_features):
            margin = margins(batch_norm_behind(teacher, name))
            self.register_buffer(f"margin{index}", margin.view(-1, 1, 1), persistent=False)

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        assert teacher is not None
        total = student.logits.new_zeros((), dtype=torch.float32)
        names = zip(self.student_features, self.teacher_features, strict=True)
        with torch.autocast(student.logits.device.type, enabled=False):
            for index, (own, other) in enumerate(names):
                connected = self.connectors[index](student.features[own].float())
                aim = teacher.features[other].detach().float()
                distance = partial_distance(connected, aim, self.get_buffer(f"margin{index}"))
                total = total + distance / 2 ** (len(self.connectors) - 1 - index)
        return {"features": total}


def partial_distance(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    """d_p of maps (B, C, H, W): Σ (T - s)² over s > T or T > 0, divided by B, with T = max(t, margin) (eq. 2 to 4)."""
    aim = torch.maximum(teacher, margin)
    counts = ((student > aim) | (aim > 0)).float()
    return (F.mse_loss(student, aim, reduction="none") * counts).sum() / len(student)


def build_connector(channels: int, target: int) -> nn.Module:
    """1x1 convolution and batch norm; weights N(0, 2 / target), as the release draws them."""
    connector = nn.Sequential(nn.Conv2d(channels, target, 1, bias=False), LoneBatchNorm2d(target))
    initialise_convolutions(connector)
    return connector


def _before_activation(features: Features, key: str) -> tuple[str, ...]:
    if not features.stages:
        raise ValueError(f"the model names no stages; write the features before a ReLU as `{key}`")
    return tuple(f"{stage}_pre" for stage in features.stages)


def _matched_channels(
    student: Features, own: tuple[str, ...], teacher: Features, others: tuple[str, ...]
) -> list[tuple[int, int]]:
    """Channels of each pair of maps; `ValueError` where the places of one are not those of the other."""
    if len(own) != len(others):
        raise ValueError(
            f"OFD pairs the student's features with the teacher's, but there are {len(own)} and {len(others)};"
            " name as many in `student_features` and `teacher_features`"
        )
    shapes = list(zip(student.shapes(own), teacher.shapes(others), strict=True))
    for name, other, (shape, aim) in zip(own, others, shapes, strict=True):
        if len(shape) != 3 or len(aim) != 3 or shape[1:] != aim[1:]:
            raise ValueError(
                f"OFD compares maps of equal height and width: the student's `{name}` has the shape {tuple(shape)},"
                f" the teacher's `{other}` {tuple(aim)}; name others in `student_features` or `teacher_features`"
            )
    return [(shape[0], aim[0]) for shape, aim in shapes]
