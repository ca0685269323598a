"""Shift the logits of some classes of a trained model."""

from collections.abc import Iterator

import torch

from raydistill.errors import StageError
from raydistill.kinds.evaluate import AdjustClassBiasConfig
from raydistill.runs.context import StageContext
from raydistill.runs.files import write_json
from raydistill.stages.training_stage import load_data
from raydistill.stages.transfer_data import load_transfer_set
from raydistill.tasks.splits import TaskData
from raydistill.training import model_files
from raydistill.training.class_bias import (
    Contest,
    log_odds,
    mean_probability,
    offset_of_fewest_errors,
    offset_to_prior,
)
from raydistill.training.cost import note_size
from raydistill.training.data import Views, class_indices
from raydistill.training.evaluation import judge_splits, logits_in_batches
from raydistill.training.model_files import TrainedModel

ROUNDED = 1e4  # nats: above, float32 rounds odds by more than a thousandth
NEAR = 0.01  # of the rarer side: an offset of a few hundred nats moves float32 logits by 1e-5 of it


def adjust_class_bias(config: AdjustClassBiasConfig, context: StageContext) -> dict[str, float]:
    """Find the shift, store the model with it, and judge it."""
    data = load_data(context)
    source = context.input(config.model)
    trained = model_files.load(source, context.device)
    classes = class_indices(data, config.classes).unique()
    found = (
        _shift_to_prior(config, context, trained, data, classes)
        if config.by == "prior"
        else {"class_bias/offset": _best_shift(config, context, trained, data, classes)}
    )
    shift = found["class_bias/offset"]
    offset = torch.tensor(
        trained.description.get("logit_offset") or [0.0] * trained.description["num_classes"]
    )
    offset[classes] += shift
    model_files.copy_tensors(source, context)
    write_json(
        context.path(model_files.DESCRIPTION), {**trained.description, "logit_offset": offset.tolist()}
    )
    note_size(context, [trained.model])
    added = torch.zeros_like(offset).index_fill_(0, classes, shift).to(context.device)
    splits = {"validation": data.validation.to(context.device), "test": data.test.to(context.device)}
    judged = judge_splits(context, lambda inputs: trained.logits(inputs) + added, splits, config.batch_size)
    return judged | found


def _shift_to_prior(
    config: AdjustClassBiasConfig,
    context: StageContext,
    trained: TrainedModel,
    data: TaskData,
    classes: torch.Tensor,
) -> dict[str, float]:
    """The shift, the prior that was asked for, and the one that the shifted logits have."""
    transfer = load_transfer_set(config.transfer, Views(), context, data)
    prior = config.prior or torch.isin(data.train.labels.cpu(), classes).double().mean().item()
    if not 0 < prior < 1:
        raise StageError("the training split does not say how frequent the classes are; write their `prior`")

    def batches() -> Iterator[torch.Tensor]:
        return logits_in_batches(trained.logits, transfer.split, config.batch_size)

    found = [(log_odds(logits, classes), _largest(logits)) for logits in batches()]
    odds, largest = torch.cat([part for part, _ in found]), max(size for _, size in found)
    shift = offset_to_prior(odds, prior)
    odds = odds + shift
    if largest + abs(shift) > ROUNDED:  # what float32 makes of the sum is another matter: look
        odds = torch.cat([log_odds(_shifted(logits, classes, shift), classes) for logits in batches()])
    reached = mean_probability(odds)
    if abs(reached - prior) > NEAR * min(prior, 1 - prior):
        context.warn(
            f"no shift gives the `classes` the prior {prior:.4g}, the nearest is {reached:.4g}: the logits of"
            f" `{config.model}` are infinite, or too far apart for float32; write another `prior`, or mend that model"
        )
    return {"class_bias/offset": shift, "class_bias/prior": prior, "class_bias/prior_reached": reached}


def _best_shift(
    config: AdjustClassBiasConfig,
    context: StageContext,
    trained: TrainedModel,
    data: TaskData,
    classes: torch.Tensor,
) -> float:
    split = data.validation if config.by == "validation" else data.test
    if not len(split):
        raise StageError(f"there are no samples to choose by; write `by: prior` instead of `by: {config.by}`")
    batches = logits_in_batches(trained.logits, split.to(context.device), config.batch_size)
    contest = Contest.joined(Contest.of(logits, classes) for logits in batches)
    return offset_of_fewest_errors(contest, split.labels.cpu())


def _largest(logits: torch.Tensor) -> float:
    """The largest finite logit, without its sign; 0 where none is."""
    return logits.nan_to_num(0, 0, 0).abs().max().item()


def _shifted(logits: torch.Tensor, classes: torch.Tensor, shift: float) -> torch.Tensor:
    """Logits as whoever loads the model will have them."""
    return logits.index_add(1, classes, logits.new_full((len(logits), len(classes)), shift))
