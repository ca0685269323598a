"""CA-MKD's weights: the published values, their limits, labels, mixup."""

import pytest
import torch

from raydistill.kinds.committee_methods import CaMkdConfig
from raydistill.methods.ca_mkd import CaMkd, confidence_weights, cross_entropies
from raydistill.training.data import Batch


def batch_of(*labels: int) -> Batch:
    values = torch.tensor(labels)
    return Batch(values, values, values, values)


def test_two_teachers_have_the_published_weights() -> None:
    logits = torch.tensor([[[0.9, 0.05, 0.05], [0.4, 0.3, 0.3]]]).log()
    weights = confidence_weights(cross_entropies(logits, batch_of(0)))
    torch.testing.assert_close(weights, torch.tensor([[0.692308, 0.307692]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_rows_sum_to_one_or_to_the_releases_share(count: int) -> None:
    teachers, batch = 9 * torch.randn(4, count, 3), batch_of(0, 1, 2, 0)
    for options, total in (({}, 1 / count), ({"sum_to_one": True}, 1.0)):
        method = CaMkd(CaMkdConfig.model_validate({"method": "ca_mkd", **options}))
        weights = method.weights(torch.zeros(4, 3), teachers, batch)
        assert weights.min() >= 0
        torch.testing.assert_close(weights.sum(dim=1), torch.full((4,), total))


def test_a_teacher_that_is_hopelessly_wrong_has_no_weight_and_the_right_ones_share_it() -> None:
    logits = torch.tensor([[[0.0, 999.0], [9.0, 0.0], [9.0, 0.0]]])
    weights = confidence_weights(cross_entropies(logits, batch_of(0)))
    torch.testing.assert_close(weights, torch.tensor([[0.0, 0.5, 0.5]]))


def test_under_mixup_both_labels_count_in_proportion() -> None:
    logits, labels = torch.randn(3, 2, 4), torch.tensor([0, 1, 2])
    mixed = Batch(labels, labels, labels, labels, 0, labels.flip(0), torch.tensor([1.0, 0.25, 0.0]))
    errors = -logits.log_softmax(dim=2)
    expected = [errors[0, :, 0], errors[1, :, 1], errors[2, :, 0]]
    torch.testing.assert_close(cross_entropies(logits, mixed), torch.stack(expected))
    other = Batch(labels, labels, labels, labels, 0, torch.tensor([3, 3, 3]), torch.full((3,), 0.25))
    blended = 0.25 * errors[1, :, 1] + 0.75 * errors[1, :, 3]
    torch.testing.assert_close(cross_entropies(logits, other)[1], blended)


def test_labels_are_needed_even_without_a_hard_term() -> None:
    assert CaMkdConfig.model_validate({"method": "ca_mkd", "hard_weight": 0}).needs_labels
