"""Judge a model, or several as an ensemble, on a split."""

import torch
from torch import Tensor

from orchestrator.errors import StageError
from orchestrator.plan.stage_configs import EvaluateConfig
from orchestrator.runs.context import StageContext
from orchestrator.stages.committees import judge_committee
from orchestrator.stages.training_stage import load_data
from orchestrator.targets.combine import normalise
from orchestrator.targets.mixing import (
    TeacherTargets,
    geometric_log_probabilities,
    tempered_log_probabilities,
)
from orchestrator.training import model_files
from orchestrator.training.evaluation import judge_splits


def evaluate(config: EvaluateConfig, context: StageContext) -> dict[str, float]:
    """Metrics of the members' mean: of their probabilities (arithmetic) or of their logits (geometric)."""
    data = load_data(context)
    split = data.validation if config.split == "validation" else data.test
    if not len(split):
        raise StageError(f"the {config.split} split is empty; set the task's `validation_fraction` above 0")
    if config.committee is not None:
        return judge_committee(config, context, split.to(context.device))
    members = [model_files.load(context.input(ref), context.device) for ref in config.models]
    context.parameters = sum(p.numel() for member in members for p in member.model.parameters())
    fixed = normalise(config.weights if isinstance(config.weights, tuple) else None, len(members))
    weights = torch.tensor(fixed, device=context.device)
    mean = geometric_log_probabilities if config.rule == "geometric" else tempered_log_probabilities

    def predict(inputs: Tensor) -> Tensor:
        logits = torch.stack([member.logits(inputs) for member in members], dim=1)
        return (
            logits[:, 0]
            if len(members) == 1
            else mean(TeacherTargets(logits, weights.expand(len(inputs), -1)), 1.0)
        )

    return judge_splits(context, predict, {config.split: split.to(context.device)}, config.batch_size)
