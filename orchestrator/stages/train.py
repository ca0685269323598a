"""Train a model on labels."""

from raydistill.kinds.train import TrainConfig
from raydistill.methods.supervised import Supervised
from raydistill.runs.context import StageContext
from raydistill.stages.training_stage import PreparedTraining, build_initial_model, load_data
from raydistill.stages.transfer_data import load_transfer_set
from raydistill.training.data import Views


def train(config: TrainConfig, context: StageContext) -> dict[str, float]:
    """Train a teacher, a generalist or a baseline."""
    return prepare(config, context).run()


def prepare(config: TrainConfig, context: StageContext) -> PreparedTraining:
    """All that comes before the first step."""
    data = load_data(context)
    views = Views(config.augment, config.seed)
    transfer = load_transfer_set(config.transfer, views, context, data, channels_last=config.channels_last)
    transfer = transfer.told(config, context.task.class_names)
    model = build_initial_model(config.model, data, config, context)
    method = Supervised(config.label_smoothing)
    return PreparedTraining(model, config.model, method, transfer, data, config, context)
