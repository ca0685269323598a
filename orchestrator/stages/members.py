"""Members that were trained as one model: each judged beside their ensemble, and the best one found."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.taps import Output, Tapped
from orchestrator.errors import StageError
from orchestrator.plan.stage_bases import TrainingConfig
from orchestrator.training.data import TransferSet
from orchestrator.training.evaluation import judge, predict_split
from orchestrator.training.loop import predictor
from tasks.splits import Split, TaskData


@dataclass(frozen=True)
class Judged:
    """What `validation` and `test` say about the members and their ensemble; `best` is the best on validation."""

    metrics: dict[str, float]
    best: int


def check_best_can_be_told(data: TaskData) -> None:
    """`StageError` when there is nothing to tell the best member by."""
    if not len(data.validation):
        raise StageError(
            "`deploy: best` needs validation samples; set the task's `validation_fraction` above 0, or say which one"
        )


def judge_members(
    model: nn.Module,
    names: Sequence[str],
    transfer: TransferSet,
    data: TaskData,
    config: TrainingConfig,
    device: str,
) -> Judged:
    """Judge the members, which are the features `names` of a model (in eval mode) whose logits are the ensemble's.

    Of members with as many errors the one with the smaller loss is the better one.
    """
    metrics: dict[str, float] = {}
    order = list(range(len(names)))
    for split_name, split in {"validation": data.validation, "test": data.test}.items():
        if not len(split):
            continue
        logits = _all_logits(model, names, transfer, split.to(device), config)
        ensemble, *members = (judge(each, split.labels) for each in logits.unbind(dim=1))
        metrics |= {f"{split_name}/ensemble_{key}": ensemble[key] for key in ("accuracy", "errors")}
        for name, member in zip(names, members, strict=True):
            metrics[f"{split_name}/{name}_accuracy"] = member["accuracy"]
        if split_name == "validation":
            order.sort(key=lambda index: (members[index]["errors"], members[index]["loss"]))
    return Judged(metrics, order[0])


def _all_logits(
    model: nn.Module, names: Sequence[str], transfer: TransferSet, split: Split, config: TrainingConfig
) -> Tensor:
    """Logits (N, 1 + members, C) of the ensemble and of every member."""
    tapped = Tapped(model, names)
    predict: Callable[[Tensor], Tensor] = predictor(_Stacked(tapped), transfer, config)
    try:
        return predict_split(predict, split)
    finally:
        tapped.remove_hooks()


class _Stacked(nn.Module):
    """A tapped model's logits and features (B, C) as one tensor (B, 1 + features, C)."""

    def __init__(self, tapped: Tapped) -> None:
        super().__init__()
        self.tapped = tapped

    def forward(self, inputs: Tensor) -> Tensor:
        output: Output = self.tapped(inputs)
        return torch.stack([output.logits.float(), *(f.float() for f in output.features.values())], dim=1)
