"""Classes with few samples: their labels weigh more, their samples come oftener, or their logits are shifted.

All of it is a function of the labels that are trained on and of (seed, epoch), the same on every worker.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from raydistill.errors import StageError
from raydistill.kinds.stage_bases import BalanceConfig
from raydistill.tasks.hashing import fold_key
from raydistill.tasks.labels import UNLABELLED
from raydistill.tasks.seeds import Purpose


class Balance(NamedTuple):
    """What hard losses are told of the classes: `weights` (C,) of their labels, and a `shift` (C,) of the logits.

    `is_binary` asks for every class by itself, where labels of a part above `threshold` count as one.
    """

    weights: Tensor | None = None
    shift: Tensor | None = None
    is_binary: bool = False
    threshold: float | None = None


def balance_of(config: BalanceConfig, labels: Tensor, class_names: tuple[str, ...]) -> Balance | None:
    """What a config says for these labels (N,), on their device; None where it says nothing.

    `StageError` names a class without samples where that leaves no number.
    """
    binary = config.binary_cross_entropy
    if config.class_weights is None and config.logit_adjustment is None and binary is None:
        return None
    counts = torch.bincount(labels[labels != UNLABELLED].cpu(), minlength=len(class_names)).double()
    weights = shift = None
    if config.class_weights is not None:
        weights = _weights(config.class_weights, counts).float().to(labels.device)
    if config.logit_adjustment is not None:
        if missing := [name for name, count in zip(class_names, counts, strict=True) if not count]:
            raise StageError(
                f"`logit_adjustment` is about how frequent classes are, and `{missing[0]}` has no sample to train on;"
                " leave it out, or the classes out of the task"
            )
        prior = (counts / counts.sum()).log()
        shift = (config.logit_adjustment * prior).float().to(labels.device)
    return Balance(weights, shift, binary is not None, binary.threshold if binary else None)


def _weights(wanted: str | tuple[float, ...], counts: Tensor) -> Tensor:
    """(C,) whose mean over the samples is 1, so that the learning rate keeps its meaning."""
    raw = torch.where(counts > 0, 1 / counts, 0) if isinstance(wanted, str) else torch.tensor(wanted).double()
    if not (mean := (raw * counts).sum() / counts.sum()):
        raise StageError("`class_weights` are 0 for every class that has samples; raise one")
    return raw / mean


def balanced_order(labels: Tensor, seed: int, epoch: int) -> Tensor:
    """N positions for labels (N,), in which the classes that have samples come equally often, to one sample.

    A class goes through all of its samples, in an order of its own, before it shows one again.
    """
    labels = labels.cpu()
    generator = torch.Generator().manual_seed(fold_key(seed, Purpose.ORDER, epoch))
    counts = labels.unique(return_counts=True)[1]
    members = labels.argsort(stable=True).split(counts.tolist())
    share, rest = divmod(len(labels), len(members))
    parts = []
    for turn, index in enumerate(torch.randperm(len(members), generator=generator).tolist()):
        own, quota = members[index], share + (turn < rest)  # who has one sample more, by turns
        rounds = [own[torch.randperm(len(own), generator=generator)] for _ in range(-(-quota // len(own)))]
        parts.append(torch.cat(rounds)[:quota])
    order = torch.cat(parts)
    return order[torch.randperm(len(order), generator=generator)]
