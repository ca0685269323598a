"""What a specialist sees and starts from, against counting, Bayes' rule and the generalist's own probabilities."""

import math

import pytest
import torch
from torch import Tensor, nn

from raydistill.errors import StageError
from raydistill.tasks.normalisation import Normalisation
from raydistill.tasks.splits import TensorSplit
from raydistill.training.data import TransferSet
from raydistill.training.specialist import (
    Relabelled,
    SpecialTransferSet,
    as_trained_on,
    dustbin_correction,
    local_labels,
    logit_offset,
    special_transfer_set,
    specialist_state,
)

CLUSTER = [4, 1]
NAMES = [str(label) for label in range(6)]


def split_of(labels: Tensor) -> TensorSplit:
    return TensorSplit(torch.rand(len(labels), 3), labels, torch.arange(len(labels)) * 7 + 3)


def special(samples: int = 100, special_fraction: float = 0.5) -> SpecialTransferSet:
    generator = torch.Generator().manual_seed(0)
    split = split_of(torch.randint(6, (samples,), generator=generator))
    transfer = TransferSet(split, Normalisation(torch.zeros(1), torch.ones(1)))
    return special_transfer_set(transfer, CLUSTER, special_fraction, NAMES)


def test_local_labels_follow_the_cluster_and_end_with_the_dustbin() -> None:
    table = local_labels(CLUSTER, 6)
    assert table.tolist() == [2, 1, 2, 2, 0, 2]
    for place, label in enumerate(CLUSTER):
        assert table[label] == place


def test_a_relabelled_split_has_the_same_samples_under_other_labels() -> None:
    split = split_of(torch.tensor([0, 4, 1, 5]))
    relabelled = Relabelled(split, local_labels(CLUSTER, 6))
    assert relabelled.labels.tolist() == [2, 0, 1, 2]
    chosen = relabelled.select(torch.tensor([2, 0]))
    assert chosen.labels.tolist() == [1, 2]
    assert chosen.ids.tolist() == [split.ids[2], split.ids[0]]
    (inputs,) = relabelled.batches([torch.tensor([3, 1])], None)
    assert torch.equal(inputs, split.inputs[[3, 1]])


@pytest.mark.parametrize(("special_fraction", "others"), [(0.5, 1.0), (0.25, 3.0), (0.8, 0.25)])
def test_every_epoch_has_all_special_samples_and_others_in_proportion(
    special_fraction: float, others: float
) -> None:
    transfer = special(special_fraction=special_fraction)
    for epoch in range(3):
        labels = transfer.split.labels[transfer.epoch_order(0, epoch)]
        is_special = torch.isin(labels, torch.tensor(CLUSTER))
        assert int(is_special.sum()) == len(transfer.special)
        assert int((~is_special).sum()) == round(others * len(transfer.special))
        assert len(labels) == transfer.samples_per_epoch


def test_others_come_in_turn_before_one_comes_twice() -> None:
    transfer = special()
    rounds = 3
    epochs = math.ceil(rounds * len(transfer.others) / transfer.others_per_epoch)
    seen = torch.cat([transfer.others_of_epoch(0, epoch) for epoch in range(epochs)])
    for turn in seen[: rounds * len(transfer.others)].split(len(transfer.others)):
        assert sorted(turn.tolist()) == transfer.others.tolist()


def test_an_epochs_order_depends_on_seed_and_epoch_alone() -> None:
    transfer = special()
    assert torch.equal(transfer.epoch_order(3, 5), special().epoch_order(3, 5))
    assert not torch.equal(transfer.epoch_order(3, 5), transfer.epoch_order(3, 6))
    assert not torch.equal(transfer.epoch_order(3, 5), transfer.epoch_order(4, 5))


def test_a_class_without_samples_is_named() -> None:
    transfer = TransferSet(split_of(torch.tensor([0, 1, 2])), Normalisation(torch.zeros(1), torch.ones(1)))
    with pytest.raises(StageError, match=r"is of `four`;"):
        special_transfer_set(transfer, CLUSTER, 0.5, ["zero", "one", "two", "three", "four", "five"])


def test_a_transfer_set_of_nothing_but_the_cluster_is_refused() -> None:
    transfer = TransferSet(split_of(torch.tensor([4, 1, 1])), Normalisation(torch.zeros(1), torch.ones(1)))
    with pytest.raises(StageError, match="what they are not"):
        special_transfer_set(transfer, CLUSTER, 0.5, NAMES)


