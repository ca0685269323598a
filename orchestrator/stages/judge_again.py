"""Judge a finished stage's model on the test split as it is now: nothing is trained, and no input is needed."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from raydistill.errors import StoreError
from raydistill.kinds.stage_bases import TrainingConfig
from raydistill.lookup import load_object
from raydistill.plan.stage import StageConfig
from raydistill.runs.context import StageContext
from raydistill.runs.folder import StageFolder, predictions_of
from raydistill.stages.training_stage import load_data
from raydistill.tasks.splits import Split, TaskData
from raydistill.training import model_files
from raydistill.training.data import TransferSet
from raydistill.training.evaluation import judge_splits
from raydistill.training.loop import predictor
from raydistill.training.model_files import TrainedModel

TEST = "test"

log = logging.getLogger(__name__)


def has_judged_model(folder: StageFolder) -> bool:
    """Whether the folder holds a whole model that was judged on a test split before."""
    try:
        record = folder.record()
        if record is None or record.status != "done" or record.judged_on is None or record.untested:
            return False
        return all(folder.payload(name) for name in (model_files.WEIGHTS, model_files.DESCRIPTION))
    except StoreError:
        return False


def judge_again(config: StageConfig, context: StageContext) -> dict[str, float]:
    """The record's metrics, with those of the test split as it is now.

    Test metrics that only the training could compute, such as those of members that were not kept, are left out.
    """
    if not context.is_main:
        return {}
    record = context.folder.done_record()
    kept = {name: value for name, value in record.metrics.items() if not name.startswith(f"{TEST}/")}
    payload = {name: sha for name, sha in record.payload.items() if name != predictions_of(TEST)}
    trained = model_files.load(context.folder, context.device)
    data = load_data(context)
    # First of all: a process that dies while the predictions are replaced leaves a model that waits to be judged.
    withdrawn = record.model_copy(update={"judged_on": "", "metrics": kept, "payload": payload})
    context.folder.write_record(withdrawn)
    context.payload.update(payload)
    context.parameters = record.parameters
    log.info("judged again: the test split changed")
    predict, split = _as_judged(trained, data, config)
    return kept | judge_splits(context, predict, {TEST: split.to(context.device)})


def _as_judged(
    trained: TrainedModel, data: TaskData, config: StageConfig
) -> tuple[Callable[[Tensor], Tensor], Split]:
    """How the stage predicts, and the samples that it is asked about."""
    split: Split = data.test
    if not isinstance(config, TrainingConfig):
        return trained.logits, split
    if config.judged_samples:
        split = load_object(config.judged_samples)(split, trained, data.num_classes, config)
    model = trained.plain
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    return predictor(model, TransferSet(split, trained.normalisation), config), split
