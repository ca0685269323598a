"""A specialist that keeps all classes and is taught not to forget them (arXiv 1503.02531, section 5.5, proposal)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from raydistill.kinds.specialists import TrainSpecialistsConfig
from raydistill.methods.losses import soft_loss
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch
from raydistill.training.method import Method


class FullHead(Method):
    """Cross-entropy on samples of the cluster, the generalist's soft targets on the others, or on all.

    Both are sums over their samples, divided by the size of the batch.
    """

    cluster: Tensor

    def __init__(self, config: TrainSpecialistsConfig, cluster: Sequence[int]) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("cluster", torch.tensor(cluster), persistent=False)

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        assert teacher is not None
        config, logits = self.config, student.logits.float()
        # Not `isin`: for a large cluster it asks the device how many labels differ.
        is_special = (batch.labels[:, None] == self.cluster).any(dim=1)
        hard = F.cross_entropy(logits, batch.labels, reduction="none", label_smoothing=config.label_smoothing)
        terms = {"hard": (hard * is_special).mean()}
        if config.soft_weight > 0:
            learns = torch.ones_like(is_special) if config.soft_on == "all" else ~is_special
            soft = soft_loss(logits, teacher, config.temperature, reduction="none")
            terms["soft"] = config.soft_weight * (soft * learns).mean()
        return terms
