"""A committee in a stage: its specialists loaded, its answers on a split judged beside its generalist's."""

from collections.abc import Sequence

import torch
from torch import Tensor

from raydistill.kinds.evaluate import EvaluateConfig
from raydistill.kinds.targets import CommitteeConfig
from raydistill.metrics import Accuracy
from raydistill.runs.context import StageContext
from raydistill.runs.files import write_json
from raydistill.tasks.splits import Split
from raydistill.training import model_files
from raydistill.training.committee import Committee
from raydistill.training.committee_tables import committee_tables, right_ones
from raydistill.training.evaluation import judge, predict_together, save_predictions

TABLES = "committee.json"


def load_committee(
    config: CommitteeConfig, context: StageContext, generalist_names: Sequence[str]
) -> Committee:
    """The specialists that the config names, for a generalist whose classes are `generalist_names`."""
    specialists = [model_files.load(context.input(ref), context.device) for ref in config.specialists]
    return Committee(
        specialists,
        config.specialists,
        generalist_names,
        active=config.active,
        direction=config.direction,
        device=context.device,
    )


@torch.no_grad()
def judge_committee(config: EvaluateConfig, context: StageContext, split: Split) -> dict[str, float]:
    """Metrics of the committee on a split; its tables beside the generalist are payload of the stage."""
    assert config.committee is not None
    generalist = model_files.load(context.input(config.models[0]), context.device)
    committee = load_committee(config.committee, context, generalist.class_names)
    modules = [generalist.model, *committee.models]
    context.parameters = sum(p.numel() for module in modules for p in module.parameters())

    members = committee.membership.members

    def answer(inputs: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        alone = generalist.logits(inputs)
        fused = committee.answer(generalist.prepared(inputs), alone)
        both = [right_ones(each, labels, members) for each in (alone, fused.log_probabilities)]
        asked = fused.active.sum(dim=1)
        return fused.log_probabilities, {"alone": both[0], "together": both[1], "asked": asked}

    found = predict_together(context, config.split, split, config.batch_size, answer)
    if found is None:
        return {}
    predictions, columns = found
    save_predictions(context, config.split, split, predictions)
    labels = split.labels.cpu()
    tables = committee_tables(columns["alone"], columns["together"], labels, members.cpu(), columns["asked"])
    write_json(
        context.path(TABLES), {**tables, "cost": {**tables["cost"], **_training_seconds(config, context)}}
    )
    judged = {
        f"{config.split}/{key}": value
        for key, value in judge(predictions, split.labels, context.metrics).items()
    }
    return judged | {
        f"{config.split}/conditional_accuracy": tables["committee"]["conditional"],
        f"{config.split}/generalist_{Accuracy.name}": tables["generalist"][Accuracy.name],
        f"{config.split}/generalist_conditional_accuracy": tables["generalist"]["conditional"],
        "committee/specialists": float(len(committee.models)),
        "committee/active": tables["cost"]["active"],
    }


def _training_seconds(config: EvaluateConfig, context: StageContext) -> dict[str, float]:
    """Seconds of the specialists' training, one after the other and all side by side."""
    assert config.committee is not None
    seconds = [context.input(ref).done_record().seconds for ref in config.committee.specialists]
    return {
        "generalist_seconds": context.input(config.models[0]).done_record().seconds,
        "specialists_seconds_serial": sum(seconds),
        "specialists_seconds_parallel": max(seconds),
    }
