"""What the loop iterates over: a transfer set, in a seeded order, as augmented and normalised batches.

Everything random is a function of (seed, epoch) for the order and of (seed, sample id, view) for the pixels, so a
batch is the same whatever came before it, on however many workers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from raydistill.errors import StageError
from raydistill.kinds.augmentations import AugmentationOptions
from raydistill.kinds.stage_bases import BalanceConfig
from raydistill.kinds.training import AlsoConfig, TransferConfig
from raydistill.tasks.devices import all_to_device
from raydistill.tasks.hashing import cut, fold_key
from raydistill.tasks.labels import UNLABELLED
from raydistill.tasks.normalisation import Normalisation
from raydistill.tasks.seeds import Purpose
from raydistill.tasks.splits import Split, TaskData, View
from raydistill.tasks.task import Task, class_index
from raydistill.training.augment import augment, mixing_partners, mixing_weights
from raydistill.training.balance import Balance, balance_of, balanced_order
from raydistill.training.counter_random import StaticView


@dataclass(frozen=True)
class Batch:
    """One worker's part of a batch of B samples.

    inputs (B, ...) float32, normalised, or int64 as they are; labels and ids (B,) int64; rows (B,) int64 are positions
    in the transfer set, on the CPU, where stored targets are looked up without waiting for the device. In a step that
    is captured (`captured_step.py`) they lie on the device, and `view` is a tensor there.
    Under mixup or cutmix each input is `weights` (B,) of itself and the rest of a sample of `partner_labels` (B,).
    Where the transfer set has samples without a label (`UNLABELLED`), `label_weights` (B,) float32 says what each label
    counts: 0 where there is none, or under mixup one of the two, and such that the mean over the parts of a step, each
    with its share, of weight x loss is the mean of the loss over the step's labelled samples; all 0 without any.
    `balance` is what hard losses are told of the classes.
    `share` scales the mean over this part so that workers' gradients average to that of the whole batch, or of the
    whole step that several batches make. `epoch` counts from 0.
    """

    inputs: Tensor
    labels: Tensor
    ids: Tensor
    rows: Tensor
    view: int | Tensor = 0
    partner_labels: Tensor | None = None
    weights: Tensor | None = None
    share: float = 1.0
    epoch: int = 0
    label_weights: Tensor | None = None
    balance: Balance | None = None


@dataclass(frozen=True)
class Views:
    """Which augmented view an epoch sees: always a fresh one, or one of `count` that can be replayed."""

    steps: tuple[AugmentationOptions, ...] = ()
    seed: int = 0
    count: int | None = None

    def of_epoch(self, epoch: int) -> int:
        """Number of the view in this epoch; 0, the clean input, when there is no augmentation."""
        if not self.steps:
            return 0
        return epoch if self.count is None else epoch % self.count

    @property
    def mixing(self) -> tuple[AugmentationOptions, ...]:
        """The steps that mix samples."""
        return tuple(step for step in self.steps if step.mixes_samples)


@dataclass(frozen=True)
class TransferSet:
    """The samples a stage trains or predicts on, with their normalisation and views."""

    split: Split
    normalisation: Normalisation
    views: Views = Views()
    channels_last: bool = False
    balance: Balance | None = None
    is_balanced: bool = False

    def __len__(self) -> int:
        return len(self.split)

    @cached_property
    def labelled(self) -> float:
        """Which part of the samples has a label."""
        return (self.split.labels != UNLABELLED).double().mean().item()

    def told(self, config: BalanceConfig, class_names: tuple[str, ...]) -> "TransferSet":
        """The same samples, with what a stage says of classes that have few."""
        balance = balance_of(config, self.split.labels, class_names)
        return replace(self, balance=balance, is_balanced=config.sampler == "balanced")

    def of(self, split: Split) -> "TransferSet":
        """Other samples, seen in the same way."""
        return replace(self, split=split)

    @property
    def samples_per_epoch(self) -> int:
        """How many positions an epoch's order has."""
        return len(self)

    def epoch_order(self, seed: int, epoch: int) -> Tensor:
        """N positions for one epoch, the same on every worker: all of them, unless classes are balanced."""
        # On the CPU and from a generator of its own: the same order on every device and worker, whatever else was
        # drawn.
        if self.is_balanced:
            return balanced_order(self.split.labels, seed, epoch)
        generator = torch.Generator().manual_seed(fold_key(seed, Purpose.ORDER, epoch))
        return torch.randperm(len(self), generator=generator)

    def batches(
        self,
        parts: Sequence[Tensor],
        view: int | StaticView,
        shares: Sequence[float] | None = None,
        epoch: int = 0,
        wholes: Sequence[Tensor] | None = None,
    ) -> Iterator[Batch]:
        """Batches at these positions, as this view shows them. `wholes` are the steps that they are `shares` of."""
        split, steps, device = self.split, self.views.steps, self.split.labels.device
        name = self._named(view) if steps else None
        number = view if isinstance(view, int) else view.number
        # In one copy for the epoch: what a small network's step takes is launches and copies, not arithmetic.
        places = all_to_device(parts, device)
        partners = self._partners(places, view)
        label_weights = None if self.labelled == 1 else self._label_weights(places, wholes, view)
        for index, (rows, inputs) in enumerate(zip(parts, split.batches(parts, name), strict=True)):
            place = places[index]
            ids, labels = split.ids[place], split.labels[place]
            inputs = augment(inputs, ids, steps, self.views.seed, view)
            share = 1.0 if shares is None else shares[index]
            counts = None if label_weights is None else next(label_weights)
            if partners is None:
                yield Batch(
                    self.normalised(inputs), labels, ids, rows, number,
                    share=share, epoch=epoch, label_weights=counts, balance=self.balance,
                )  # fmt: skip
                continue
            partner_rows, partner_inputs = next(partners)
            # By its own id: the partner looks as it does where it is a sample itself.
            partner_inputs = augment(partner_inputs, split.ids[partner_rows], steps, self.views.seed, view)
            own = mixing_weights(self.views.mixing, ids, self.views.seed, view, tuple(inputs.shape[1:]))
            weights = own.flatten(1).mean(dim=1)
            mixed = self.normalised(own * inputs + (1 - own) * partner_inputs)
            partner_labels = split.labels[partner_rows]
            yield Batch(
                mixed, labels, ids, rows, number, partner_labels, weights, share, epoch, counts, self.balance
            )

    def _named(self, view: int | StaticView) -> View | None:
        """For splits that look at it; a captured step's samples lie on the device, which ignores views."""
        return View(self.views.seed, view) if isinstance(view, int) else None

    def _label_weights(
        self, parts: Sequence[Tensor], wholes: Sequence[Tensor] | None, view: int | StaticView
    ) -> Iterator[Tensor]:
        """For each part, as `Batch.label_weights`. Nothing waits for the device."""
        wholes = None if wholes is None else all_to_device(wholes, self.split.labels.device)
        for index, rows in enumerate(parts):
            own = self._has_label(rows, view)
            whole = own if wholes is None else self._has_label(wholes[index], view)
            yield own * (len(whole) / whole.sum().clamp(min=1))

    def _has_label(self, rows: Tensor, view: int | StaticView) -> Tensor:
        """Which samples (B,) have a label; under mixup, which have one at both ends."""
        is_labelled = self.split.labels[rows] != UNLABELLED
        if not self.views.mixing:
            return is_labelled
        partners = mixing_partners(self.split.ids[rows], self.views.seed, view, len(self))
        return is_labelled & (self.split.labels[partners] != UNLABELLED)

    def _partners(
        self, parts: Sequence[Tensor], view: int | StaticView
    ) -> Iterator[tuple[Tensor, Tensor]] | None:
        if not self.views.mixing:
            return None
        drawn = [mixing_partners(self.split.ids[rows], self.views.seed, view, len(self)) for rows in parts]
        # A second pass over the split, batch by batch beside the first: nothing is held for longer than a step.
        return zip(drawn, self.split.batches(drawn, self._named(view)), strict=True)

    def normalised(self, inputs: Tensor) -> Tensor:
        """Inputs as the model takes them."""
        inputs = self.normalisation.of_batch(inputs)
        if self.channels_last and inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return inputs


