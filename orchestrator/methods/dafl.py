"""A generator that pleases the teacher, a student that learns from what it draws (DAFL, arXiv 1904.01186)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydistill.kinds.data_free import DistillWithGeneratorConfig
from raydistill.kinds.training import AdamWConfig
from raydistill.methods.losses import soft_loss
from raydistill.models.taps import Output, Tapped
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch
from raydistill.training.method import Method


class Dafl(Method):
    """The student's feature `inputs` is what the generator drew; the teacher is frozen, but gradients pass through."""

    def __init__(self, config: DistillWithGeneratorConfig, teacher: nn.Module, generator: nn.Module) -> None:
        super().__init__()
        self.config = config
        # In a tuple it is no submodule: neither checkpointed with the method nor put into training mode.
        self.feature = config.feature or _behind_convolutions(teacher)
        self._teacher = (Tapped(teacher, [self.feature]),)
        adam = AdamWConfig(name="adamw", learning_rate=config.generator_learning_rate)
        self.own_optimizer = (adam, generator)

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        answer = self._teacher[0](student.features["inputs"].float())
        logits = answer.logits.float()
        targets = TeacherTargets(logits.detach().unsqueeze(1), torch.ones_like(logits[:, :1]))
        config = self.config
        return {
            "one_hot": config.one_hot_weight * F.cross_entropy(logits, logits.argmax(dim=1)),
            "entropy": config.entropy_weight * negative_entropy(logits),
            "activation": -config.activation_weight * answer.features[self.feature].float().abs().mean(),
            "soft": soft_loss(student.logits, targets, 1.0),
        }


def _behind_convolutions(teacher: nn.Module) -> str:
    """The feature of the release: what linear layers read, where a network has several of them, else its embedding."""
    return "flat" if "flat" in getattr(teacher, "feature_paths", {}) else "embedding"


def negative_entropy(logits: Tensor) -> Tensor:
    """Σ_c ū_c log10 ū_c of the mean prediction ū of a batch (B, C): -1 for ten equally frequent classes, 0 for one."""
    mean = torch.softmax(logits, dim=1).mean(dim=0)
    # At 0 the value has the limit 0, and the slope is infinite: the softmax before it would make that no number.
    mean = mean.clamp(min=torch.finfo(mean.dtype).tiny)
    return torch.xlogy(mean, mean).sum() / math.log(10)
