"""SemCKD (Chen et al., AAAI 2021): every student stage learns from all teacher stages, as attention weighs them.

B samples, S student stages, T teacher stages, N samples of a full batch of one worker, D = N // 4.
"""

from collections.abc import Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydistill.kinds.feature_methods import SemckdConfig
from raydistill.methods.features import shrink_to_match
from raydistill.models.layers import LoneBatchNorm2d
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch
from raydistill.training.method import Features, Method, MethodContext


class Semckd(Method):
    """Squared distances of projected student stages to teacher stages, weighted by attention per sample."""

    def __init__(self, config: SemckdConfig, context: MethodContext) -> None:
        super().__init__()
        student, teacher = context.both()
        if context.batch_size < 4:
            raise ValueError(
                f"SemCKD compares the samples of a worker's batch and needs 4 or more, not {context.batch_size};"
                " raise `batch_size`, or use fewer workers"
            )
        self.student_features = config.student_features or student.stages_unless("student_features")
        self.teacher_features = config.teacher_features or teacher.stages_unless("teacher_features")
        channels = _channels(student, self.student_features)
        targets = _channels(teacher, self.teacher_features)
        self.queries = nn.ModuleList(Embedding(context.batch_size) for _ in channels)
        self.keys = nn.ModuleList(Embedding(context.batch_size) for _ in targets)
        self.projections = nn.ModuleList(build_projection(*pair) for pair in product(channels, targets))
        self.mean_attention: Tensor | None = None

    @property
    def compared_layers(self) -> Sequence[tuple[str, str]]:
        """None: what it compares is said by its attention."""
        return ()

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        assert teacher is not None
        with torch.autocast(student.logits.device.type, enabled=False):
            own = [student.features[name].float() for name in self.student_features]
            aims = [teacher.features[name].detach().float() for name in self.teacher_features]
            attention = self.attention(own, aims)
            self.mean_attention = attention.detach().mean(dim=0)
            return {"semantic": (attention * self._distances(own, aims)).sum(dim=(1, 2)).mean() / len(own)}

    def attention(self, own: Sequence[Tensor], aims: Sequence[Tensor]) -> Tensor:
        """α (B, S, T), summing to 1 over T, from maps (B, C, H, W) of the student and of the teacher."""
        queries = torch.stack([embed(gram(part)) for embed, part in zip(self.queries, own, strict=True)], 1)
        keys = torch.stack([embed(gram(part)) for embed, part in zip(self.keys, aims, strict=True)], 1)
        return torch.softmax(queries @ keys.mT, dim=2)

    def _distances(self, own: Sequence[Tensor], aims: Sequence[Tensor]) -> Tensor:
        """Mean squared differences (B, S, T)."""
        distances = [
            distance(projection, part, aim)
            for projection, (part, aim) in zip(self.projections, product(own, aims), strict=True)
        ]
        return torch.stack(distances, dim=1).unflatten(1, (len(own), len(aims)))

    def observations(self) -> dict[str, Tensor]:
        assert self.mean_attention is not None
        pairs = product(self.student_features, self.teacher_features)
        return {
            f"attention/{own}/{aim}": value
            for (own, aim), value in zip(pairs, self.mean_attention.flatten(), strict=True)
        }


class Embedding(nn.Module):
    """Rows (B, B) of a Gram matrix to unit vectors (B, D). Its weights are for batches of one size N.

    A shorter batch is embedded as if its missing samples had features of zeros: with the first B columns.
    """

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        size = batch_size // 4
        self.first = nn.Linear(batch_size, 2 * size)
        self.second = nn.Linear(2 * size, size)

    def forward(self, rows: Tensor) -> Tensor:
        missing = self.first.in_features - rows.shape[1]
        hidden = F.relu(self.first(F.pad(rows, (0, missing)) if missing else rows))
        # The release divides by the bare norm: 0 / 0 where it is zero.
        return F.normalize(self.second(hidden), dim=1, eps=1e-12)


def gram(maps: Tensor) -> Tensor:
    """Inner products (B, B) of a batch's maps (B, C, H, W): raw, so of the order of C · H · W."""
    flat = maps.flatten(1)
    return flat @ flat.mT


def distance(projection: nn.Module, own: Tensor, aim: Tensor) -> Tensor:
    """Mean squares (B,) of the student's projected map minus the teacher's, the larger pooled to the smaller."""
    own, aim = shrink_to_match(own, aim)
    return F.mse_loss(projection(own), aim, reduction="none").mean(dim=(1, 2, 3))


def build_projection(channels: int, target: int) -> nn.Module:
    """1x1 to twice the target's channels, 3x3, 1x1 to the target's."""
    return nn.Sequential(
        nn.Conv2d(channels, 2 * target, 1, bias=False),
        LoneBatchNorm2d(2 * target),
        nn.ReLU(),
        nn.Conv2d(2 * target, 2 * target, 3, padding=1, bias=False),
        LoneBatchNorm2d(2 * target),
        nn.ReLU(),
        nn.Conv2d(2 * target, target, 1, bias=False),
    )


def _channels(features: Features, names: Sequence[str]) -> list[int]:
    shapes = features.shapes(names)
    for name, shape in zip(names, shapes, strict=True):
        if len(shape) != 3:
            raise ValueError(
                f"SemCKD compares maps of (channels, height, width); `{name}` has the shape {tuple(shape)};"
                " name others in `student_features` and `teacher_features`"
            )
    return [shape[0] for shape in shapes]
