"""EBKD's weights: the published values and their limits."""

import pytest
import torch

from raydistill.kinds.committee_methods import EbkdConfig
from raydistill.methods.ebkd import Ebkd, certainty_weights
from raydistill.targets.mixing import entropy
from raydistill.training.data import Batch

TWO = torch.tensor([[[0.9, 0.05, 0.05], [0.4, 0.3, 0.3]]]).log()


def test_two_teachers_have_the_published_weights() -> None:
    torch.testing.assert_close(
        certainty_weights(entropy(TWO)), torch.tensor([[0.734108, 0.265892]]), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("count", [2, 3, 7])
def test_the_release_leaves_a_factor_that_sum_to_one_removes(count: int) -> None:
    rows = torch.arange(6)
    student, teachers, batch = torch.randn(6, 4), torch.randn(6, count, 4), Batch(rows, rows, rows, rows)
    for options, total in (({}, (count - 1) / count), ({"sum_to_one": True}, 1.0)):
        method = Ebkd(EbkdConfig.model_validate({"method": "ebkd", **options}))
        weights = method.weights(student, teachers, batch)
        assert weights.min() >= 0
        torch.testing.assert_close(weights.sum(dim=1), torch.full((6,), total))


def test_teachers_that_are_all_certain_count_the_same() -> None:
    certain = torch.tensor([[[500.0, 0, 0], [0, 500.0, 0], [0, 0, 500.0]]])
    torch.testing.assert_close(certainty_weights(entropy(certain)), torch.full((1, 3), 2 / 3))


def test_a_certain_teacher_counts_most_and_one_that_knows_nothing_least() -> None:
    logits = torch.tensor([[[9.0, 0, 0], [1.0, 0, 0], [0.0, 0, 0]]])
    weights = certainty_weights(entropy(logits))[0]
    assert weights[0] > weights[1] > weights[2]
