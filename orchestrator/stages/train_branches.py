"""Train a network with branches that their own ensemble teaches (ONE)."""

from torch import nn

from models.branched import BranchedNetwork, branch_out
from orchestrator.errors import StageError
from orchestrator.methods.one import One
from orchestrator.plan.model_config import ModelConfig
from orchestrator.plan.online_configs import TrainBranchesConfig
from orchestrator.runs.context import StageContext
from orchestrator.stages.members import check_best_can_be_told, judge_members
from orchestrator.stages.training_stage import build_initial_model, fit_model, load_data, store_model
from orchestrator.stages.transfer_data import load_transfer_set
from orchestrator.training import model_files
from orchestrator.training.data import Views


def train_branches(config: TrainBranchesConfig, context: StageContext) -> dict[str, float]:
    """Train all branches and the gate; deploy one branch as the plain network, or all of them."""
    data = load_data(context)
    if config.deploy == "best":
        check_best_can_be_told(data)
    views = Views(config.augment, config.seed)
    transfer = load_transfer_set(config.transfer, views, context, data, channels_last=config.channels_last)
    model, method = build_branches(config, context), One(config)
    fit_model(model, method, transfer, data, config, context)
    if not context.is_main:
        return {}
    judged = judge_members(model.eval(), method.branches, transfer, data, config, context.device)
    branch = judged.best if config.deploy == "best" else 0
    deployed: nn.Module = model
    deployed_config = branched_config(config)
    if config.deploy != "ensemble":
        deployed, deployed_config = model.plain(branch), config.model
        judged.metrics["deployed"] = branch
    return store_model(deployed, deployed_config, transfer, data, config, context) | judged.metrics


def build_branches(config: TrainBranchesConfig, context: StageContext) -> BranchedNetwork:
    """The trunk and the first branch begin as the plain network of this seed would; the others are drawn after it."""
    networks = [build_initial_model(config.model, config, context)]
    networks += [model_files.build(config.model, context.task) for _ in range(config.branches - 1)]
    try:
        return branch_out([network.to(context.device) for network in networks], context.task.input_shape)
    except ValueError as error:
        raise StageError(f"model `{config.model.name}`: {error}") from error


def branched_config(config: TrainBranchesConfig) -> ModelConfig:
    """The model that all branches make together."""
    plain = {"name": config.model.name, **config.model.options}
    options = {"model": plain, "branches": config.branches}
    return ModelConfig(name="branched", num_classes=config.model.num_classes, options=options)
