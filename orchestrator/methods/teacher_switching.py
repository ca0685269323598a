"""One teacher per minibatch (Fukuda et al., Interspeech 2017)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from raydistill.kinds.committee_methods import TeacherSwitchingConfig
from raydistill.methods.adaptive_weights import AdaptiveWeights
from raydistill.tasks.hashing import fold_key
from raydistill.tasks.seeds import SWITCH
from raydistill.training.data import Batch


class TeacherSwitching(AdaptiveWeights):
    """Gives all weight to one teacher, drawn for each batch. The other live teachers do not run, unless another method
    asks them."""

    config: TeacherSwitchingConfig
    host_work = "a teacher is drawn for every batch"

    def asked(self, batch: Batch, count: int) -> Sequence[int]:
        return (drawn_teacher(self.config.switch_seed, batch, count),)

    def weights(self, student_logits: Tensor, teacher_logits: Tensor, batch: Batch) -> Tensor:
        weights = torch.zeros_like(teacher_logits[:, :, 0])
        weights[:, drawn_teacher(self.config.switch_seed, batch, weights.shape[1])] = 1
        return weights


def drawn_teacher(seed: int, batch: Batch, count: int) -> int:
    """A number below `count`, a function of the seed, the epoch and the batch's first row, which no other batch has."""
    return fold_key(seed, SWITCH, batch.epoch, int(batch.rows[0])) % count
