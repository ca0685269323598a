"""Shift the logits of some classes of a trained model."""

import shutil

import torch

from raydistill.errors import StageError
from raydistill.plan.stage_configs import AdjustClassBiasConfig
from raydistill.runs.context import StageContext
from raydistill.runs.files import atomic_write, write_json
from raydistill.stages.training_stage import load_data
from raydistill.stages.transfer_data import load_transfer_set
from raydistill.tasks.splits import TaskData
from raydistill.training import model_files
from raydistill.training.class_bias import offset_of_fewest_errors, offset_to_prior
from raydistill.training.data import Views, class_indices
from raydistill.training.evaluation import judge_splits, predict_split
from raydistill.training.model_files import TrainedModel


def adjust_class_bias(config: AdjustClassBiasConfig, context: StageContext) -> dict[str, float]:
    """Find the shift, store the model with it, and judge it."""
    data = load_data(context)
    source = context.input(config.model)
    trained = model_files.load(source, context.device)
    classes = class_indices(data, config.classes).unique()
    shift = _shift(config, context, trained, data, classes)
    offset = torch.tensor(
        trained.description.get("logit_offset") or [0.0] * trained.description["num_classes"]
    )
    offset[classes] += shift
    with atomic_write(context.path(model_files.WEIGHTS)) as temporary:
        shutil.copyfile(source.payload(model_files.WEIGHTS), temporary)
    write_json(
        context.path(model_files.DESCRIPTION), {**trained.description, "logit_offset": offset.tolist()}
    )
    context.parameters = sum(parameter.numel() for parameter in trained.model.parameters())
    added = torch.zeros_like(offset).index_fill_(0, classes, shift).to(context.device)
    splits = {"validation": data.validation.to(context.device), "test": data.test.to(context.device)}
    judged = judge_splits(context, lambda inputs: trained.logits(inputs) + added, splits, config.batch_size)
    return judged | {"class_bias/offset": shift}


def _shift(
    config: AdjustClassBiasConfig,
    context: StageContext,
    trained: TrainedModel,
    data: TaskData,
    classes: torch.Tensor,
) -> float:
    if config.by == "prior":
        transfer = load_transfer_set(config.transfer, Views(), context, data)
        prior = config.prior or torch.isin(data.train.labels.cpu(), classes).double().mean().item()
        if not 0 < prior < 1:
            raise StageError(
                "the training split does not say how frequent the classes are; write their `prior`"
            )
        return offset_to_prior(
            predict_split(trained.logits, transfer.split, config.batch_size), classes, prior
        )
    split = data.validation if config.by == "validation" else data.test
    if not len(split):
        raise StageError(f"there are no samples to choose by; write `by: prior` instead of `by: {config.by}`")
    logits = predict_split(trained.logits, split.to(context.device), config.batch_size)
    return offset_of_fewest_errors(logits, split.labels.cpu(), classes)
