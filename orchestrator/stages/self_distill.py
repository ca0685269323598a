"""Train a network with early exits that learn from its end (BYOT)."""

from raydistill.errors import StageError
from raydistill.kinds.online import SelfDistillConfig
from raydistill.methods.self_distillation import SelfDistillation
from raydistill.models.exits import ExitNetwork, add_exits
from raydistill.runs.context import StageContext
from raydistill.stages.joint_training import judge_members
from raydistill.stages.training_stage import build_initial_model, fit_model, load_data, store_model
from raydistill.stages.transfer_data import load_transfer_set
from raydistill.tasks.splits import TaskData
from raydistill.training.data import Views


def self_distill(config: SelfDistillConfig, context: StageContext) -> dict[str, float]:
    """Train the network with its exits, judge each exit, and store the plain network."""
    data = load_data(context)
    model = build_exits(data, config, context)
    method = SelfDistillation(config, len(model.exits))
    views = Views(config.augment, config.seed)
    transfer = load_transfer_set(config.transfer, views, context, data, channels_last=config.channels_last)
    fit_model(model, method, transfer, data, config, context)
    judged, _ = judge_members(
        model.eval(), method.exits, transfer, data, config, context, together="last_exit"
    )
    return store_model(model.network, config.model, transfer, data, config, context) | judged


def build_exits(data: TaskData, config: SelfDistillConfig, context: StageContext) -> ExitNetwork:
    """The network begins as the plain one of this seed would; the exits are drawn after it."""
    network = build_initial_model(config.model, data, config, context)
    try:
        return add_exits(network, context.task.input_shape)
    except ValueError as error:
        raise StageError(f"model `{config.model.name}`: {error}") from error
