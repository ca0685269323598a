"""Train several models that teach one another (deep mutual learning)."""

from torch import nn

from orchestrator.methods.mutual import Mutual
from orchestrator.plan.online_configs import TrainPeersConfig
from orchestrator.runs.context import StageContext
from orchestrator.stages.members import check_best_can_be_told, judge_members
from orchestrator.stages.training_stage import build_initial_model, fit_model, load_data, store_model
from orchestrator.stages.transfer_data import load_transfer_set
from orchestrator.training import model_files
from orchestrator.training.data import Views
from orchestrator.training.peers import Peers


def train_peers(config: TrainPeersConfig, context: StageContext) -> dict[str, float]:
    """Train all peers together; deploy one of them."""
    data = load_data(context)
    if config.deploy == "best":
        check_best_can_be_told(data)
    views = Views(config.augment, config.seed)
    transfer = load_transfer_set(config.transfer, views, context, data, channels_last=config.channels_last)
    model, method = Peers(build_peers(config, context)), Mutual(config)
    fit_model(model, method, transfer, data, config, context)
    if not context.is_main:
        return {}
    judged = judge_members(model.eval(), method.peers, transfer, data, config, context.device)
    index = judged.best if config.deploy == "best" else config.deploy
    metrics = store_model(model.peers[index], config.peers[index], transfer, data, config, context)
    return metrics | judged.metrics | {"deployed": index}


def build_peers(config: TrainPeersConfig, context: StageContext) -> list[nn.Module]:
    """The first peer begins as the model of this seed would; the others are drawn after it, so that they differ."""
    first, *others = config.peers
    peers = [build_initial_model(first, config, context)]
    return peers + [model_files.build(other, context.task).to(context.device) for other in others]
