"""The loop that trains every model: teachers, assistants and students, on one process or many.

It knows no method's name: a method turns the student's and the teacher's outputs into named losses. All
randomness is a function of (seed, step), so that stopping anywhere and resuming equals not stopping. Workers of a
`torch.distributed` group each take their part of the same global batches.
"""

import copy
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from raydistill.errors import StageError, StageStopped
from raydistill.kinds.changes import during
from raydistill.kinds.stage_bases import TrainingConfig
from raydistill.kinds.training import FakeQuantizationConfig
from raydistill.models.taps import Output, Tapped
from raydistill.runs.context import StageContext
from raydistill.runs.folder import CHECKPOINT
from raydistill.targets.mixing import TeacherTargets
from raydistill.tasks.devices import all_to_device
from raydistill.tasks.hashing import fold_key
from raydistill.tasks.seeds import Purpose
from raydistill.tasks.splits import Split
from raydistill.training.averaging import Average
from raydistill.training.batch_norm import GlobalBatchNorm
from raydistill.training.captured_step import CapturedStep, Recorder, StaticStep, hindrance, records
from raydistill.training.checkpoint import load_checkpoint, save_checkpoint
from raydistill.training.cost import Cost
from raydistill.training.data import Batch, TransferSet, split_batch
from raydistill.training.evaluation import judge_after_epoch
from raydistill.training.fake_quantization import FakeQuantized
from raydistill.training.freezing import freeze, hold
from raydistill.training.method import Method
from raydistill.training.optimizer import (
    DeviceRates,
    MaxNorm,
    begin_momentum,
    build_optimizers,
    build_schedule,
    change_numbers,
)
from raydistill.training.parameter_groups import SCALE, Rule, rules_of
from raydistill.training.pieces import logits_by_pieces
from raydistill.training.precision import GradientScaler, autocast
from raydistill.training.running_losses import LossSums, RunningLosses, Told
from raydistill.training.warm_start import copy_metrics, warm_starts
from raydistill.training.workers import Workers, state_of

# What a worker that dies costs at most, beside its start; as many times that as one takes seconds to write, so that
# large ones (memory banks) cost a twentieth of the time and not all of it.
CHECKPOINT_SECONDS = 20.0
AGREE_EVERY = (
    10  # steps between agreements of several workers on checkpoints: each waits for the slowest of them
)

log = logging.getLogger(__name__)

Teacher = Callable[[Batch], TeacherTargets]
StepFunction = Callable[[Batch, TeacherTargets | None], tuple[dict[str, Tensor], dict[str, Tensor]]]
Update = Callable[[], Told]


@dataclass
class Turn:
    """A step of the optimizer that is due, of positions `rows` (B,) in an epoch. Before the next one is asked for,
    somebody makes it, or makes it with others' and says what it `told`."""

    rows: Tensor
    epoch: int
    plainly: Update
    told: Told | None = None
    is_plain: bool = False

    def make(self) -> None:
        """Make it by itself."""
        self.is_plain = True
        self.told = self.plainly()


