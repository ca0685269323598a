"""Train a network with branches that their own ensemble teaches (ONE)."""

from raydistill.errors import StageError
from raydistill.kinds.online import TrainBranchesConfig
from raydistill.methods.one import One
from raydistill.models.branched import BranchedNetwork, branch_out
from raydistill.plan.model import ModelConfig
from raydistill.runs.context import StageContext
from raydistill.stages.joint_training import Deployed, train_members
from raydistill.stages.training_stage import build_initial_model, load_data
from raydistill.tasks.splits import TaskData
from raydistill.training import model_files


def train_branches(config: TrainBranchesConfig, context: StageContext) -> dict[str, float]:
    """Train all branches and the gate; deploy one branch as the plain network, or all of them."""
    data = load_data(context)
    model = build_branches(data, config, context)

    def deploy(best: int) -> Deployed:
        if config.deploy == "ensemble":
            return Deployed(model, branched_config(config))
        branch = best if config.deploy == "best" else 0
        return Deployed(model.plain(branch), config.model, branch)

    return train_members(model, One(config), deploy, data, config, context)


def build_branches(data: TaskData, config: TrainBranchesConfig, context: StageContext) -> BranchedNetwork:
    """The trunk and the first branch begin as the plain network of this seed would; the others are drawn after it."""
    networks = [build_initial_model(config.model, data, config, context)]
    networks += [
        model_files.build(config.model, context.task, data.normalisation) for _ in range(config.branches - 1)
    ]
    try:
        return branch_out([network.to(context.device) for network in networks], context.task.input_shape)
    except ValueError as error:
        raise StageError(f"model `{config.model.name}`: {error}") from error


def branched_config(config: TrainBranchesConfig) -> ModelConfig:
    """The model that all branches make together."""
    plain = {"name": config.model.name, **config.model.options}
    options = {"model": plain, "branches": config.branches}
    return ModelConfig(name="branched", num_classes=config.model.num_classes, options=options)
