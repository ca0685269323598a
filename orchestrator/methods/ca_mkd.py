"""CA-MKD (Zhang et al., ICASSP 2022, arXiv 2201.00007): teachers that know a sample's label count more.

B samples, M teachers, C classes.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydistill.kinds.committee_methods import CaMkdConfig
from raydistill.methods.adaptive_weights import AdaptiveWeights
from raydistill.models.layers import LoneBatchNorm2d, Network
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch
from raydistill.training.method import NO_CONTEXT, Features, MethodContext


class CaMkd(AdaptiveWeights):
    """Weights per sample from the teachers' own cross-entropies, for their logits and, if asked for, their features."""

    config: CaMkdConfig

    def __init__(self, config: CaMkdConfig, context: MethodContext = NO_CONTEXT) -> None:
        super().__init__(config, context)
        self.regressors = nn.ModuleList()
        self.heads: tuple[nn.Sequential, ...] = ()  # the teachers' own layers: no part of what trains
        if config.feature_weight > 0:
            self._build_feature_term(config, context)

    def _build_feature_term(self, config: CaMkdConfig, context: MethodContext) -> None:
        assert context.student is not None
        student, teachers = context.student, context.teachers
        own = config.student_feature or student.stages_unless("student_feature")[-1]
        aim = config.teacher_feature or teachers[0].stages_unless("teacher_feature")[-1]
        self.student_features, self.teacher_features = (own,), (aim,)
        channels = _channels(student, own)
        self.regressors.extend(
            build_channel_regressor(channels, _channels(teacher, aim)) for teacher in teachers
        )
        self.heads = tuple(_head(teacher, aim) for teacher in teachers)

    def weights(self, student_logits: Tensor, teacher_logits: Tensor, batch: Batch) -> Tensor:
        return self._weights(teacher_logits, batch)

    def _weights(self, logits: Tensor, batch: Batch) -> Tensor:
        weights = confidence_weights(cross_entropies(logits, batch))
        return weights if self.config.sum_to_one else weights / weights.shape[1]

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        terms = super().losses(student, teacher, batch)
        if self.config.feature_weight > 0:
            assert teacher is not None
            # Computed also while it does not count: what training reaches may not depend on the epoch.
            weight = self.config.feature_weight if batch.epoch >= self.config.logits_only_epochs else 0.0
            with torch.autocast(student.logits.device.type, enabled=False):
                own = student.features[self.student_features[0]]
                terms["features"] = weight * self.feature_loss(own, teacher.member_features, batch)
        return terms

    def feature_loss(self, own: Tensor, members: Sequence[Mapping[str, Tensor]], batch: Batch) -> Tensor:
        """Mean over the batch of Σ_m u_m ‖F_m - r_m(F)‖² / size of F_m. The gradient flows through u_m too."""
        logits, distances = [], []
        for regress, head, features in zip(self.regressors, self.heads, members, strict=True):
            aim = features[self.teacher_features[0]].detach().float()
            projected = regress(resized(own.float(), (aim.shape[2], aim.shape[3])))
            logits.append(head(projected))
            distances.append(F.mse_loss(projected, aim, reduction="none").mean(dim=(1, 2, 3)))
        weights = self._weights(torch.stack(logits, dim=1), batch)
        return (weights * torch.stack(distances, dim=1)).sum(dim=1).mean()


def confidence_weights(errors: Tensor) -> Tensor:
    """(1 - softmax_m(CE_m)) / (M - 1), (B, M), rows sum to 1. Not ∝ exp(-CE), as secondary sources have it."""
    count = errors.shape[1]
    return torch.ones_like(errors) if count == 1 else (1 - errors.softmax(dim=1)) / (count - 1)


def cross_entropies(logits: Tensor, batch: Batch) -> Tensor:
    """-log p of the label at T = 1, (B, M) from logits (B, M, C); under mixup of both labels in proportion."""
    own = _cross_entropies_with(logits, batch.labels)
    if batch.partner_labels is None or batch.weights is None:
        return own
    return torch.lerp(_cross_entropies_with(logits, batch.partner_labels), own, batch.weights.unsqueeze(1))


def _cross_entropies_with(logits: Tensor, labels: Tensor) -> Tensor:
    errors = F.cross_entropy(logits.mT, labels.unsqueeze(1).expand(-1, logits.shape[1]), reduction="none")
    # Infinite for a teacher that excludes the label: its weight is 0, where the softmax of infinity is no number.
    return errors.clamp(max=torch.finfo(errors.dtype).max)


def build_channel_regressor(channels: int, target: int) -> nn.Module:
    """1x1 convolution, batch norm, ReLU."""
    return nn.Sequential(nn.Conv2d(channels, target, 1), LoneBatchNorm2d(target), nn.ReLU())


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, C, H, W) on another grid: a larger one is averaged, a smaller one interpolated."""
    if maps.shape[2:] == size:  # adaptive pooling by one is slow
        return maps
    if maps.shape[2] >= size[0]:
        return F.adaptive_avg_pool2d(maps, size)
    return F.interpolate(maps, size=size, mode="bilinear")


def _channels(features: Features, name: str) -> int:
    (shape,) = features.shapes([name])
    if len(shape) != 3:
        raise ValueError(
            f"CA-MKD compares maps of (channels, height, width); `{name}` has the shape {tuple(shape)}; name another as"
            " `student_feature` or `teacher_feature`, or set `feature_weight: 0`"
        )
    return shape[0]


def _head(teacher: Features, name: str) -> nn.Sequential:
    if not isinstance(teacher.model, Network):
        raise ValueError(
            f"CA-MKD runs the teacher's layers behind `{name}` on their own, and {type(teacher.model).__name__} is no"
            " chain of layers; take another teacher, or set `feature_weight: 0`"
        )
    return teacher.model.behind(name)
