"""Several models as one module, so that one loop trains them together."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from raydistill.targets.mixing import TeacherTargets, tempered_log_probabilities


class Peers(nn.Module):
    """Log-probabilities (B, C) of the peers' mean, arithmetic; a single peer's own logits.

    Features: `peer0`, `peer1`, … are the peers' logits.
    """

    def __init__(self, peers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.peers = nn.ModuleList(peers)
        self.feature_paths = {f"peer{index}": f"peers.{index}" for index in range(len(peers))}

    def forward(self, inputs: Tensor) -> Tensor:
        logits = torch.stack([peer(inputs) for peer in self.peers], dim=1)
        if len(self.peers) == 1:
            return logits[:, 0]
        weights = torch.full(logits.shape[:2], 1 / len(self.peers), device=logits.device)
        return tempered_log_probabilities(TeacherTargets(logits, weights), 1.0)