def test_what_is_judged_has_the_proportions_of_the_training() -> None:
    split = split_of(torch.arange(6).repeat(50))
    judged = as_trained_on(split, CLUSTER, 0.5)
    is_special = torch.isin(judged.labels, torch.tensor(CLUSTER))
    assert int(is_special.sum()) == 100
    assert int((~is_special).sum()) == 100
    assert len(judged.ids.unique()) == 200


@pytest.mark.parametrize(("prior", "correction"), [(0.02, 3.8918), (0.10, 2.1972), (0.50, 0.0)])
def test_the_correction_has_the_values_of_bayes_rule(prior: float, correction: float) -> None:
    assert dustbin_correction(prior, 0.5) == pytest.approx(correction, abs=5e-5)


@pytest.mark.parametrize("special_fraction", [0.5, 0.9, 0.999, 0.3, 0.07])
@pytest.mark.parametrize("samples", [40, 41, 77, 101])
def test_the_drawn_fraction_is_that_of_the_samples_of_an_epoch(samples: int, special_fraction: float) -> None:
    transfer = special(samples, special_fraction)
    labels = transfer.split.labels[transfer.epoch_order(seed=3, epoch=2)].tolist()
    assert transfer.drawn_fraction == sum(label in CLUSTER for label in labels) / len(labels)


def test_four_samples_at_nine_tenths_are_drawn_as_four_of_five() -> None:
    labels = torch.tensor([4, 1, 4, 1, 0, 2, 3, 5])
    transfer = TransferSet(split_of(labels), Normalisation(torch.zeros(1), torch.ones(1)))
    drawn = special_transfer_set(transfer, CLUSTER, 0.9, NAMES).drawn_fraction
    assert drawn == 0.8
    wrong = dustbin_correction(0.5, 0.9) - dustbin_correction(0.5, drawn)
    assert wrong == pytest.approx(0.81093, abs=1e-5)


@pytest.mark.parametrize("is_full", [False, True])
def test_a_perfect_specialist_has_the_true_posterior_once_corrected(is_full: bool) -> None:
    """Samples on a line of four places: with the densities known, so are both posteriors."""
    likelihood = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.2, 0.6, 0.1, 0.1], [0.1, 0.2, 0.3, 0.4]]).double()
    true_prior, special_fraction, cluster = torch.tensor([0.03, 0.07, 0.9]).double(), 0.3, [0, 1]
    share = true_prior[cluster].sum().item()
    used = torch.cat([true_prior[:2] * special_fraction / share, torch.tensor([1 - special_fraction])])
    trained = torch.log_softmax((likelihood * used[:, None]).log(), dim=0)
    offset = logit_offset(cluster, 3, dustbin_correction(share, special_fraction), is_full=is_full)
    corrected = torch.softmax(trained + torch.tensor(offset).double()[:, None], dim=0)
    truth = likelihood * true_prior[:, None]
    torch.testing.assert_close(corrected, truth / truth.sum(dim=0))


def test_a_specialist_starts_with_the_generalists_opinion_of_its_classes() -> None:
    torch.manual_seed(0)
    generalist, own = nn.Linear(5, 6), nn.Linear(5, 3)
    with torch.no_grad():
        generalist.weight[[0, 2, 3, 5]] = generalist.weight[0].clone()  # equal others: the mean row is exact
        generalist.bias[[0, 2, 3, 5]] = 0.2
    state = specialist_state(
        own.state_dict(), generalist.state_dict(), ["weight", "bias"], CLUSTER, keep_dustbin=False
    )
    own.load_state_dict(state)
    inputs = torch.randn(8, 5)
    expected = torch.softmax(generalist(inputs), dim=1)
    answer = torch.softmax(own(inputs), dim=1)
    torch.testing.assert_close(answer[:, :2], expected[:, CLUSTER])
    torch.testing.assert_close(answer[:, 2], expected[:, [0, 2, 3, 5]].sum(dim=1))


def test_a_dustbin_can_stay_as_it_was_drawn() -> None:
    generalist, own = nn.Linear(5, 6), nn.Linear(5, 3)
    state = specialist_state(
        own.state_dict(), generalist.state_dict(), ["weight", "bias"], CLUSTER, keep_dustbin=True
    )
    assert torch.equal(state["weight"][-1], own.weight[-1])
    assert torch.equal(state["weight"][0], generalist.weight[4])
