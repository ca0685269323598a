"""BYOT (Zhang et al. 2019, arXiv 1905.08094): the early exits of a network learn from labels and from its end."""

import torch
from torch import Tensor

from raydistill.kinds.online import SelfDistillConfig
from raydistill.methods.losses import divergence, hard_loss
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch
from raydistill.training.method import Method

EMBEDDING = "embedding"


class SelfDistillation(Method):
    """Cross-entropy of every exit; the earlier ones' distance from the last one's logits and from its embedding, which
    nothing of that moves."""

    def __init__(self, config: SelfDistillConfig, exits: int) -> None:
        super().__init__()
        self.config = config
        self.exits = tuple(f"exit{place}" for place in range(1, exits + 1))
        self.embeddings = tuple(f"{name}_embedding" for name in self.exits)
        self.student_features = (*self.exits, *self.embeddings, EMBEDDING)

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        config, features = self.config, student.features
        logits = [features[name] for name in self.exits]
        hard = [hard_loss(own, batch, config.label_smoothing) for own in logits]
        terms = {
            "hard": (1 - config.soft_weight) * hard_loss(student.logits, batch, config.label_smoothing),
            "exits": (1 - config.soft_weight) * torch.stack(hard).sum(),
        }
        if config.soft_weight > 0:
            target = student.logits.detach()
            soft = [divergence(own, target, config.temperature) for own in logits]
            terms["soft"] = config.soft_weight * torch.stack(soft).sum()
        if config.feature_weight > 0:
            aim = features[EMBEDDING].float().detach()
            apart = [distance(features[name].float(), aim) for name in self.embeddings]
            terms["features"] = config.feature_weight * torch.stack(apart).sum()
        return terms


def distance(own: Tensor, aim: Tensor) -> Tensor:
    """The mean over samples and entries (B, D) of the square of the difference, 0 where neither is above 0."""
    return torch.where((own > 0) | (aim > 0), (own - aim).square(), 0).mean()
