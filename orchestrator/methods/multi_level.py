"""MLKD (Jin et al., CVPR 2023) of one view: what single samples, the batch and the classes say at each temperature."""

import torch
import torch.nn.functional as F
from torch import Tensor

from raydistill.kinds.logit_methods import MultiLevelConfig
from raydistill.methods.losses import apart, hard_loss
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets, tempered, tempered_probabilities
from raydistill.training.data import Batch
from raydistill.training.method import NO_CONTEXT, Method, MethodContext


class MultiLevel(Method):
    """Divergences, and products of probabilities between samples and between classes, summed over temperatures."""

    config: MultiLevelConfig

    def __init__(self, config: MultiLevelConfig, context: MethodContext = NO_CONTEXT) -> None:
        super().__init__()
        self.config, self.label_smoothing = config, context.label_smoothing

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        config, terms = self.config, {}
        if config.soft_weight > 0:
            assert teacher is not None
            found = [levels(student.logits, teacher, heat) for heat in config.temperatures]
            weights = config.instance_weight, config.batch_weight, config.class_weight
            for name, weight, parts in zip(
                ("instance", "batch", "class"), weights, zip(*found, strict=True), strict=True
            ):
                terms[name] = config.soft_weight * weight * torch.stack(parts).sum()
        if config.hard_weight > 0:
            terms["hard"] = config.hard_weight * hard_loss(student.logits, batch, self.label_smoothing)
        return terms


def levels(logits: Tensor, teacher: TeacherTargets, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Student logits (B, C) against the teachers at one temperature: by samples, by pairs of them, by pairs of classes.

    The products of classes are sums over the batch, as in the release.
    """
    logs = F.log_softmax(tempered(logits, temperature), dim=1)
    own, aim = logs.exp(), tempered_probabilities(teacher, temperature)
    instances = temperature**2 * apart(logs, aim)
    samples = (aim @ aim.mT - own @ own.mT).square().sum() / len(own)
    classes = (aim.mT @ aim - own.mT @ own).square().sum() / own.shape[1]
    return instances.float(), samples.float(), classes.float()
