"""What `train` and `distill` share: build the model, fit it, store it, judge it."""

from dataclasses import dataclass, replace
from functools import partial

import torch

from raydistill.errors import StageError
from raydistill.kinds.stage_bases import TrainingConfig
from raydistill.lookup import load_object
from raydistill.models.taps import Tapped
from raydistill.plan.model import ModelConfig
from raydistill.runs.context import StageContext
from raydistill.runs.files import write_json
from raydistill.runs.folder import CHECKPOINT
from raydistill.runs.plan_run import write_data_sizes
from raydistill.runs.stage_files import COMPARED_LAYERS
from raydistill.tasks.hashing import fold_key
from raydistill.tasks.seeds import Purpose
from raydistill.tasks.splits import TaskData
from raydistill.training import model_files
from raydistill.training.checkpoint import remove_checkpoint
from raydistill.training.cost import note_size
from raydistill.training.data import TransferSet
from raydistill.training.evaluation import judge_splits
from raydistill.training.loop import Teacher, Training, fit, predictor
from raydistill.training.method import LayersByMethod, Method
from raydistill.training.workers import Workers


@dataclass(frozen=True)
class PreparedTraining:
    """A stage before its first step: all that `train_model` takes."""

    model: torch.nn.Module
    model_config: ModelConfig
    method: Method
    transfer: TransferSet
    data: TaskData
    config: TrainingConfig
    context: StageContext
    teacher: Teacher | None = None

    def run(self) -> dict[str, float]:
        """Train, store and judge the model."""
        return train_model(**vars(self))

    def training(self) -> Training:
        """The training alone, of a method that looks at no features."""
        validation = self.data.validation.to(self.context.device)
        return Training(
            self.model, self.method, self.transfer, validation, self.config, self.context, self.teacher
        )

    def store(self) -> dict[str, float]:
        """Store and judge the model once it is trained."""
        return store_model(self.model, self.model_config, self.transfer, self.data, self.config, self.context)

    def sharing(self, other: "PreparedTraining") -> "PreparedTraining":
        """The same with the samples of one that learns from the same, so that they are in memory once."""
        return replace(self, transfer=self.transfer.of(other.transfer.split))


def load_data(context: StageContext) -> TaskData:
    """The task's data, without a test split for a stage that may not see it; a broken or missing file is the stage's
    error. Leaves a note of the splits' sizes."""
    try:
        data = context.data or context.task.load()
    except (ValueError, OSError) as error:
        raise StageError(str(error)) from error
    if context.is_main:
        sizes = {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)}
        write_data_sizes(context.root, context.task_identity, context.test, sizes)
    return data if context.sees_test else replace(data, test=data.test.select(torch.arange(0)))


def build_seeded_model(
    model: ModelConfig, data: TaskData, config: TrainingConfig, context: StageContext
) -> torch.nn.Module:
    """The model, on the stage's device, with initial weights that depend on the stage's seed alone."""
    torch.manual_seed(fold_key(config.seed, Purpose.INITIAL))
    built = model_files.build(model, context.task, data.normalisation, context.warn)
    return built.to(context.device)


def build_initial_model(
    model: ModelConfig, data: TaskData, config: TrainingConfig, context: StageContext
) -> torch.nn.Module:
    """The model as training begins: drawn from the stage's seed, or with the weights of the stage `initial`, grown
    where the config says so.

    A classifier for another number of classes stays as it was drawn.
    """
    if config.initial is None:
        return build_seeded_model(model, data, config, context)
    # Building a model draws numbers: the one that is loaded comes before what is drawn from the seed.
    initial = model_files.load(context.input(config.initial), context.device)
    built = build_seeded_model(model, data, config, context)
    if config.grow is not None:
        grow = load_object(config.grow.implementation)
        try:
            built.load_state_dict(
                grow(config.grow, initial.plain, built, fold_key(config.seed, Purpose.GROWTH))
            )
        except ValueError as error:
            raise StageError(f"`{config.initial}` cannot grow into `{model.name}`: {error}") from error
        return built
    state, own = initial.plain.state_dict(), built.state_dict()
    if initial.description["num_classes"] != (model.num_classes or context.task.num_classes):
        state |= {key: own[key] for key in model_files.classifier_keys(model, context.task)}
    try:
        built.load_state_dict(state)
    except RuntimeError as error:
        raise StageError(
            f"`{config.initial}` has another architecture; its weights do not fit `{model.name}`"
        ) from error
    return built


def train_model(
    model: torch.nn.Module,
    model_config: ModelConfig,
    method: Method,
    transfer: TransferSet,
    data: TaskData,
    config: TrainingConfig,
    context: StageContext,
    teacher: Teacher | None = None,
    **description: object,
) -> dict[str, float]:
    """Train, store and judge a model. `description` is added to what is stored about it."""
    fit_model(model, method, transfer, data, config, context, teacher)
    return store_model(model, model_config, transfer, data, config, context, **description)


def fit_model(
    model: torch.nn.Module,
    method: Method,
    transfer: TransferSet,
    data: TaskData,
    config: TrainingConfig,
    context: StageContext,
    teacher: Teacher | None = None,
) -> None:
    """Train a model in place, with the features that the method looks at."""
    tapped = Tapped(model, method.student_features)
    validation = data.validation.to(context.device)
    fit(tapped if tapped.names else model, method, transfer, validation, config, context, teacher)
    tapped.remove_hooks()


def note_compared_layers(context: StageContext, by_method: LayersByMethod) -> None:
    """Leave word of which layers of a student are compared with which of its teacher's, for reports."""
    if context.is_main and by_method:
        write_json(context.path(COMPARED_LAYERS), by_method)


def store_model(
    model: torch.nn.Module,
    model_config: ModelConfig,
    transfer: TransferSet,
    data: TaskData,
    config: TrainingConfig,
    context: StageContext,
    **description: object,
) -> dict[str, float]:
    """Store a trained model, on the main process, and judge it on all of them, which have the same one; the metrics, on
    the main process. The test split is looked at after the last epoch only."""
    model.eval()
    if context.is_main:
        note_size(context, [model])
        model_files.save(context, model, model_config, data, **description)
    splits = {
        name: split.to(context.device)
        for name, split in (("validation", data.validation), ("test", data.test))
    }
    predict = predictor(model, transfer, config)
    metrics = judge_splits(
        context, predict, splits, guesses=not config.trains_classifier, workers=Workers.of(context)
    )
    # Who judges it on test, or trains on, begins at the checkpoint.
    if context.is_main and not context.is_untested and config.until is None:
        context.when_done.append(partial(remove_checkpoint, context.folder.path / CHECKPOINT))
    return metrics