def build_transfer_set(
    data: TaskData,
    transfer: TransferConfig,
    views: Views,
    device: str,
    *,
    channels_last: bool = False,
    with_unlabelled: bool = False,
    task: Task | None = None,
) -> TransferSet:
    """The part of the training split that `transfer` describes, on `device`; what has no label is left out unless it is
    asked for. What the task does not have, `also`, is read as the `task` reads its own."""
    if transfer.synthesized is not None:
        raise StageError("this kind of stage takes no synthesised samples; leave `synthesized` out")
    positions = transfer_positions(data, transfer, with_unlabelled=with_unlabelled)
    # The whole split is used as it is, where indexing would copy it.
    whole = len(positions) == len(data.train)
    split = data.train if whole else data.train.select(positions)
    if transfer.also is not None:
        assert task is not None
        split = _with_pool(split, transfer.also, task)
    return TransferSet(split.to(device), data.normalisation.on(device), views, channels_last)


def _with_pool(split: Split, also: AlsoConfig, task: Task) -> Split:
    try:
        return also.pool.add_to(split, task)
    except (ValueError, OSError) as error:
        raise StageError(f"`also`: {error}") from error


def transfer_positions(data: TaskData, transfer: TransferConfig, *, with_unlabelled: bool = False) -> Tensor:
    """Positions (N,) in the training split, ascending. `StageError` when nothing is left.

    Samples without a label are of no class: `only_classes` leaves them out, `omit_classes` does not.
    """
    positions = torch.arange(len(data.train))
    labels = data.train.labels.cpu()
    if transfer.only_classes is not None:
        positions = positions[torch.isin(labels, class_indices(data, transfer.only_classes))]
    if transfer.omit_classes:
        positions = positions[~torch.isin(labels, class_indices(data, transfer.omit_classes))]
    if not with_unlabelled or transfer.unlabelled is False:
        positions = positions[labels[positions] != UNLABELLED]
    if transfer.fraction < 1:
        # By hash of the ids: a smaller fraction is a part of a larger one, whatever the order of the files.
        ids = data.train.ids.cpu()[positions].numpy()
        positions = positions[
            torch.from_numpy(cut(ids, transfer.fraction, fold_key(transfer.seed, Purpose.TRANSFER)))
        ]
    if not len(positions):
        raise StageError("the transfer set is empty; raise its `fraction` or keep more classes")
    return positions


def class_indices(data: TaskData, classes: Sequence[int | str]) -> Tensor:
    """Indices of classes written by index or by name."""
    return torch.tensor([class_index(data.class_names, label) for label in classes])


def split_batch(rows: Tensor, rank: int, world: int, step_size: int | None = None) -> tuple[Tensor, float]:
    """This worker's part of a batch, and its share of a step of `step_size` samples, of which the batch is all when
    left out; a worker without samples repeats one with share 0."""
    # Row by row in turn, so that parts differ by one sample at most.
    mine = rows[rank::world]
    if not len(mine):
        return rows[:1], 0.0
    return mine, len(mine) * world / (step_size or len(rows))
