"""Train several models that teach one another (deep mutual learning)."""

from torch import nn

from raydistill.kinds.online import TrainPeersConfig
from raydistill.methods.mutual import Mutual
from raydistill.runs.context import StageContext
from raydistill.stages.joint_training import Deployed, train_members
from raydistill.stages.training_stage import build_initial_model, load_data
from raydistill.tasks.splits import TaskData
from raydistill.training import model_files
from raydistill.training.peers import Peers


def train_peers(config: TrainPeersConfig, context: StageContext) -> dict[str, float]:
    """Train all peers together; deploy one of them."""
    data = load_data(context)
    model = Peers(build_peers(data, config, context))

    def deploy(best: int) -> Deployed:
        index = best if config.deploy == "best" else config.deploy
        return Deployed(model.peers[index], config.peers[index], index)

    return train_members(model, Mutual(config), deploy, data, config, context)


def build_peers(data: TaskData, config: TrainPeersConfig, context: StageContext) -> list[nn.Module]:
    """The first peer begins as the model of this seed would; the others are drawn after it, so that they differ."""
    first, *others = config.peers
    peers = [build_initial_model(first, data, config, context)]
    drawn = [model_files.build(other, context.task, data.normalisation) for other in others]
    return peers + [peer.to(context.device) for peer in drawn]
