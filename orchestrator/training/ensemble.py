"""Several models that answer as one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from raydistill.kinds.targets import Rule
from raydistill.targets.combine import normalised_weights
from raydistill.targets.mixing import (
    TeacherTargets,
    geometric_log_probabilities,
    tempered_log_probabilities,
)
from raydistill.training.model_files import TrainedModel


class Ensemble:
    """The members' mean: of their probabilities (`arithmetic`) or of their logits (`geometric`)."""

    def __init__(
        self,
        members: Sequence[TrainedModel],
        rule: Rule = "arithmetic",
        weights: Sequence[float] | None = None,
    ) -> None:
        self.members, self.rule = members, rule
        self.weights = torch.tensor(
            normalised_weights(weights, len(members)), device=members[0].normalisation.mean.device
        )

    def logits(self, inputs: Tensor) -> Tensor:
        """Log-probabilities (B, C) of raw inputs (B, ...); a single member's own logits."""
        logits = torch.stack([member.logits(inputs) for member in self.members], dim=1)
        if len(self.members) == 1:
            return logits[:, 0]
        mean = geometric_log_probabilities if self.rule == "geometric" else tempered_log_probabilities
        return mean(TeacherTargets(logits, self.weights.expand(inputs.shape[0], -1)), 1.0)
