"""Where a student's soft targets come from: the store, or teachers that run inside its loop."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from raydistill.errors import StageError
from raydistill.kinds.changes import during
from raydistill.kinds.distill import DistillConfig
from raydistill.kinds.method_options import SoftTargetOptions
from raydistill.kinds.targets import CombineConfig
from raydistill.metrics import Accuracy
from raydistill.models.taps import Output, Tapped
from raydistill.plan.fingerprint import digest
from raydistill.runs.context import StageContext
from raydistill.stages.transfer_data import sources_of, split_name
from raydistill.targets.combine import accuracy_weights
from raydistill.targets.mixing import TeacherTargets, entropy_weights, mean_logits
from raydistill.targets.reader import Expectation, Targets, open_targets
from raydistill.training.data import Batch, TransferSet
from raydistill.training.loop import Teacher
from raydistill.training.method import Method
from raydistill.training.model_files import TrainedModel
from raydistill.training.parity import forward_pass


def open_stored(config: DistillConfig, context: StageContext) -> Targets:
    """The store of the student's targets, which are about what it trains on."""
    assert config.targets is not None
    task = context.task
    expectation = Expectation(
        task=digest(context.task_identity),
        split=split_name(sources_of(config.transfer, context)),
        num_classes=config.student.num_classes or task.num_classes,
        views=config.views,
        view_seed=config.view_seed,
        augment=[step.model_dump(mode="json") for step in config.augment],
    )
    return open_targets(context.input(config.targets).path, root=context.root, expect=expectation)


def stored_teacher(config: DistillConfig, targets: Targets, transfer: TransferSet, method: Method) -> Teacher:
    """Soft targets read from the store by the row of each sample."""
    rows = targets.rows_of(transfer.split.ids)
    # The graph lets top-k targets through only to a single method that looks at them, at one temperature.

    @lru_cache(maxsize=1)
    def temperature(epoch: int) -> float:
        return _temperature(during(config, epoch))

    @lru_cache(maxsize=2)
    def rows_on(device: torch.device) -> Tensor:
        return rows.to(device)

    def read(batch: Batch) -> TeacherTargets:
        view, heat = batch.view if config.views else 0, temperature(batch.epoch if config.changes else 0)
        return targets.read(
            rows_on(batch.rows.device)[batch.rows],
            view,
            temperature=heat,
            device=batch.inputs.device,
            features=method.teacher_features,
        )

    return read


def _temperature(config: DistillConfig) -> float:
    """At which targets are read."""
    softened = [method for method in config.all_methods if isinstance(method, SoftTargetOptions)]
    return softened[0].temperature if softened else 1.0


def live_teacher(
    config: DistillConfig, context: StageContext, teachers: Sequence[TrainedModel], method: Method
) -> Teacher:
    """Teachers that see the student's own batch: frozen, without gradients, in eval mode unless the method objects."""
    models = [Tapped(teacher.model, method.features_of(number)) for number, teacher in enumerate(teachers)]
    if method.teacher_in_training_mode:
        for model in models:
            normalise_by_batch(model)
    passes = [forward_pass(model, context.device, config.teacher_precision) for model in models]
    run = _frozen(passes, weigher(config.combine, config.teachers, context), method.asked)
    if config.combine.rule != "geometric":
        return run

    def run_as_one(batch: Batch) -> TeacherTargets:
        targets = run(batch)
        return targets._replace(
            logits=mean_logits(targets).unsqueeze(1), weights=torch.ones_like(targets.weights[:, :1])
        )

    return run_as_one


def frozen_teacher(teacher: TrainedModel, features: Sequence[str] = ()) -> Teacher:
    """One teacher that sees the student's own batch, as it was before its class bias was adjusted where its features
    are looked at."""
    model = teacher.plain if features else teacher.model
    return _frozen([Tapped(model, features)], even_weights, lambda batch, count: range(count))


def even_weights(logits: Tensor) -> Tensor:
    """The same for each of M teachers, (B, M) from logits (B, M, C)."""
    return torch.full_like(logits[:, :, 0], 1 / logits.shape[1])


def _frozen(
    models: Sequence[Callable[[Tensor], Output]],
    weigh: Callable[[Tensor], Tensor],
    asked: Callable[[Batch, int], Sequence[int]],
) -> Teacher:
    @torch.no_grad()
    def run(batch: Batch) -> TeacherTargets:
        numbers = asked(batch, len(models)) or range(len(models))
        outputs = [models[number](batch.inputs) for number in numbers]
        logits = torch.stack([output.logits.float() for output in outputs], dim=1)
        features = tuple(output.features for output in outputs)
        weights = weigh(logits) if len(numbers) == len(models) else even_weights(logits)
        return TeacherTargets(logits, weights, features[0], features)

    return run


def normalise_by_batch(model: nn.Module) -> None:
    """Batch norms use the statistics of each batch, on each worker of its part; their own do not move.

    All else, such as dropout, stays in eval mode.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.train()
            module.track_running_stats = False


def weigher(
    combine: CombineConfig, teachers: Sequence[str], context: StageContext
) -> Callable[[Tensor], Tensor]:
    """The function from a batch of M teachers' logits (B, M, C) to their weights (B, M)."""
    if combine.weights == "entropy":
        return lambda logits: entropy_weights(logits, combine.scale)
    weights = torch.tensor(fixed_weights(combine, teachers, context), device=context.device)
    return lambda logits: weights.expand(len(logits), -1)


def fixed_weights(
    combine: CombineConfig, teachers: Sequence[str], context: StageContext
) -> tuple[float, ...]:
    """One weight per teacher, summing to 1, from numbers or from the teachers' validation accuracy."""
    count = len(teachers)
    if isinstance(combine.weights, tuple):
        return tuple(weight / sum(combine.weights) for weight in combine.weights)
    if combine.weights == "uniform" or combine.weights == "entropy":
        return (1 / count,) * count
    accuracies = [validation_accuracy(context, teacher) for teacher in teachers]
    return accuracy_weights(
        accuracies, combine.weights, num_classes=context.task.num_classes, tau=combine.scale
    )


def validation_accuracy(context: StageContext, name: str) -> float:
    """The validation accuracy in the record of a stage that is read: a model, or the targets it gave."""
    metrics = context.input(name).done_record().metrics
    for key in map(Accuracy.on, ("validation", "teacher/validation")):
        if key in metrics:
            return metrics[key]
    raise StageError(
        f"`{name}` has no validation accuracy to weigh it by; write numbers as `weights`, or set"
        " `validation_fraction` above 0"
    )
