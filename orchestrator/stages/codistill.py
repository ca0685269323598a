"""Train one of several peers that learn from one another's old predictions (co-distillation)."""

import torch

from raydistill.errors import StageError
from raydistill.kinds.online import CodistillConfig
from raydistill.methods.codistillation import Codistillation
from raydistill.runs.context import StageContext
from raydistill.stages.training_stage import build_initial_model, fit_model, load_data, store_model
from raydistill.stages.transfer_data import load_transfer_set
from raydistill.tasks.hashing import fold_key, hash_ids
from raydistill.tasks.seeds import Purpose
from raydistill.training.data import TransferSet, Views
from raydistill.training.exchange import Exchange


def codistill(config: CodistillConfig, context: StageContext) -> dict[str, float]:
    """Train one peer; the others have stages of their own. What it published last stays, for those still training."""
    data = load_data(context)
    views = Views(config.augment, config.seed)
    transfer = load_transfer_set(config.transfer, views, context, data, channels_last=config.channels_last)
    if config.data == "shards":
        transfer = shard_of(transfer, config)
    model = build_initial_model(config.model, data, config, context)
    if config.channels_last:
        model.to(memory_format=torch.channels_last)  # now, and with it the copies that stand for the others
    steps_per_epoch = -(-len(transfer) // config.samples_per_step)
    exchange = Exchange(model, context)
    method = Codistillation(config, exchange, round(config.burn_in * steps_per_epoch))
    fit_model(model, method, transfer, data, config, context, method.teach)
    assert method.step is not None
    exchange.publish(method.step)
    metrics = store_model(model, config.model, transfer, data, config, context) | method.summary()
    if config.weight and not metrics["peers_heard"]:
        context.warn("no other peer was ever heard: it is trained as if alone")
    return metrics


def shard_of(transfer: TransferSet, config: CodistillConfig) -> TransferSet:
    """The peer's own part of a transfer set, about as large as the others': drawn by the samples' ids."""
    hashes = hash_ids(transfer.split.ids.cpu().numpy(), fold_key(config.group_seed, Purpose.PEER_SHARDS))
    order = torch.from_numpy(hashes.argsort(kind="stable"))
    mine = order[config.peer :: config.peers].sort().values
    if not len(mine):
        raise StageError(
            f"{len(transfer)} samples are too few to give each of {config.peers} peers some; set `data: shared`"
        )
    return transfer.of(transfer.split.select(mine))
