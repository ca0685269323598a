"""What `train` and `distill` share: build the model, fit it, store it, judge it."""

import torch

from models.taps import Tapped
from orchestrator.errors import StageError
from orchestrator.plan.model_config import ModelConfig
from orchestrator.plan.stage_bases import TrainingConfig
from orchestrator.runs.context import StageContext
from orchestrator.runs.plan_run import write_data_sizes
from orchestrator.training import model_files
from orchestrator.training.checkpoint import remove_checkpoint
from orchestrator.training.data import TransferSet
from orchestrator.training.evaluation import judge_splits
from orchestrator.training.loop import Teacher, fit, predictor
from orchestrator.training.method import Method
from tasks.hashing import fold_key
from tasks.splits import TaskData

INITIAL = 14  # purpose of the seed of the initial weights


def load_data(context: StageContext) -> TaskData:
    """The task's data; a broken or missing file is the stage's error. Leaves a note of the splits' sizes."""
    try:
        data = context.task.load()
    except (ValueError, OSError) as error:
        raise StageError(str(error)) from error
    if context.is_main:
        sizes = {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)}
        write_data_sizes(context.root, context.task, sizes)
    return data


def build_seeded_model(model: ModelConfig, config: TrainingConfig, context: StageContext) -> torch.nn.Module:
    """The model with initial weights that depend on the stage's seed alone."""
    torch.manual_seed(fold_key(config.seed, INITIAL))
    return model_files.build(model, context.task)


def build_initial_model(model: ModelConfig, config: TrainingConfig, context: StageContext) -> torch.nn.Module:
    """The model as training begins: drawn from the stage's seed, or with the weights of the stage `initial`.

    A classifier for another number of classes stays as it was drawn.
    """
    built = build_seeded_model(model, config, context).to(context.device)
    if config.initial is not None:
        weights = model_files.load_weights(context.input(config.initial))
        anew = () if model_files.fits(built, weights) else model_files.classifier_keys(model, context.task)
        state = built.state_dict()
        weights = {key: value for key, value in weights.items() if key not in anew} | {
            key: state[key] for key in anew
        }
        if not model_files.fits(built, weights):
            raise StageError(
                f"`{config.initial}` has another architecture; its weights do not fit `{model.name}`"
            )
        built.load_state_dict(weights)
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
) -> dict[str, float]:
    """Train, store and judge a model. The test split is looked at here, once, after the last epoch."""
    validation = data.validation.to(context.device)
    tapped = Tapped(model, method.student_features)
    fit(tapped if tapped.names else model, method, transfer, validation, config, context, teacher)
    tapped.remove_hooks()
    if not context.is_main:
        return {}
    model.eval()
    context.parameters = sum(parameter.numel() for parameter in model.parameters())
    model_files.save(context, model, model_config, data)
    splits = {"validation": validation, "test": data.test.to(context.device)}
    metrics = judge_splits(context, predictor(model, transfer, config), splits)
    remove_checkpoint(context.folder.path / "checkpoint")
    return metrics
