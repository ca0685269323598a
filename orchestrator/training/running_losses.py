"""What the steps of a training say of themselves, on its way from the device to the curves.

Reading a number waits until the device has done all that came before it, so nothing is read in a step: the losses of
up to `LOOK_EVERY` steps wait on the device and are brought over together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from raydistill.errors import StageError
from raydistill.runs.context import StageContext

LOOK_EVERY = 50  # steps between looks; a loss that is not finite is found at most so many steps late
CURVE_EVERY = 50  # steps of an epoch whose mean is a point of the curves within epochs
LOSS = "loss/"

Named = Mapping[str, Tensor]


@dataclass(frozen=True)
class Told:
    """What a step says of itself: its numbers (n,) by name, on the device; and which of its losses had no gradient."""

    names: tuple[str, ...]
    values: Tensor
    constant: tuple[str, ...]

    @classmethod
    def of(cls, losses: Named, seen: Named) -> "Told":
        """Of named losses, and of other scalars."""
        told = {f"{LOSS}{name}": loss.detach() for name, loss in losses.items()} | dict(seen)
        constant = tuple(f"{LOSS}{name}" for name, loss in losses.items() if not loss.requires_grad)
        return cls(tuple(told), torch.stack(list(told.values())), constant)


@dataclass
class LossSums:
    """Sums of losses and accuracy over the `steps` of this epoch, and over the `recent` ones since the last point of
    the curves. A step counts for as much of a batch as it has samples. Checkpoints hold them.

    `silent` are the losses that were 0, or had no gradient, in every step of every epoch so far; `constant` had none
    in any step of this one.
    """

    sums: dict[str, float] = field(default_factory=dict)
    recent: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    silent: list[str] = field(default_factory=list)
    constant: list[str] | None = None


class RunningLosses:
    """The losses of a training that goes on from `sums`, and what it reports of them."""

    def __init__(
        self,
        sums: LossSums,
        parameters: Sequence[nn.Parameter],
        context: StageContext,
        *,
        steps_per_epoch: int,
        batches_per_epoch: float,
    ) -> None:
        """`batches_per_epoch`: samples of an epoch in full steps, of which the last may be a part."""
        self._sums, self._parameters, self._context = sums, parameters, context
        self._steps_per_epoch = steps_per_epoch
        self._last_weight = batches_per_epoch - (steps_per_epoch - 1)
        self._waiting: list[Told] = []

    def add(self, step: int, told: Told) -> None:
        """Take what `step`, counted from 1, told. `StageError` as `look`."""
        before = self._sums.constant
        constant = list(told.constant)
        self._sums.constant = constant if before is None else [name for name in constant if name in before]
        self._waiting.append(told)
        if len(self._waiting) >= LOOK_EVERY:
            self.look(step)

    def look(self, step: int) -> None:
        """Bring what waits, up to `step`, to the host; `StageError` at the first that is not finite."""
        if not self._waiting:
            return
        names = self._waiting[0].names
        assert all(told.names == names for told in self._waiting), "all steps name the same terms"
        values = torch.stack([told.values for told in self._waiting])
        if self._context.world > 1:  # each worker's share of the losses; all workers fail together
            distributed.all_reduce(values)
            values /= self._context.world
        values = values.cpu()
        self._check_finite(names, values, step)
        # One by one, so that the sums do not depend on where the looks, and with them a stop, fell.
        for number, row in enumerate(values.tolist(), step - len(values) + 1):
            self._sum_up(number, dict(zip(names, row, strict=True)))
        self._waiting.clear()

    def end_epoch(self, epoch: int, step: int) -> dict[str, float]:
        """The epoch's means over its samples; `step` was its last. The next epoch begins with nothing."""
        self.look(step)
        self._note_silence(epoch)
        sums = self._sums
        means = _means(sums.sums, sums.steps - 1 + self._weight(step), "train/")
        sums.sums, sums.recent, sums.steps = {}, {}, 0
        return means

    def _sum_up(self, step: int, told: Mapping[str, float]) -> None:
        sums, weight = self._sums, self._weight(step)
        for name, value in told.items():
            sums.sums[name] = sums.sums.get(name, 0.0) + weight * value
            sums.recent[name] = sums.recent.get(name, 0.0) + weight * value
        sums.steps += 1
        if sums.steps % CURVE_EVERY == 0:
            self._context.report(step, _means(sums.recent, CURVE_EVERY - 1 + weight, "steps/"))
            sums.recent = {}

    def _weight(self, step: int) -> float:
        """The samples of a step, counted from 1, in full batches; only an epoch's last batch may be smaller."""
        return self._last_weight if step % self._steps_per_epoch == 0 else 1.0

    def _check_finite(self, names: Sequence[str], values: Tensor, step: int) -> None:
        """What was told (steps, terms) up to `step`, and the weights that it led to: a gradient can be infinite where
        the loss is not, and the loss of the last step says nothing of the weights after it."""
        is_finite = torch.isfinite(values).all(dim=1)
        if not is_finite.all():
            bad = int((~is_finite).nonzero()[0])
            told = zip(names, values[bad].tolist(), strict=True)
            terms = [f"{name.removeprefix(LOSS)} {value:g}" for name, value in told if name.startswith(LOSS)]
            raise _not_finite("loss", step - len(values) + bad, f" ({', '.join(terms)})")
        if not nn.utils.get_total_norm(self._parameters).isfinite():
            raise _not_finite("norm of the weights", step - 1)

    def _note_silence(self, epoch: int) -> None:
        """A loss that says nothing in one epoch may ramp up in a later one: only what never spoke stays noted."""
        sums = {name: value for name, value in self._sums.sums.items() if name.startswith(LOSS)}
        zero = {name for name, value in sums.items() if value == 0.0}.union(self._sums.constant or ())
        before = set(sums) if epoch == 0 else {f"{LOSS}{name}" for name in self._sums.silent}
        self._sums.silent = sorted(name.removeprefix(LOSS) for name in zero & before)
        self._sums.constant = None


def _means(sums: Mapping[str, float], batches: float, prefix: str) -> dict[str, float]:
    """The mean over samples of the loss, its terms, and whatever else was summed over so many full batches."""
    means = {name: value / batches for name, value in sums.items()}
    loss = sum(value for name, value in means.items() if name.startswith(LOSS))
    return {f"{prefix}loss": loss, **{f"{prefix}{name}": value for name, value in means.items()}}


def _not_finite(what: str, step: int, terms: str = "") -> StageError:
    return StageError(
        f"the {what} is not finite at step {step}{terms}; the last good checkpoint is kept. Lower the"
        " learning rate, set `clip_norm`, or check the inputs and the teacher; a logit of -inf is taken where a"
        " softened teacher has it too, and for no label"
    )
