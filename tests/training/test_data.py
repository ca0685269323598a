"""Transfer sets and batches: what is chosen, in which order, and that neither place nor time changes a pixel."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raydistill.errors import StageError
from raydistill.kinds.augmentations import CutmixConfig, FlipConfig, MixupConfig, ShiftConfig
from raydistill.kinds.training import TransferConfig
from raydistill.tasks.normalisation import Normalisation
from raydistill.tasks.splits import TaskData, TensorSplit
from raydistill.training.augment import augment, mixing_partners, mixing_weights
from raydistill.training.data import (
    Batch,
    TransferSet,
    Views,
    build_transfer_set,
    split_batch,
    transfer_positions,
)

NAMES = ("cat", "dog", "owl", "fox")
MEAN, STD = torch.tensor([0.2, 0.4]).view(2, 1, 1), torch.tensor([0.5, 0.25]).view(2, 1, 1)


def digits(samples: int = 200) -> TaskData:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(256, (samples, 2, 6, 6), generator=generator, dtype=torch.uint8)
    labels = torch.randint(4, (samples,), generator=generator)
    train = TensorSplit(inputs, labels, torch.randperm(10 * samples, generator=generator)[:samples])
    none = train.select(torch.arange(0))
    return TaskData(train, none, none, 4, NAMES, Normalisation(MEAN, STD))


def chosen(data: TaskData, **transfer: Any) -> set[int]:
    return set(transfer_positions(data, TransferConfig.model_validate(transfer)).tolist())


def transfer_of(data: TaskData, *steps: Any, count: int | None = None) -> TransferSet:
    return build_transfer_set(data, TransferConfig(), Views(steps, seed=3, count=count), "cpu")


def parts_of(transfer: TransferSet, size: int) -> list[Tensor]:
    return list(torch.arange(len(transfer)).split(size))


def inputs_of(batches: Any) -> Tensor:
    return torch.cat([batch.inputs for batch in batches])


def test_a_fraction_has_its_size_and_contains_every_smaller_one() -> None:
    data = digits()
    sets = [chosen(data, fraction=fraction) for fraction in (0.05, 0.1, 0.5, 1.0)]
    assert [len(found) for found in sets] == [10, 20, 100, 200]
    assert all(small < large for small, large in pairwise(sets))


def test_a_fraction_follows_its_seed_and_the_ids_but_not_their_order() -> None:
    data = digits()
    assert chosen(data, fraction=0.3) != chosen(data, fraction=0.3, seed=1)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    shuffled = TaskData(data.train.select(order), data.train, data.train, 4, NAMES, Normalisation(MEAN, STD))
    first = {int(data.train.ids[row]) for row in chosen(data, fraction=0.3)}
    second = {int(shuffled.train.ids[row]) for row in chosen(shuffled, fraction=0.3)}
    assert first == second


def test_a_fraction_is_no_part_of_the_order_or_of_a_stage_seed() -> None:
    # Equal seeds for different purposes: the small set must not be the first samples of an epoch.
    data = digits()
    order = transfer_of(data).epoch_order(0, 0)[:20].tolist()
    assert len(chosen(data, fraction=0.1) & set(order)) < 10


def test_classes_are_kept_by_name_or_index() -> None:
    data = digits()
    expected = {row for row, label in enumerate(data.train.labels.tolist()) if label in (1, 3)}
    assert chosen(data, only_classes=["dog", "fox"]) == expected
    assert chosen(data, only_classes=[1, 3]) == expected
    assert chosen(data, only_classes=["fox", 1]) == expected


def test_classes_are_omitted_by_name_or_index() -> None:
    data = digits()
    expected = {row for row, label in enumerate(data.train.labels.tolist()) if label not in (1, 3)}
    assert chosen(data, omit_classes=["dog", "fox"]) == expected
    assert chosen(data, omit_classes=[3, 1]) == expected


def test_a_fraction_of_some_classes_is_a_fraction_of_their_samples() -> None:
    data = digits()
    whole = chosen(data, only_classes=["owl"])
    part = chosen(data, only_classes=["owl"], fraction=0.5)
    assert part < whole
    assert len(part) == round(len(whole) / 2)


@pytest.mark.parametrize("transfer", [{"fraction": 0.001}, {"omit_classes": [0, 1, 2, 3]}])
def test_an_empty_transfer_set_is_an_error_that_says_what_to_change(transfer: dict[str, Any]) -> None:
    with pytest.raises(StageError, match="transfer set is empty; raise its `fraction` or keep more classes"):
        chosen(digits(), **transfer)


def test_an_order_is_a_permutation_of_seed_and_epoch() -> None:
    transfer = transfer_of(digits())
    first = transfer.epoch_order(1, 2)
    assert sorted(first.tolist()) == list(range(200))
    torch.rand(10)
    assert torch.equal(first, transfer.epoch_order(1, 2))
    others = [transfer.epoch_order(1, 3), transfer.epoch_order(2, 2), transfer.epoch_order(2, 1)]
    assert not any(torch.equal(first, other) for other in others)


def test_a_batch_holds_the_samples_at_its_rows() -> None:
    data = digits()
    transfer, rows = transfer_of(data), torch.tensor([7, 3, 199])
    (batch,) = transfer.batches([rows], 0)
    plain = data.train.inputs[rows].double() / 255
    torch.testing.assert_close(batch.inputs.double(), (plain - MEAN.double()) / STD.double())
    assert torch.equal(batch.labels, data.train.labels[rows])
    assert torch.equal(batch.ids, data.train.ids[rows])
    assert torch.equal(batch.rows, rows)
    assert (batch.share, batch.view, batch.partner_labels) == (1.0, 0, None)


def test_iterating_leaves_the_split_as_it_was() -> None:
    inputs = torch.rand(10, 2, 6, 6)
    split = TensorSplit(inputs.clone(), torch.zeros(10, dtype=torch.int64), torch.arange(10))
    transfer = TransferSet(split, Normalisation(MEAN, STD))
    inputs_of(transfer.batches([torch.arange(10)], 0))
    assert torch.equal(split.inputs, inputs)


@pytest.mark.parametrize(
    "steps", [(), (ShiftConfig(), FlipConfig()), (ShiftConfig(), MixupConfig(), CutmixConfig())]
)
def test_pixels_depend_neither_on_the_batch_nor_on_where_iteration_began(steps: Any) -> None:
    transfer = transfer_of(digits(), *steps)
    whole = inputs_of(transfer.batches(parts_of(transfer, 200), 4))
    assert torch.equal(inputs_of(transfer.batches(parts_of(transfer, 7), 4)), whole)
    assert torch.equal(inputs_of(transfer.batches(parts_of(transfer, 7)[11:], 4)), whole[77:])


def test_an_augmented_batch_is_normalised_after_the_augmentation() -> None:
    data, steps = digits(), (ShiftConfig(pixels=2), FlipConfig())
    (batch,) = transfer_of(data, *steps).batches([torch.arange(50)], 4)
    shown = augment(data.train.inputs[:50] / 255, data.train.ids[:50], steps, 3, 4)
    torch.testing.assert_close(batch.inputs, (shown - MEAN) / STD)


def test_mixup_blends_inputs_with_the_partner_whose_label_it_names() -> None:
    data = digits(40)
    (plain,) = transfer_of(data).batches([torch.arange(40)], 0)
    (mixed,) = transfer_of(data, MixupConfig(alpha=1.0)).batches([torch.arange(40)], 2)
    assert mixed.weights is not None
    assert mixed.partner_labels is not None
    for row in range(40):
        weight = mixed.weights[row]
        candidates = (mixed.inputs[row] - weight * plain.inputs[row]) / (1 - weight).clamp(min=1e-6)
        distance = (plain.inputs - candidates).abs().flatten(1).amax(dim=1) * (1 - weight)
        partner = int(distance.argmin())
        assert distance[partner] < 1e-4
        if distance.sort().values[1] > 1e-3:  # else the weight of the partner is too small to tell
            assert plain.labels[partner] == mixed.partner_labels[row]


def test_cutmix_pastes_the_partner_as_it_looks_itself_and_labels_count_by_area() -> None:
    data, steps = digits(40), (ShiftConfig(pixels=2), CutmixConfig())
    transfer = transfer_of(data, *steps)
    (plain,) = transfer_of(data, steps[0]).batches([torch.arange(40)], 2)
    (mixed,) = transfer.batches([torch.arange(40)], 2)
    partners = mixing_partners(data.train.ids, 3, 2, 40)
    own = mixing_weights(steps[1:], data.train.ids, 3, 2, tuple(plain.inputs.shape[1:])) == 1
    assert 0 < own.float().mean() < 1
    torch.testing.assert_close(mixed.inputs, torch.where(own, plain.inputs, plain.inputs[partners]))
    assert mixed.partner_labels is not None
    assert torch.equal(mixed.partner_labels, plain.labels[partners])
    torch.testing.assert_close(mixed.weights, own.float().mean(dim=(1, 2, 3)))


def test_a_fresh_view_belongs_to_every_epoch_and_stored_ones_come_back() -> None:
    flip = (FlipConfig(),)
    assert [Views(flip).of_epoch(epoch) for epoch in range(5)] == [0, 1, 2, 3, 4]
    assert [Views(flip, count=2).of_epoch(epoch) for epoch in range(5)] == [0, 1, 0, 1, 0]
    assert [Views().of_epoch(epoch) for epoch in range(3)] == [0, 0, 0]


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_workers_take_every_sample_of_a_batch_once_and_weigh_them_equally(world: int, size: int) -> None:
    rows = torch.arange(100, 100 + size)
    weight = dict.fromkeys(rows.tolist(), 0.0)
    for rank in range(world):
        mine, share = split_batch(rows, rank, world)
        assert len(mine) > 0
        for row in mine.tolist():
            weight[row] += share / len(mine) / world  # the workers' gradients are averaged
    np.testing.assert_allclose(list(weight.values()), 1 / size)


def test_workers_together_see_the_pixels_that_one_would() -> None:
    transfer = transfer_of(digits(), ShiftConfig(), MixupConfig())
    rows = transfer.epoch_order(0, 0)[:11]
    (whole,) = transfer.batches([rows], 3)
    for rank in range(2):
        (part,) = transfer.batches([split_batch(rows, rank, 2)[0]], 3)
        assert torch.equal(part.inputs, whole.inputs[rank::2])
        assert torch.equal(part.labels, whole.labels[rank::2])


def test_channels_last_changes_the_layout_and_not_the_pixels() -> None:
    data = digits()
    plain = transfer_of(data)
    last = build_transfer_set(data, TransferConfig(), Views(), "cpu", channels_last=True)
    (one,), (other,) = (list[Batch](t.batches([torch.arange(9)], 0)) for t in (plain, last))
    assert other.inputs.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(one.inputs, other.inputs)
