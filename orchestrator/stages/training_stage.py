"""What `train` and `distill` share: build the model, fit it, store it, judge it."""

import torch

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


def train_model(
    model_config: ModelConfig,
    method: Method,
    transfer: TransferSet,
    data: TaskData,
    config: TrainingConfig,
    context: StageContext,
    teacher: Teacher | None = None,
) -> dict[str, float]:
    """Train, store and judge a model. The test split is looked at here, once, after the last epoch."""
    model = build_seeded_model(model_config, config, context).to(context.device)
    validation = data.validation.to(context.device)
    fit(model, method, transfer, validation, config, context, teacher)
    if not context.is_main:
        return {}
    model.eval()
    context.parameters = sum(parameter.numel() for parameter in model.parameters())
    model_files.save(context, model, model_config, data)
    splits = {"validation": validation, "test": data.test.to(context.device)}
    metrics = judge_splits(context, predictor(model, transfer, config), splits)
    remove_checkpoint(context.folder.path / "checkpoint")
    return metrics
