"""Members that are trained as one model: each is judged beside their ensemble, and the best one found."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from raydistill.errors import StageError
from raydistill.kinds.online import TrainBranchesConfig, TrainPeersConfig
from raydistill.kinds.stage_bases import TrainingConfig
from raydistill.metrics import Accuracy, Errors, Loss
from raydistill.models.taps import Output, Tapped
from raydistill.plan.model import ModelConfig
from raydistill.runs.context import StageContext
from raydistill.stages.training_stage import fit_model, store_model
from raydistill.stages.transfer_data import load_transfer_set
from raydistill.tasks.splits import Split, TaskData
from raydistill.training.data import TransferSet, Views
from raydistill.training.evaluation import ask_each, judge
from raydistill.training.loop import predictor
from raydistill.training.method import Method
from raydistill.training.workers import Workers


class Deployed(NamedTuple):
    """The model that is stored: the `member` with this index, or all of them."""

    model: nn.Module
    config: ModelConfig
    member: int | None = None


def train_members(
    model: nn.Module,
    method: Method,
    deploy: Callable[[int], Deployed],
    data: TaskData,
    config: TrainBranchesConfig | TrainPeersConfig,
    context: StageContext,
) -> dict[str, float]:
    """Train a model whose members are the features that its method looks at, judge each member, and store the model
    that `deploy` returns for the index of the best."""
    if config.deploy == "best" and not len(data.validation):
        raise StageError(
            "`deploy: best` needs validation samples; set the task's `validation_fraction` above 0, or say which one"
        )
    views = Views(config.augment, config.seed)
    transfer = load_transfer_set(config.transfer, views, context, data, channels_last=config.channels_last)
    fit_model(model, method, transfer, data, config, context)
    judged, best = judge_members(model.eval(), method.student_features, transfer, data, config, context)
    deployed = deploy(best)
    metrics = store_model(deployed.model, deployed.config, transfer, data, config, context)
    return metrics | judged | ({} if deployed.member is None else {"deployed": deployed.member})


def judge_members(
    model: nn.Module,
    names: Sequence[str],
    transfer: TransferSet,
    data: TaskData,
    config: TrainingConfig,
    context: StageContext,
    *,
    together: str = "ensemble",
) -> tuple[dict[str, float], int]:
    """What validation and test say about the members, which are the features `names` of a model (in eval mode), and
    about what they are `together`, whose logits are the model's; and which member is the best on validation.

    All workers call this, and each of them knows it all. Of members with as many errors the one with the smaller loss
    is the better one.
    """
    metrics: dict[str, float] = {}
    order = list(range(len(names)))
    for split_name, split in {"validation": data.validation, "test": data.test}.items():
        if not len(split):
            continue
        asked = split.to(context.device)
        ensemble, *members = _judge_each(model, names, transfer, asked, config, context)
        metrics |= {
            f"{split_name}/{together}_{kind.name}": ensemble[kind.name] for kind in (Accuracy, Errors)
        }
        for name, member in zip(names, members, strict=True):
            metrics[f"{split_name}/{name}_{Accuracy.name}"] = member[Accuracy.name]
        if split_name == "validation":
            order.sort(key=lambda index: (members[index][Errors.name], members[index][Loss.name]))
    return metrics, order[0]


def _judge_each(
    model: nn.Module,
    names: Sequence[str],
    transfer: TransferSet,
    split: Split,
    config: TrainingConfig,
    context: StageContext,
) -> list[dict[str, float]]:
    """What our metrics say about the ensemble, and about each member."""
    tapped = Tapped(model, names)
    predict: Callable[[Tensor], Tensor] = predictor(_Stacked(tapped), transfer, config)
    try:
        asked = ask_each(predict, 1 + len(names), split, workers=Workers.of(context))
    finally:
        tapped.remove_hooks()
    return [judge(predictions, split.labels) for predictions in asked]


class _Stacked(nn.Module):
    """A tapped model's logits and features (B, C) as one tensor (B, 1 + features, C)."""

    def __init__(self, tapped: Tapped) -> None:
        super().__init__()
        self.tapped = tapped

    def forward(self, inputs: Tensor) -> Tensor:
        output: Output = self.tapped(inputs)
        return torch.stack([output.logits.float(), *(f.float() for f in output.features.values())], dim=1)
