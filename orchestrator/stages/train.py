"""Train a model on labels."""

from orchestrator.methods.supervised import Supervised
from orchestrator.plan.stage_configs import TrainConfig
from orchestrator.runs.context import StageContext
from orchestrator.stages.training_stage import load_data, train_model
from orchestrator.training.data import Views, build_transfer_set


def train(config: TrainConfig, context: StageContext) -> dict[str, float]:
    """Train a teacher, a generalist or a baseline."""
    data = load_data(context)
    views = Views(config.augment, config.seed)
    transfer = build_transfer_set(
        data, config.transfer, views, context.device, channels_last=config.channels_last
    )
    return train_model(config.model, Supervised(config.label_smoothing), transfer, data, config, context)
