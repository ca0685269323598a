"""Deep mutual learning (Zhang et al. 2018, arXiv 1706.00384, eq. 4 to 8): peers learn from labels and one another."""

from itertools import permutations

import torch
from torch import Tensor

from raydistill.kinds.online import TrainPeersConfig
from raydistill.methods.losses import divergence, hard_loss
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch
from raydistill.training.method import Method


class Mutual(Method):
    """Every peer's cross-entropy, and its mean distance from the other peers, to which no gradient flows.

    All peers step at once, from the same predictions, as in the authors' release; the paper lets them take turns.
    """

    def __init__(self, config: TrainPeersConfig) -> None:
        super().__init__()
        self.config = config
        self.peers = tuple(f"peer{index}" for index in range(len(config.peers)))
        self.student_features = self.peers

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        config = self.config
        peers = [student.features[name] for name in self.peers]
        hard = [hard_loss(logits, batch, config.label_smoothing) for logits in peers]
        terms = {"hard": torch.stack(hard).sum()}
        if len(peers) > 1 and config.weight > 0:
            soft = [
                divergence(peers[own], peers[other].detach(), config.temperature)
                for own, other in permutations(range(len(peers)), 2)
            ]
            terms["soft"] = config.weight / (len(peers) - 1) * torch.stack(soft).sum()
        return terms
