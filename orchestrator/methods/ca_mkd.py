"""CA-MKD (Zhang et al., ICASSP 2022, arXiv 2201.00007), logits: teachers that know a sample's label count more."""

import torch
import torch.nn.functional as F
from torch import Tensor

from orchestrator.methods.adaptive_weights import AdaptiveWeights
from orchestrator.plan.committee_method_configs import CaMkdConfig
from orchestrator.training.data import Batch
from orchestrator.training.method import NO_SETTING, Setting


class CaMkd(AdaptiveWeights):
    """Weights per sample from the teachers' own cross-entropies."""

    def __init__(self, config: CaMkdConfig, setting: Setting = NO_SETTING) -> None:
        super().__init__(config, setting)
        self.sum_to_one = config.sum_to_one

    def weights(self, student_logits: Tensor, teacher_logits: Tensor, batch: Batch) -> Tensor:
        weights = confidence_weights(cross_entropies(teacher_logits, batch))
        return weights if self.sum_to_one else weights / weights.shape[1]


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
    return F.cross_entropy(logits.mT, labels.unsqueeze(1).expand(-1, logits.shape[1]), reduction="none")
