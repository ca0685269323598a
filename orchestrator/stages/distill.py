"""Train a student to match its teachers."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from raydistill.errors import StageError
from raydistill.kinds.distill import DistillConfig
from raydistill.kinds.method_options import MethodOptions
from raydistill.lookup import load_object
from raydistill.methods.combined import Combined
from raydistill.runs.context import StageContext
from raydistill.runs.record import summary_of
from raydistill.stages.flat_features import warn_of_flat_teachers
from raydistill.stages.teachers import live_teacher, open_stored, stored_teacher
from raydistill.stages.training_stage import (
    PreparedTraining,
    build_initial_model,
    load_data,
    note_compared_layers,
)
from raydistill.stages.transfer_data import load_transfer_set
from raydistill.tasks.task import Task
from raydistill.training import model_files
from raydistill.training.data import Views
from raydistill.training.method import Features, Method, MethodContext, StoredFeatures


def distill(config: DistillConfig, context: StageContext) -> dict[str, float]:
    """Train an assistant or a student, from stored targets or from live teachers.

    With a synthesised transfer set the task's data only judges: validation after every epoch (on which early stopping,
    if asked for, chooses), test at the end. Nothing is learned from its samples.
    """
    return prepare(config, context).run()


def prepare(config: DistillConfig, context: StageContext) -> PreparedTraining:
    """All that comes before the first step."""
    data = load_data(context)
    is_stored = config.mode == "stored"
    views = Views(
        config.augment, config.view_seed if is_stored else config.seed, config.views if is_stored else None
    )
    transfer = load_transfer_set(
        config.transfer, views, context, data, channels_last=config.channels_last, with_unlabelled=True
    ).told(config, context.task.class_names)
    model = build_initial_model(config.student, data, config, context)
    teachers = (
        [] if is_stored else [model_files.load(context.input(ref), context.device) for ref in config.teachers]
    )
    targets = open_stored(config, context) if is_stored else None
    method_context = setting_of(
        config,
        context.task,
        model,
        [teacher.model for teacher in teachers],
        world=context.world,
        stored=None if targets is None else targets.feature_shapes,
        labels=transfer.split.labels,
    )
    method = build_method(config, method_context)
    note_compared_layers(context, method.layers_by_method())
    if targets is not None:
        teacher = stored_teacher(config, targets, transfer, method)
    else:
        teacher = live_teacher(config, context, teachers, method)
        if config.compares_features:
            warn_of_flat_teachers(teacher, transfer, config, context)
    return PreparedTraining(model, config.student, method, transfer, data, config, context, teacher)


def setting_of(
    config: DistillConfig,
    task: Task,
    student: nn.Module,
    teachers: Sequence[nn.Module],
    *,
    world: int = 1,
    stored: Mapping[str, tuple[int, ...]] | None = None,
    labels: Tensor | None = None,
) -> MethodContext:
    """What the methods of a student are built for, when each of `world` workers has its part of the batch. Of a teacher
    that does not run, features of these names and shapes are `stored`. `labels` are those of the transfer set."""
    inputs = (task.input_shape, task.input_dtype == "int64")
    teacher = Features(teachers[0], *inputs) if len(teachers) == 1 else None
    if stored:
        teacher = StoredFeatures(nn.Module(), *inputs, known=stored)
    return MethodContext(
        student=Features(student, *inputs),
        teacher=teacher,
        num_classes=config.student.num_classes or task.num_classes,
        batch_size=-(-config.batch_size // world),
        epochs=config.epochs,
        label_smoothing=config.label_smoothing,
        teachers=tuple(Features(teacher, *inputs) for teacher in teachers),
        labels=labels,
        seed=config.seed,
        world=world,
    )


def build_method(config: DistillConfig, method_context: MethodContext) -> Combined:
    """The sum of the methods that the config names; `StageError` for one that does not suit the models."""
    names = [options.safe_word() for options in config.all_methods]
    heard = [
        None if options.teachers is None else [config.teachers.index(name) for name in options.teachers]
        for options in config.all_methods
    ]
    methods = [
        _build(options, method_context if members is None else method_context.hearing(members))
        for options, members in zip(config.all_methods, heard, strict=True)
    ]
    return Combined(methods, config.all_methods, names, heard)


def _build(options: MethodOptions, method_context: MethodContext) -> Method:
    try:
        method = load_object(options.implementation)(options, method_context)
    except ValueError as error:
        raise StageError(str(error)) from error
    except (
        StageError,
        NotImplementedError,
        RuntimeError,
    ):  # of models without memory: `check_features` passes over them
        raise
    except Exception as error:
        if not options.own_modules:
            raise
        raise StageError(f"method `{options.method}` cannot be built: {summary_of(error)}") from error
    if not isinstance(method, Method):
        raise StageError(
            f"method `{options.method}`: `{options.implementation}` is no `training.method.Method`"
        )
    return method
