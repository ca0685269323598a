"""Judge a finished stage's model on the test split as it is now, and by metrics that it does not know: nothing is
trained, and no input is needed."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from raydistill.errors import StoreError
from raydistill.kinds.stage_bases import TrainingConfig
from raydistill.lookup import load_object
from raydistill.plan.own_metrics import metric_at
from raydistill.plan.stage import StageConfig
from raydistill.runs.context import StageContext
from raydistill.runs.folder import StageFolder, predictions_of
from raydistill.runs.record import OwnMetric, Record
from raydistill.stages.training_stage import load_data
from raydistill.tasks.splits import Split, TaskData
from raydistill.training import model_files
from raydistill.training.data import TransferSet
from raydistill.training.evaluation import ask, judge, judge_splits, keep_what_is_needed
from raydistill.training.loop import predictor
from raydistill.training.model_files import TrainedModel

TEST = "test"

log = logging.getLogger(__name__)


def has_judged_model(folder: StageFolder) -> bool:
    """Whether the folder holds a whole model that was judged before."""
    try:
        record = folder.record()
        if record is None or record.status != "done" or not record.judged_splits or record.untested:
            return False
        return all(folder.payload(name) for name in (model_files.WEIGHTS, model_files.DESCRIPTION))
    except StoreError:
        return False


def judge_again(config: StageConfig, context: StageContext) -> dict[str, float]:
    """The record's metrics, with those of the test split if it is another one now, and with the user's that are new.

    Test metrics that only the training could compute, such as those of members that were not kept, are left out.
    """
    if not context.is_main:
        return {}
    record = context.folder.done_record()
    judge = _Judge(config, context, model_files.load(context.folder, context.device), load_data(context))
    new = [own for own in context.own_metrics if own not in record.judged_by]
    if context.sees_test and not record.is_judged_on(context.test):
        metrics = judge.on_another_test_split(record)
        splits = [name for name in record.judged_splits if name != TEST]
    else:
        metrics = judge.as_before(record)
        splits = [name for name in record.judged_splits if name != TEST or context.sees_test]
        # A trial adds what it may see: the next run judges again, and on the test split too.
        added = new if len(splits) == len(record.judged_splits) else []
        context.own_metrics = tuple({own.name: own for own in (*record.judged_by, *added)}.values())
    return metrics | judge.by(new, splits)


@dataclass
class _Judge:
    config: StageConfig
    context: StageContext
    trained: TrainedModel
    data: TaskData

    def on_another_test_split(self, record: Record) -> dict[str, float]:
        """What the record says of the validation split, and all metrics of the test split."""
        gone = {own.name for own in record.judged_by} - {own.name for own in self.context.own_metrics}
        kept = {
            name: value
            for name, value in record.metrics.items()
            if not name.startswith(f"{TEST}/") and name.partition("/")[2] not in gone
        }
        payload = {name: sha for name, sha in record.payload.items() if name != predictions_of(TEST)}
        # First of all: a process that dies while the predictions are replaced leaves a model that waits to be judged.
        withdrawn = record.model_copy(update={"judged_on": "", "metrics": kept, "payload": payload})
        self.context.folder.write_record(withdrawn)
        self.context.payload.update(payload)
        self.context.parameters = record.parameters
        log.info("judged again: the test split changed")
        predict, split = _as_judged(self.trained, self.data.test, self.data.num_classes, self.config)
        return kept | judge_splits(self.context, predict, {TEST: split.to(self.context.device)})

    def as_before(self, record: Record) -> dict[str, float]:
        """All that the record says."""
        self.context.payload.update(record.payload)
        self.context.parameters = record.parameters
        self.context.is_judged = record.judged_on is not None
        return dict(record.metrics)

    def by(self, metrics: Sequence[OwnMetric], splits: Sequence[str]) -> dict[str, float]:
        """The values of the user's metrics on some splits."""
        found: dict[str, float] = {}
        if not metrics:
            return found
        log.info("judged by %s", ", ".join(own.name for own in metrics))
        for name in splits:
            whole: Split = getattr(self.data, name)
            predict, split = _as_judged(self.trained, whole, self.data.num_classes, self.config)
            there = split.to(self.context.device)
            teacher = self.context.teacher_predicted(name, there)
            own = [metric_at(metric.address) for metric in metrics]
            told = ask(predict, there, partial(keep_what_is_needed, len(there), own))
            values = judge(told, split.labels, own, teacher=teacher)
            found |= {f"{name}/{metric}": value for metric, value in values.items()}
        return found


def _as_judged(
    trained: TrainedModel, split: Split, num_classes: int, config: StageConfig
) -> tuple[Callable[[Tensor], Tensor], Split]:
    """How the stage predicts, and the samples of a split that it is asked about."""
    if not isinstance(config, TrainingConfig):
        return trained.logits, split
    if config.judged_samples:
        split = load_object(config.judged_samples)(split, trained, num_classes, config)
    model = trained.plain
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    return predictor(model, TransferSet(split, trained.normalisation), config), split
