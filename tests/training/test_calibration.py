"""Calibration and confusion against a loop over samples, and against values worked out by hand."""

import math
from typing import Any

import numpy as np
import pytest

from raydistill.training.calibration import (
    ReliabilityBins,
    bins_by_confidence,
    chance_of_guessing,
    chance_of_recalls,
    confusion_matrix,
    doubts,
)


def random_predictions(samples: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    logits = draw.normal(size=(samples, classes)) * 3
    exponentials = np.exp(logits)
    return exponentials / exponentials.sum(axis=1, keepdims=True), draw.integers(classes, size=samples)


def reliability_bins(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> ReliabilityBins:
    return bins_by_confidence(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels, bins)


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    return reliability_bins(probabilities, labels, bins).error


def slow_ece(probabilities: np.ndarray, labels: np.ndarray, bins: int) -> float:
    total = 0.0
    for index in range(bins):
        confidences, hits = [], []
        for row, label in zip(probabilities, labels, strict=True):
            if index / bins < max(row) <= (index + 1) / bins:
                confidences.append(max(row))
                hits.append(list(row).index(max(row)) == label)
        if hits:
            gap = abs(sum(hits) / len(hits) - sum(confidences) / len(confidences))
            total += len(hits) / len(labels) * gap
    return total


@pytest.mark.parametrize(("classes", "bins"), [(2, 15), (10, 15), (100, 15), (3, 7)])
def test_calibration_error_equals_that_of_a_loop_over_samples(classes: int, bins: int) -> None:
    probabilities, labels = random_predictions(400, classes, seed=classes)
    assert expected_calibration_error(probabilities, labels, bins) == pytest.approx(
        slow_ece(probabilities, labels, bins), abs=1e-12
    )


def test_calibration_error_of_three_samples_by_hand() -> None:
    # Two samples of confidence 0.9, one right: |0.5 - 0.9| = 0.4. One of 0.6, right: 0.4.
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])
    assert expected_calibration_error(probabilities, np.array([0, 1, 1])) == pytest.approx(0.4)
    # In a single bin the distances cancel: |2/3 - 0.8|.
    assert expected_calibration_error(probabilities, np.array([0, 1, 1]), bins=1) == pytest.approx(2 / 15)


def test_certain_and_right_predictions_are_perfectly_calibrated() -> None:
    assert expected_calibration_error(np.eye(4), np.arange(4)) == 0
    assert expected_calibration_error(np.eye(4), (np.arange(4) + 1) % 4) == 1


def test_a_confidence_on_an_edge_belongs_to_the_lower_bin() -> None:
    bins = reliability_bins(np.array([[0.6, 0.4], [0.61, 0.39]]), np.array([0, 0]), bins=5)
    assert bins.counts.tolist() == [0, 0, 1, 1, 0]


def test_probabilities_beyond_the_ends_by_rounding_fall_into_the_outermost_bins() -> None:
    bins = reliability_bins(np.array([[1.0000001, 0.0], [0.0, 0.0]]), np.array([0, 1]))
    assert (bins.counts[0], bins.counts[-1], bins.counts.sum()) == (1, 1, 2)


def test_every_sample_is_in_one_bin_and_bins_average_to_the_whole() -> None:
    probabilities, labels = random_predictions(500, 5, seed=0)
    bins = reliability_bins(probabilities, labels)
    accuracy = (probabilities.argmax(axis=1) == labels).mean()
    assert bins.counts.sum() == 500
    assert (bins.counts * bins.accuracy).sum() / 500 == pytest.approx(accuracy)
    assert (bins.counts * bins.confidence).sum() / 500 == pytest.approx(probabilities.max(axis=1).mean())


def test_confusion_counts_true_classes_in_rows() -> None:
    predicted, labels = np.array([0, 1, 1, 0]), np.array([0, 1, 0, 2])
    assert confusion_matrix(predicted, labels, 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_confusion_equals_that_of_a_loop_over_samples() -> None:
    draw = np.random.default_rng(3)
    predicted, labels = draw.integers(100, size=2000), draw.integers(100, size=2000)
    expected = np.zeros((100, 100), dtype=int)
    for guess, label in zip(predicted, labels, strict=True):
        expected[label, guess] += 1
    assert (confusion_matrix(predicted, labels, 100) == expected).all()


def test_no_samples_give_zero_error_and_an_empty_matrix() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    assert expected_calibration_error(np.zeros((0, 3)), nothing) == 0
    assert confusion_matrix(nothing, nothing, 3).sum() == 0


@pytest.mark.parametrize(
    ("right", "samples", "share"), [(0, 5, 0.5), (3, 5, 0.5), (40, 90, 0.3), (97, 100, 0.97)]
)
def test_the_chance_of_guessing_is_the_tail_of_the_binomial(right: int, samples: int, share: float) -> None:
    tail = sum(
        math.comb(samples, k) * share**k * (1 - share) ** (samples - k) for k in range(right, samples + 1)
    )
    chance = chance_of_guessing(right, samples, share)
    assert chance == pytest.approx(1.0 if right <= samples * share else tail)


def test_a_model_at_chance_is_doubted_and_a_better_one_is_not() -> None:
    labels = np.arange(90) % 3
    (line,) = doubts((labels + (np.arange(90) // 3) % 3) % 3, labels, "abc")  # 30 of 90 right
    assert line.startswith(
        "accuracy 33.3 % is at the level of chance: `a` alone has 33.3 % of the 90 samples;"
    )
    assert not list(doubts(np.where(np.arange(90) < 45, labels, (labels + 1) % 3), labels, "abc"))
    assert not list(doubts(np.array([1, 0]), np.array([0, 1]), "ab"))  # two samples tell nothing


def test_the_chance_of_recalls_is_that_of_answers_dealt_at_random() -> None:
    random = np.random.default_rng(0)
    labels = random.choice(3, size=300, p=[0.6, 0.3, 0.1])
    for told in (0.05, 0.1, 0.15):  # how many answers know the label
        predicted = np.where(random.random(300) < told, labels, random.choice(3, size=300))

        def mean_recall(answers: Any) -> Any:
            return np.mean([(answers[labels == label] == label).mean() for label in range(3)])

        dealt = [mean_recall(random.permutation(predicted)) for _ in range(4000)]
        chance = np.mean(np.array(dealt) >= mean_recall(predicted))
        assert chance_of_recalls(predicted, labels, 3) == pytest.approx(chance, abs=0.03)
    assert chance_of_recalls(np.zeros(300, int), labels, 3) == 1


def test_a_model_that_knows_rare_classes_is_not_at_chance() -> None:
    """It is right less often than who says `usual` always: 90 of 160, and says which half is rare."""
    labels = np.array([0] * 100 + [1] * 30 + [2] * 30)
    predicted = np.array([0] * 40 + [1, 2] * 30 + [1] * 25 + [0] * 5 + [2] * 25 + [0] * 5)
    assert (predicted == labels).mean() < 100 / 160
    assert not list(doubts(predicted, labels, ["usual", "rare", "other"]))
    mixed = np.random.default_rng(1).permutation(predicted)
    assert [
        "at the level of chance" in line for line in doubts(mixed, labels, ["usual", "rare", "other"])
    ] == [True]


def test_a_model_that_never_says_the_rare_class_is_doubted() -> None:
    labels = np.array([0] * 97 + [1] * 3)
    chance, unsaid = doubts(np.zeros(100, int), labels, ["usual", "rare"])
    assert "accuracy 97.0 % is at the level of chance: `usual` alone has 97.0 %" in chance
    assert "never predicted: `rare`, with 3 of the 100 samples" in unsaid
