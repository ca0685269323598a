"""EBKD (Kwon et al. 2020), as coded in the release of CA-MKD: teachers that are sure of a sample count more."""

import torch
from torch import Tensor

from raydistill.kinds.committee_methods import EbkdConfig
from raydistill.methods.adaptive_weights import AdaptiveWeights
from raydistill.targets.mixing import entropy
from raydistill.training.data import Batch
from raydistill.training.method import NO_CONTEXT, MethodContext


class Ebkd(AdaptiveWeights):
    """Weights per sample from the teachers' entropies."""

    def __init__(self, config: EbkdConfig, context: MethodContext = NO_CONTEXT) -> None:
        super().__init__(config, context)
        self.sum_to_one = config.sum_to_one

    def weights(self, student_logits: Tensor, teacher_logits: Tensor, batch: Batch) -> Tensor:
        raw = certainty_weights(entropy(teacher_logits))
        count = raw.shape[1]
        return raw / (max(count - 1, 1) if self.sum_to_one else count)


def certainty_weights(entropies: Tensor) -> Tensor:
    """1 - H_m / Σ_j H_j, (B, M): they sum to M - 1. Equal where all H are 0; 1 for a single teacher."""
    count = entropies.shape[1]
    if count == 1:
        return torch.ones_like(entropies)
    total = entropies.sum(dim=1, keepdim=True)
    return 1 - torch.where(total > 0, entropies / total, 1 / count)