class Learner(nn.Module):
    """The student and its method as one module, so that both are optimised, distributed and checkpointed."""

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        *,
        precision: str = "float32",
        labelled: float = 1.0,
        rounded: FakeQuantizationConfig | None = None,
    ) -> None:
        """`labelled`: of the samples, the part whose label may be looked at."""
        super().__init__()
        self.model = model
        self.method = method
        self.precision = precision
        self.labelled = labelled
        self.rounded = None if rounded is None else FakeQuantized(model, rounded)

    def forward(
        self, batch: Batch, teacher: TeacherTargets | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Named losses of a batch; and other numbers to report: its accuracy, if its labels are not mixed, and the
        method's observations."""
        with autocast(batch.inputs.device.type, self.precision):
            output = _output_of(self._run(batch))
        seen = {}
        if self.labelled and batch.weights is None:
            seen["accuracy"] = (output.logits.detach().argmax(dim=1) == batch.labels).float().mean()
            if self.labelled < 1:  # over an epoch, what is right of the labelled samples
                seen["accuracy"] = seen["accuracy"] / self.labelled
        losses = self.method.losses(output, teacher, batch)
        return losses, seen | self.method.observations()

    def _run(self, batch: Batch) -> object:
        if self.rounded is None or batch.epoch < self.rounded.config.from_epoch:
            return self.model(batch.inputs)
        return self.rounded(self.model, batch.inputs)


@dataclass
class TrainingState(LossSums):
    """What a checkpoint knows of a training beside tensors: where it is, and the sums of its losses so far.

    `best_epoch` counts from 1; with early stopping its weights are kept. `metrics_size` is the length of
    `metrics.jsonl` in bytes at the checkpoint: later lines are cut off, as their steps come again. `scaler` is what the
    scaler of gradients knows; nothing unless in float16. `stacked` is the context's.
    """

    step: int = 0
    metrics_size: int = 0
    best_epoch: int = 0
    best_value: float | None = None
    scaler: dict[str, Any] = field(default_factory=dict)
    stacked: int | None = None


def fit(
    model: nn.Module,
    method: Method,
    transfer: TransferSet,
    validation: Split | None,
    config: TrainingConfig,
    context: StageContext,
    teacher: Teacher | None = None,
) -> None:
    """Train `model` in place for `config.trained_epochs` epochs. Goes on from its own last checkpoint if there is one,
    or else from the checkpoint of a finished stage that trained the first epochs of this one."""
    for turn in Training(model, method, transfer, validation, config, context, teacher).turns():
        turn.make()


class Training:
    """One call of `fit`: the objects that live as long as the training."""

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        transfer: TransferSet,
        validation: Split | None,
        config: TrainingConfig,
        context: StageContext,
        teacher: Teacher | None,
    ) -> None:
        if config.early_stopping and not (validation is not None and len(validation)):
            raise StageError(
                "early stopping needs validation samples; set the task's `validation_fraction` above 0"
            )
        self.model, self.transfer, self.validation = model, transfer, validation
        self.config, self.context, self.teacher = config, context, teacher
        self.device = transfer.split.labels.device
        share = transfer.labelled  # looked at here, once: it comes from the device
        labelled = share if config.transfer.labelled else 0.0
        learner = Learner(
            model, method, precision=config.precision, labelled=labelled, rounded=config.rounded
        )
        self.learner = learner.to(context.device)
        if config.channels_last:
            self.learner.to(memory_format=torch.channels_last)
        network = model.model if isinstance(model, Tapped) else model
        self.frozen_norms = freeze(network, config.frozen) if config.frozen else []
        self.max_norm = MaxNorm(model, config.max_norm) if config.max_norm else None
        # Before the optimizer takes the parameters: its decay would shrink what no loss reaches.
        if method.student_features:
            self._freeze_what_no_loss_reaches()
        self.parameters = [p for p in self.learner.parameters() if p.requires_grad]
        rules = rules_of(network, config.grouped, config.decayed_by_layer)
        rules |= {id(parameter): Rule(weight_decay=0.0) for parameter in method.undecayed()}
        is_scaled = config.precision == "float16"
        # Where steps can be recorded, whether they are or not: it is the same training.
        is_fused = is_scaled or records(self.device)
        self.optimizer = build_optimizers(
            config.optimizer, self.parameters, method.own_optimizer, rules, fused=is_fused
        )
        self.rates = DeviceRates(self.optimizer, self.device) if records(self.device) else None
        self.scaler = GradientScaler(self.optimizer, torch.device(context.device).type, config.precision)
        self.steps_per_epoch = -(-transfer.samples_per_epoch // config.samples_per_step)
        self.schedule = build_schedule(config.schedule, self.optimizer, config.epochs, self.steps_per_epoch)
        if is_scaled:  # a first step that is left out is no mistake of order, of which torch would warn
            self.schedule.optimizer._opt_called = True  # type: ignore[attr-defined]
        self.batch_norms = GlobalBatchNorm()
        self.average = Average(network, config.ema) if config.ema else None
        self.checkpoints = context.folder.path / CHECKPOINT
        self.best: dict[str, Tensor] = {}
        self.progress = TrainingState()
        self.saved, self.saving = time.monotonic(), 0.0
        self.cost = Cost(self.learner, context.device, context.clock)
        self.distributed: DistributedDataParallel | None = None

    @property
    def steps(self) -> int:
        """Of all epochs that it trains."""
        return self.config.trained_epochs * self.steps_per_epoch

    @property
    def is_alone(self) -> bool:
        """Whether no other process, and no other training in this one, has a part in a step."""
        return self.context.world == 1 and not self.context.stacked

    def turns(self) -> Iterator[Turn]:
        """The steps that are left, each of which is made before the next is asked for; after the last one the training
        ends as it should."""
        self.progress = self._resume()
        begin_momentum(self.optimizer)
        self.losses = RunningLosses(
            self.progress,
            self.parameters,
            self.context,
            steps_per_epoch=self.steps_per_epoch,
            batches_per_epoch=self.transfer.samples_per_epoch / self.config.samples_per_step,
        )
        self.step_function = self._step_function()
        self.captured = self._captured_step()
        try:
            with self.batch_norms.spread_over_workers(self.learner, self.context.world):
                yield from self._train()
                self._finish()
        finally:
            self.captured = None  # which holds this object, and as much of the device's memory again
        self.context.costs.update(self.cost.to_dict())

    def _train(self) -> Iterator[Turn]:
        first_epoch, done = divmod(self.progress.step, self.steps_per_epoch)
        if done == 0 and self.progress.steps:
            self._end_epoch(first_epoch - 1)  # stopped between an epoch's last step and its end
        self.learner.method.at_step(self.progress.step)
        for epoch in range(first_epoch, self.config.trained_epochs):
            if self._has_stopped_early(epoch):
                break
            self._change_numbers(epoch)
            self.learner.train()  # validation leaves it in eval mode
            hold(self.frozen_norms)
            self.cost.begin_epoch(self.progress.step)
            for turn in self._turns(epoch):
                if self.rates is not None:
                    self.rates.write()
                is_measured = self.is_alone and self.cost.begin_step()
                yield turn
                if is_measured:
                    self.cost.end_step()
                assert turn.told is not None
                self._note_step(turn.told)
            self._end_epoch(epoch)

    def _turns(self, epoch: int) -> Iterator[Turn]:
        """The steps that are left of an epoch."""
        done = self.progress.step - epoch * self.steps_per_epoch
        order = self.transfer.epoch_order(self.config.seed, epoch)
        steps = order.split(self.config.samples_per_step)[done:]
        updates: Iterator[Update] | None = None
        for number, rows in enumerate(steps):
            updates = updates or self._updates(steps[number:], epoch)
            yield (turn := Turn(rows, epoch, partial(_make_next, updates)))
            if not turn.is_plain:
                updates = None  # what is left of its batches begins elsewhere

    def _note_step(self, told: Told) -> None:
        """All that goes with a step of the optimizer on the host."""
        self.schedule.step()
        self.progress.step += 1
        if self.average is not None:
            self.average.follow(self.progress.step)
        self.learner.method.at_step(self.progress.step)
        self.losses.add(self.progress.step, told)
        # The clock and the wish to stop differ between workers, but all have to save, or to stop, after the same step.
        if self.context.world == 1 or self.progress.step % AGREE_EVERY == 0:
            self._checkpoint_if_due()

    def _updates(self, steps: Sequence[Tensor], epoch: int) -> Iterator[Update]:
        """What makes each of these steps of an epoch."""
        if self.captured is None:
            yield from self._plain_updates(steps, epoch)
            return
        self.captured.begin_epoch(sum(change.after <= epoch for change in self.config.changes or ()))
        plain: Iterator[Update] | None = None
        there = all_to_device(steps, self.device)
        for number, (rows, placed) in enumerate(zip(steps, there, strict=True)):
            if self.captured.takes(rows):
                plain = None  # what is left of its batches begins elsewhere
                yield partial(self.captured.step, rows, placed, epoch)
            else:
                plain = plain or self._plain_updates(steps[number:], epoch)
                yield next(plain)

    def _update(self, batches: Iterable[tuple[int, Batch]]) -> Told:
        """A step of the optimizer by the gradients of batches; each with the number of those that follow."""
        self.optimizer.zero_grad(set_to_none=True)
        told = []
        for number, (left, batch) in enumerate(batches):
            self._seed(number)
            # Workers exchange gradients once in a step, while those of its last batch are made.
            with self.distributed.no_sync() if self.distributed is not None and left else nullcontext():
                told.append(self._go_backward(batch))
        losses, seen = told[0] if len(told) == 1 else (sum_of_named(part) for part in zip(*told, strict=True))
        self._go_by_gradients()
        return Told.of(losses, seen)

    def _update_by(self, batch: Batch) -> Told:
        """The same of one batch, once generators are seeded: all that is launched, and nothing for the host."""
        self.optimizer.zero_grad(set_to_none=True)
        losses, seen = self._go_backward(batch)
        self._go_by_gradients()
        return Told.of(losses, seen)

    def _seed(self, number: int = 0) -> None:
        """Before each of a step's batches."""
        # Dropout and the like draw from torch's own generators. Seeded by the step, they draw the same whatever was
        # drawn before: a resumed training need not know the state of any generator.
        place = (self.progress.step, self.context.rank, *([number] if number else []))
        seed_generators(fold_key(self.config.seed, Purpose.STEP, *place), self.device)

    def _go_by_gradients(self) -> None:
        self.scaler.unscale_(self.optimizer)
        if self.config.clip_norm:
            nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)
        with nullcontext() if self.rates is None else self.rates.in_place():
            self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.max_norm is not None:
            self.max_norm.apply()

    def _go_backward(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Add the gradients of a batch; what `Learner` says of it, times its share."""
        targets = None if self.teacher is None else self.teacher(batch)
        # A worker without samples repeats one, or the others would wait for its gradients; it counts for nothing.
        self.batch_norms.counts = batch.share > 0
        losses, seen = self.step_function(batch, targets)
        if batch.share != 1.0:  # DDP averages over workers, whose parts of a batch differ by a sample
            losses = {name: loss * batch.share for name, loss in losses.items()}
            seen = {name: value * batch.share for name, value in seen.items()}
        self.scaler.scale(torch.stack(list(losses.values())).sum()).backward()
        return losses, seen

    def _end_epoch(self, epoch: int) -> None:
        metrics = {"epoch": epoch + 1, **self.losses.end_epoch(epoch, self.progress.step)}
        self.cost.end_epoch(self.progress.step)  # the losses were read: the device is done with the steps
        group = self.optimizer.param_groups[0]
        metrics["train/learning_rate"] = group["lr"] / group.get(SCALE, 1.0)
        if self.scaler.is_enabled():
            metrics["train/gradient_scale"] = self.scaler.checked_scale()
        if self.validation is not None and len(self.validation):
            with nullcontext() if self.average is None else self.average.in_place():
                metrics |= self._validate()
                if self.context.is_main:
                    self._keep_if_best(epoch, metrics)
        self.context.report(self.progress.step, metrics)

    def _finish(self) -> None:
        if not self.context.sees_test or self.config.until is not None:
            self._save()  # whoever judges it on the test split later, or trains on, begins here
        for name in self.progress.silent:
            self.context.warn(
                f"the loss `{name}` was 0 or without a gradient in every step: nothing was learned from it; look at"
                " its weight and `ramp`, and whether the batches hold what it compares"
            )
        if self.average is not None:
            self.average.network.load_state_dict(self.average.state)
        if self.best:
            log.info("kept the weights of epoch %d", self.progress.best_epoch)
            self.model.load_state_dict(self.best)
        Workers.of(self.context).send(state_of(self.model))  # the best weights are the main one's alone

    def _change_numbers(self, epoch: int) -> None:
        """Give optimizer and method what the config says for this epoch; at the first one, also where it goes on."""
        if self.config.changes:
            config = during(self.config, epoch)
            change_numbers(self.optimizer, self.schedule, config.optimizer, config.schedule)
            self.learner.method.change(config)

    def _resume(self) -> TrainingState:
        progress = TrainingState()
        # Its own checkpoint first: it is at least as far as any beginning that this training could have copied.
        saved = self._load(self.context.folder.path)
        if saved is None:
            for beginning in warm_starts(self.context, self.config.trained_epochs):
                if (saved := self._load(beginning)) is not None:
                    copy_metrics(beginning, self.context)
                    log.info("begins as `%s`", beginning.name)
                    break
        if saved is not None:
            progress, self.best = TrainingState(**saved[0]), saved[1]
            self.context.is_continued = True
            self.scaler.load_state_dict(progress.scaler)
            self.context.stacked = progress.stacked
            log.info("resumed at step %d", progress.step)
        if self.context.world > 1:
            self._check_same_start(progress.step)
        # Steps after the checkpoint come again, and with them their lines.
        self.context.rewind_metrics(progress.metrics_size)
        return progress

    def _load(self, folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        average = {} if self.average is None else self.average.state
        return load_checkpoint(folder / CHECKPOINT, self.learner, self.optimizer, self.schedule, average)

    def _freeze_what_no_loss_reaches(self) -> None:
        """Layers above all features that the losses look at: left out of the optimizer and its weight decay."""
        for parameter in self._not_reached():
            parameter.requires_grad_(False)

    def _not_reached(self) -> list[nn.Parameter]:
        """The parameters that would train, and that the losses of the first two samples do not depend on."""
        rows = torch.arange(min(2, len(self.transfer)))
        (batch,) = self.transfer.batches([rows], self.transfer.views.of_epoch(0))
        targets = None if self.teacher is None else self.teacher(batch)
        # A method may hold the context, with locks that cannot be copied. Some heads are there in training mode only.
        probe = copy.deepcopy(self.learner, {id(self.context): self.context}).train()
        torch.stack(list(probe(batch, targets)[0].values())).sum().backward()
        pairs = zip(self.learner.parameters(), probe.parameters(), strict=True)
        return [own for own, probed in pairs if own.requires_grad and probed.grad is None]

    def _check_same_start(self, step: int) -> None:
        # Workers at different steps would average the gradients of different batches, without any error.
        ends = torch.tensor([-step, step], device=self.context.device)
        distributed.all_reduce(ends, distributed.ReduceOp.MAX)
        first, last = -int(ends[0]), int(ends[1])
        if first != last:
            raise StageError(
                f"some workers start at step {first}, others at step {last}: not all of them see the last checkpoint."
                " The storage root must be a file system that all machines share"
            )

    def _step_function(self) -> StepFunction:
        learner: Any = self.learner
        if self.context.world > 1:
            # Not frozen: other samples may reach them. Looking for them in every step costs time, so only where needed.
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
                learner, written_alike(learner)
            )
            learner = DistributedDataParallel(learner, find_unused_parameters=bool(self._not_reached()))
            self.distributed = learner
        if self.config.compile:
            learner = torch.compile(learner)
        function: StepFunction = learner
        return function

    def _captured_step(self) -> CapturedStep | None:
        """The steps that are recorded and replayed, where that can be; why not is said where it could be expected."""
        config = self.config
        if self.rates is None:
            if config.capture == "on":
                log.info("steps are not captured: this device does not record them")
            return None
        reason = hindrance(
            config,
            self.learner.method,
            self.transfer,
            world=self.context.world,
            rates_on_device=self.rates.are_read,
            steps=self.steps - self.progress.step,
        )
        if reason is not None:
            log.info("steps are not captured: %s", reason)
            return None
        static = StaticStep(self._update_by, self.transfer, config.batch_size, self.device)
        return CapturedStep(
            static,
            self.learner,
            self.optimizer,
            plain=lambda rows, epoch: next(self._plain_updates([rows], epoch))(),
            seed=self._seed,
            recorder=Recorder(self.device),
            steps_per_epoch=self.steps_per_epoch,
            asked_for=config.capture == "on",
        )

    def _plain_updates(self, steps: Sequence[Tensor], epoch: int) -> Iterator[Update]:
        """What makes these steps of an epoch by this worker's batches, each made when it is asked for."""
        pieces = [(step, step.split(self.config.batch_size)) for step in steps]
        rank, world = self.context.rank, self.context.world
        parts, shares = zip(
            *(split_batch(rows, rank, world, len(step)) for step, some in pieces for rows in some),
            strict=True,
        )
        wholes = [step for step, some in pieces for _ in some]
        is_part = world > 1 or self.config.accumulate is not None
        view = self.transfer.views.of_epoch(epoch)
        batches = self.transfer.batches(parts, view, shares, epoch, wholes if is_part else None)
        for _, some in pieces:
            yield partial(self._update, ((left, next(batches)) for left in reversed(range(len(some)))))

    def _checkpoint_if_due(self) -> None:
        pause = CHECKPOINT_SECONDS * max(1.0, self.saving)
        stop, is_due = self._agreed(self.context.should_stop(), time.monotonic() - self.saved > pause)
        if stop or is_due:
            self.losses.look(self.progress.step)  # first: weights that are not finite are not to be saved
            self._save()
        if stop:
            raise StageStopped(f"stopped at step {self.progress.step}; run the plan again to continue")

    def _agreed(self, *wishes: bool) -> list[bool]:
        """The main process's wishes, on every process."""
        if self.context.world == 1:
            return list(wishes)
        flags = torch.tensor(wishes, dtype=torch.int32, device=self.context.device)
        distributed.broadcast(flags, 0)
        return [bool(flag) for flag in flags.tolist()]

    def _save(self) -> None:
        began = time.monotonic()
        if self.context.is_main:
            # Lines before the checkpoint that counts them: a kill between the two leaves lines that resuming cuts off.
            self.progress.metrics_size = self.context.flush()
            self.progress.stacked = self.context.stacked
            # A driver that was taken for dead may still train: its checkpoint must not replace its successor's.
            self.context.check_current()
            progress = self.progress.__dict__ | {"scaler": self.scaler.state_dict()}
            average = {} if self.average is None else self.average.state
            save_checkpoint(
                self.checkpoints, progress, self.learner, self.optimizer, self.schedule, self.best, average
            )
        self.saved = time.monotonic()
        self.saving = self.saved - began

    def _keep_if_best(self, epoch: int, metrics: Mapping[str, float]) -> None:
        if (stopping := self.config.early_stopping) is None:
            return
        metric = next(metric for metric in self.context.metrics if metric.name == stopping.metric_name)
        if (found := metrics.get(metric.on("validation"))) is None:
            raise StageError(
                f"`{metric.name}` cannot be computed for this student: its teachers weigh anew for every sample, or"
                " their predictions are gone; stop by another metric"
            )
        value = found if metric.better == "max" else -found
        # A label with the logit -inf; compared with nan, nothing would be better again.
        if not math.isfinite(value):
            return
        if self.progress.best_value is None or value > self.progress.best_value:
            self.progress.best_value, self.progress.best_epoch = value, epoch + 1
            # Copies: a state dict holds the very tensors that training goes on to change.
            self.best = {key: tensor.clone() for key, tensor in self.model.state_dict().items()}

    def _has_stopped_early(self, epoch: int) -> bool:
        """Whether the last `patience` of the `epoch` epochs so far brought nothing better than the best one before
        them."""
        if (stopping := self.config.early_stopping) is None:
            return False
        # Only the main process knows what validation says.
        (is_over,) = self._agreed(epoch - self.progress.best_epoch >= stopping.patience)
        return is_over

    def _validate(self) -> dict[str, float]:
        """On all workers; only the main one knows."""
        self.learner.eval()
        assert self.validation is not None
        workers = Workers.of(self.context)
        # After a step only weights are the same everywhere: as in every step, running statistics are the main one's.
        workers.send(list(self.model.buffers()))
        return judge_after_epoch(self.context, self._predict, self.validation, workers)

    def _predict(self, inputs: Tensor) -> Tensor:
        return predictor(self.model, self.transfer, self.config)(inputs)


def written_alike(learner: nn.Module) -> list[str]:
    """Names of the buffers that methods write alike on all workers."""
    return [
        f"{path}.{name}"
        for path, module in learner.named_modules()
        if isinstance(module, Method)
        for name in module.written_alike
    ]


def _make_next(updates: Iterator[Update]) -> Told:
    return next(updates)()


def sum_of_named(told: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The sums of scalars of the same names. Their graphs are gone backward, and hold nothing but their nodes."""
    return {name: torch.stack([each[name] for each in told]).sum() for name in told[0]}


def _output_of(returned: object) -> Output:
    if isinstance(returned, Output):
        return returned
    if isinstance(returned, Tensor):
        return Output(returned, {})
    raise StageError(
        f"the model returns a {type(returned).__name__}; a model returns its logits (B, C), one tensor: write a module"
        " around it that returns them alone"
    )


def seed_generators(seed: int, device: torch.device) -> None:
    """What `torch.manual_seed` does, for one device: 3 µs in place of 150 µs, and this is done in every step."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        module = torch.get_device_module(device)
        index = module.current_device() if device.index is None else device.index
        module.default_generators[index].manual_seed(seed)


def predictor(model: nn.Module, transfer: TransferSet, config: TrainingConfig) -> Callable[[Tensor], Tensor]:
    """Raw inputs to logits (B, C), with the normalisation and precision of the training; `model` is in eval mode."""

    def predict(inputs: Tensor) -> Tensor:
        with autocast(inputs.device.type, config.precision):
            return _output_of(model(transfer.normalised(inputs))).logits

    return partial(logits_by_pieces, predict)
