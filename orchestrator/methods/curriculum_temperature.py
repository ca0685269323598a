"""CTKD (Li et al., AAAI 2023, arXiv 2211.16231): a temperature that learns to make the student's task harder."""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydistill.kinds.logit_methods import CurriculumTemperatureConfig
from raydistill.methods.losses import NEVER, divergence_terms, hard_loss
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets, tempered_log_probabilities
from raydistill.training.data import Batch
from raydistill.training.method import NO_CONTEXT, Method, MethodContext


class CurriculumTemperature(Method):
    """Soft targets at a temperature whose gradient has the other sign, and the labels with a weight of their own."""

    def __init__(self, config: CurriculumTemperatureConfig, context: MethodContext = NO_CONTEXT) -> None:
        super().__init__()
        self.config = config
        self.label_smoothing = context.label_smoothing
        self.position = nn.Parameter(torch.ones(()))
        self.seen: dict[str, Tensor] = {}

    def temperature(self) -> Tensor:
        """A scalar between the lowest temperature and that plus the range."""
        return self.config.lowest_temperature + self.config.temperature_range * self.position.sigmoid()

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        assert teacher is not None
        config, heat = self.config, self.temperature()
        self.seen = {"temperature": heat.detach()}
        # Of no value, and with the reversed slope in the temperature alone: no autograd function is needed.
        # A logit of -inf is made finite for it: times the slope 0 that it has in T it would be no number.
        finite = student.logits.detach().float().clamp(min=NEVER)
        against = soft_loss_at(finite, teacher, heat)
        reversed_ = strength(config.curriculum_epochs, batch.epoch) * (against.detach() - against)
        soft = soft_loss_at(student.logits, teacher, heat.detach()) + reversed_
        terms = {"soft": config.soft_weight * soft}
        if config.hard_weight > 0:
            terms["hard"] = config.hard_weight * hard_loss(student.logits, batch, self.label_smoothing)
        return terms

    def undecayed(self) -> Iterable[nn.Parameter]:
        """Decay would pull the temperature to the middle of its range."""
        return (self.position,)

    def observations(self) -> dict[str, Tensor]:
        return self.seen


def soft_loss_at(student_logits: Tensor, teacher: TeacherTargets, temperature: Tensor) -> Tensor:
    """T² · KL(p̄^T ‖ q^T) of logits (B, C), with a gradient in T as well, a scalar on their device.

    A class that the student alone excludes costs infinity; for a gradient in T the student's logits are finite.
    """
    own = F.log_softmax(student_logits.float() / temperature, dim=1)
    cooled = teacher._replace(logits=teacher.logits.float().clamp(min=NEVER) / temperature)
    aim = tempered_log_probabilities(cooled, 1)
    return temperature**2 * divergence_terms(own, aim).sum(dim=1).mean()


def strength(epochs: int, epoch: int) -> float:
    """Of the temperature's gradient in an epoch, counted from 0: half a wave that is at 1 in the last of `epochs`."""
    return (1 - math.cos(math.pi * min(epoch + 1, epochs) / epochs)) / 2
