"""How far a model's probabilities can be trusted, and what it confuses: plain counting over numpy arrays.

Calibration as in Guo et al. 2017 (arXiv 1706.04599, §2): samples are sorted by the confidence of their prediction
into bins of equal width, and in each bin the mean confidence is compared with the accuracy.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]


class ReliabilityBins(NamedTuple):
    """One entry per bin; a bin is (edges[i], edges[i + 1]]. Empty bins have confidence and accuracy 0."""

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def error(self) -> float:
        """Expected calibration error: mean distance of confidence and accuracy, weighted by the counts."""
        distance = np.abs(self.accuracy - self.confidence)
        return float((self.counts * distance).sum() / max(int(self.counts.sum()), 1))


def reliability_bins(probabilities: Floats, labels: Integers, bins: int = 15) -> ReliabilityBins:
    """Mean confidence and accuracy of predictions (N, C), judged against labels (N,), by confidence."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    is_right = probabilities.argmax(axis=1) == labels
    edges = np.arange(bins + 1) / bins
    # Rounding can leave a probability at 0 or a hair above 1: both belong to the outermost bins.
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    divisor = np.maximum(counts, 1)
    return ReliabilityBins(
        edges,
        counts,
        np.bincount(place, weights=confidence, minlength=bins) / divisor,
        np.bincount(place, weights=is_right, minlength=bins) / divisor,
    )


def expected_calibration_error(probabilities: Floats, labels: Integers, bins: int = 15) -> float:
    """Mean distance between confidence and accuracy, weighted by the samples in each bin: from 0 to 1."""
    return reliability_bins(probabilities, labels, bins).error


def confusion_matrix(predicted: Integers, labels: Integers, num_classes: int) -> NDArray[np.int64]:
    """Counts (C, C): row = true class, column = predicted class."""
    pairs = labels.astype(np.int64) * num_classes + predicted
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
