"""CC (Peng et al., ICCV 2019, arXiv 1904.01802): kernels between the samples of a batch match the teacher's."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from raydistill.kinds.relation_methods import CorrelationCongruenceConfig
from raydistill.methods.embedding import EmbeddingMethod
from raydistill.methods.features import direction, levelled
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch
from raydistill.training.method import MethodContext


class CorrelationCongruence(EmbeddingMethod):
    """Mean squared difference of the two networks' kernels."""

    def __init__(self, config: CorrelationCongruenceConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.config = config

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        own, aim = (
            kernel(part, self.config.gamma, self.config.order) for part in self.embeddings(student, teacher)
        )
        return {"correlation": F.mse_loss(own, aim)}


def kernel(features: Tensor, gamma: float, order: int) -> Tensor:
    """exp(-γ ‖f̂_i - f̂_j‖²) by the first terms of its series in f̂_i · f̂_j, (B, B) from features (B, d)."""
    units = direction(levelled(features, 1))
    cosines = units @ units.mT
    total = torch.zeros_like(cosines)
    for power in reversed(range(order + 1)):  # Horner's scheme
        total = total * cosines + math.exp(-2 * gamma) * (2 * gamma) ** power / math.factorial(power)
    return total
