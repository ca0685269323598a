"""What a specialist for a cluster of classes trains on and starts from (arXiv 1503.02531, sections 5.1 to 5.3).

Its local classes are the cluster's, in the cluster's order, and last the *dustbin*, which stands for all others.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raydistill.errors import StageError
from raydistill.tasks.hashing import fold_key, smallest_hashes
from raydistill.tasks.seeds import Purpose
from raydistill.tasks.splits import Split, View, is_resident
from raydistill.training.data import TransferSet


def local_labels(cluster: Sequence[int], num_classes: int) -> Tensor:
    """The map (C,) from a class to its place in the cluster, the dustbin's for every other class."""
    labels = torch.full((num_classes,), len(cluster))
    labels[torch.tensor(cluster)] = torch.arange(len(cluster))
    return labels


@dataclass(frozen=True, eq=False)
class Relabelled:
    """A split whose labels were mapped: label l became `table[l]`."""

    split: Split
    table: Tensor

    @property
    def is_resident(self) -> bool:
        return is_resident(self.split)

    @property
    def ids(self) -> Tensor:
        return self.split.ids

    @property
    def labels(self) -> Tensor:
        return self.table[self.split.labels]

    def __len__(self) -> int:
        return len(self.split)

    def select(self, positions: Tensor) -> "Relabelled":
        return Relabelled(self.split.select(positions), self.table)

    def to(self, device: torch.device | str) -> "Relabelled":
        return Relabelled(self.split.to(device), self.table.to(device))

    def batches(self, order: Sequence[Tensor], view: View | None) -> Iterator[Tensor]:
        return self.split.batches(order, view)


@dataclass(frozen=True, kw_only=True)
class SpecialTransferSet(TransferSet):
    """A transfer set for a specialist: every epoch shows all special samples, and as many others as `special_fraction`
    asks for.

    special (S,) and others (R,) are positions. The others come in a seeded order that goes through all of them
    before one is seen again, so that an epoch is a function of (seed, epoch) alone.
    """

    special: Tensor
    others: Tensor
    special_fraction: float

    @property
    def others_per_epoch(self) -> int:
        """How many others go with all the special ones."""
        return others_for(len(self.special), self.special_fraction)

    @property
    def drawn_fraction(self) -> float:
        """The share of special samples in an epoch. Samples are whole, so it is near `special_fraction`: 0.8 for 4
        special samples at 0.9."""
        return len(self.special) / self.samples_per_epoch

    @property
    def samples_per_epoch(self) -> int:
        return len(self.special) + self.others_per_epoch

    def epoch_order(self, seed: int, epoch: int) -> Tensor:
        chosen = torch.cat([self.special, self.others_of_epoch(seed, epoch)])
        return chosen[_permutation(len(chosen), seed, Purpose.SPECIALIST_ORDER, epoch)]

    def others_of_epoch(self, seed: int, epoch: int) -> Tensor:
        """Positions of the others that this epoch shows: a window on one shuffled round after another."""
        start, size = epoch * self.others_per_epoch, len(self.others)
        first, last = start // size, (start + self.others_per_epoch - 1) // size
        rounds = [_permutation(size, seed, Purpose.OTHERS, turn) for turn in range(first, last + 1)]
        window = torch.cat(rounds)[start - first * size :][: self.others_per_epoch]
        return self.others[window]


def _permutation(size: int, *key: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(fold_key(*key)))


def others_for(special: int, special_fraction: float) -> int:
    """How many samples of other classes make `special` samples the given fraction; at least one."""
    return max(1, round(special * (1 - special_fraction) / special_fraction))


def special_transfer_set(
    transfer: TransferSet, cluster: Sequence[int], special_fraction: float, class_names: Sequence[str]
) -> SpecialTransferSet:
    """The transfer set as a cluster's specialist sees it. `StageError` names a class that has no sample in it."""
    labels = transfer.split.labels.cpu()
    present = set(labels.unique().tolist())
    absent = [class_names[label] for label in cluster if label not in present]
    if absent:
        raise StageError(
            f"no sample of the transfer set is of {', '.join(f'`{name}`' for name in absent)}; give the clusters"
            " other classes, or the transfer set more samples"
        )
    is_special = torch.isin(labels, torch.tensor(cluster))
    if is_special.all():
        raise StageError(
            "the transfer set has the cluster's classes only; a specialist also learns what they are not"
        )
    return SpecialTransferSet(
        split=transfer.split,
        normalisation=transfer.normalisation,
        views=transfer.views,
        channels_last=transfer.channels_last,
        special=is_special.nonzero()[:, 0],
        others=(~is_special).nonzero()[:, 0],
        special_fraction=special_fraction,
    )


def as_trained_on(split: Split, cluster: Sequence[int], special_fraction: float) -> Split:
    """The part of a split that has special and other samples in the proportion of the training."""
    is_special = torch.isin(split.labels.cpu(), torch.tensor(cluster))
    special, others = is_special.nonzero()[:, 0], (~is_special).nonzero()[:, 0]
    if not len(special):
        return split.select(special)
    ids = split.ids.cpu()[others].numpy()
    chosen = smallest_hashes(ids, others_for(len(special), special_fraction), fold_key(Purpose.JUDGED))
    return split.select(torch.cat([special, others[torch.from_numpy(chosen)]]).sort().values)


def dustbin_correction(prior: float, special_fraction: float) -> float:
    """The number to add to the dustbin's logit so that probabilities fit the true prior of the cluster.

    `prior`: the share of samples that are of the cluster's classes; `special_fraction`: that share in the training,
    whose other samples were drawn from the remainder. By Bayes, log((1 - π) / π · ρ / (1 - ρ)).
    """
    return math.log((1 - prior) / prior * special_fraction / (1 - special_fraction))


def logit_offset(
    cluster: Sequence[int], num_classes: int, correction: float, *, is_full: bool
) -> list[float]:
    """The correction for every output: nothing for the special classes, the same for the dustbin or all others."""
    if not is_full:
        return [0.0] * len(cluster) + [correction]
    return [0.0 if label in set(cluster) else correction for label in range(num_classes)]


def specialist_state(
    own: Mapping[str, Tensor],
    generalist: Mapping[str, Tensor],
    classifier: Sequence[str],
    cluster: Sequence[int],
    *,
    keep_dustbin: bool,
) -> dict[str, Tensor]:
    """Weights to start from: the generalist's; of its `classifier`, the rows of the cluster's classes.

    The dustbin's row is the mean of the other classes' rows, with log(number of them) more on the bias, about the
    log-sum-exp of their logits; with `keep_dustbin` it stays as it was drawn in `own`.
    """
    state = dict(generalist)
    for key in classifier:
        rows = generalist[key]
        others = [label for label in range(len(rows)) if label not in set(cluster)]
        dustbin = rows[others].mean(dim=0, keepdim=True)
        if rows.dim() == 1:
            dustbin = dustbin + math.log(len(others))
        state[key] = torch.cat([rows[list(cluster)], own[key][-1:] if keep_dustbin else dustbin])
    return state
