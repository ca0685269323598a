"""Co-distillation (Anil et al. 2018, arXiv 1804.03235): peers learn from one another's old predictions."""

import torch
from torch import Tensor

from raydistill.kinds.online import CodistillConfig
from raydistill.methods.losses import divergence, hard_loss
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch
from raydistill.training.exchange import Exchange
from raydistill.training.method import Method
from raydistill.training.precision import autocast


class Codistillation(Method):
    """Cross-entropy, and after `burn_in` steps the mean distance from the peers whose files could be read.

    The loop takes its `teach` as teacher. Its counts are buffers, so that a resumed training goes on counting.
    """

    steps: Tensor
    heard: Tensor
    staleness: Tensor
    host_work = "peers come and go"

    def __init__(self, config: CodistillConfig, exchange: Exchange, burn_in: int) -> None:
        super().__init__()
        self.config, self.exchange, self.burn_in = config, exchange, burn_in
        self.step: int | None = None
        for name in ("steps", "heard", "staleness"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))
        self.seen: dict[str, Tensor] = {}

    def at_step(self, step: int) -> None:
        """Every `exchange_every` steps, and where a training begins or goes on: write the own file and read the
        others."""
        if self.step is None or step % self.config.exchange_every == 0:
            self.exchange.publish(step)
            self.exchange.look()
        self.step = step

    def teach(self, batch: Batch) -> TeacherTargets:
        """Predictions (B, M, C) of the peers that count in this step; M is 0 while the weight is."""
        if self.step is None or self.step < self.burn_in or not self.config.weight:
            self._count(batch, [])
            return _equal_weights(batch.inputs.new_zeros(len(batch.inputs), 0, 0))
        self.steps += 1
        self._count(batch, [self.step - other for other in self.exchange.steps.values()])
        with autocast(batch.inputs.device.type, self.config.precision):
            return _equal_weights(self.exchange.predictions(batch.inputs))

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        terms = {"hard": hard_loss(student.logits, batch, self.config.label_smoothing)}
        if self.config.weight and teacher is not None:
            distance = mean_divergence(student.logits, teacher.logits, self.config.temperature)
            terms["soft"] = self.config.weight * distance
        return terms

    def observations(self) -> dict[str, Tensor]:
        return self.seen

    def summary(self) -> dict[str, float]:
        """Means over the steps after the burn-in: how many peers were read, and how many steps old their weights
        were."""
        steps, heard, staleness = (int(value) for value in (self.steps, self.heard, self.staleness))
        summary = {"peers_heard": heard / max(steps, 1)}
        return summary | {"staleness": staleness / heard} if heard else summary

    def _count(self, batch: Batch, staleness: list[int]) -> None:
        count, total = len(staleness), sum(staleness)
        self.heard += count
        self.staleness += total
        values = {"peers_heard": float(count), "staleness": total / max(count, 1)}
        device = batch.inputs.device
        self.seen = {name: torch.full((), value, device=device) for name, value in values.items()}


def mean_divergence(student_logits: Tensor, peers: Tensor, temperature: float) -> Tensor:
    """The mean of T² · KL(softmax(v_m/T) ‖ softmax(z/T)) over M peers (B, M, C), who are constants; 0 without any."""
    if not peers.shape[1]:
        return student_logits.new_zeros((), dtype=torch.float32)
    apart = [divergence(student_logits, logits, temperature) for logits in peers.detach().unbind(dim=1)]
    return torch.stack(apart).mean()


def _equal_weights(logits: Tensor) -> TeacherTargets:
    count = max(logits.shape[1], 1)
    return TeacherTargets(logits, logits.new_full(logits.shape[:2], 1 / count, dtype=torch.float32))
