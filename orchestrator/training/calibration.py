"""How far a model's probabilities can be trusted, and what it confuses: plain counting over numpy arrays.

Calibration as in Guo et al. 2017 (arXiv 1706.04599, §2): samples are sorted by the confidence of their prediction
into bins of equal width, and in each bin the mean confidence is compared with the accuracy.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raydistill.metrics import WorstClassRecall

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]

SIGNIFICANT = 0.05  # how often guessing may look better than guessing
NAMED = 3


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


def bins_by_confidence(confidence: Floats, is_right: NDArray[np.bool], bins: int = 15) -> ReliabilityBins:
    """Of the probabilities (N,) that N samples' predicted classes have, and of which predictions are right, (N,)."""
    confidence = confidence.astype(np.float64)
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


def confusion_matrix(predicted: Integers, labels: Integers, num_classes: int) -> NDArray[np.int64]:
    """Counts (C, C): row = true class, column = predicted class."""
    pairs = labels.astype(np.int64) * num_classes + predicted
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def chance_of_guessing(right: int, samples: int, share: float) -> float:
    """The probability that answers which are each right with probability `share` are right `right` times or more."""
    if right <= samples * share:
        return 1.0  # at least about a half
    total, odds = 0.0, math.log(share) - math.log1p(-share)
    term = samples * math.log1p(-share) + right * odds
    term += math.lgamma(samples + 1) - math.lgamma(right + 1) - math.lgamma(samples - right + 1)
    for count in range(right, samples + 1):
        total += math.exp(term)
        if count < samples:
            term += odds + math.log((samples - count) / (count + 1))
    return min(total, 1.0)


def chance_of_recalls(predicted: Integers, labels: Integers, num_classes: int) -> float:
    """The probability that answers which know nothing of the labels, given as often as these, have recalls whose mean
    over the classes is as large as theirs; by the normal distribution."""
    counts = np.bincount(labels, minlength=num_classes)
    right = np.bincount(labels[predicted == labels], minlength=num_classes)
    there = counts > 0
    given = np.bincount(predicted, minlength=num_classes)[there] / len(labels)
    above = float((right[there] / counts[there] - given).sum())
    variance = float((given * (1 - given) / counts[there]).sum())
    return 0.5 * math.erfc(above / math.sqrt(2 * variance)) if variance else 1.0


def doubts(predicted: Integers, labels: Integers, class_names: Sequence[str]) -> Iterator[str]:
    """What a judgement of N predictions casts doubt on: a model that is no better than the most frequent class, and
    does not know the others either, or that never says some class. Fewer samples than can tell say nothing about the
    first."""
    counts = np.bincount(labels, minlength=len(class_names))
    samples, most = len(labels), int(counts.argmax())
    share, right = counts[most] / max(samples, 1), int((predicted == labels).sum())
    can_tell = 0 < share < 1 and samples * math.log(share) < math.log(SIGNIFICANT)
    # Who was trained to know rare classes is right less often than who always says the most frequent one.
    if (
        can_tell
        and chance_of_guessing(right, samples, float(share)) > SIGNIFICANT
        and chance_of_recalls(predicted, labels, len(class_names)) > SIGNIFICANT
    ):
        yield (
            f"accuracy {100 * right / samples:.1f} % is at the level of chance: `{class_names[most]}` alone has"
            f" {100 * share:.1f} % of the {samples:,} samples; whoever learns from this model learns little: look at"
            " its data, learning rate and epochs"
        )
    unsaid = np.flatnonzero((counts > 0) & (np.bincount(predicted, minlength=len(counts)) == 0))
    if len(unsaid):
        named = ", ".join(f"`{class_names[label]}`" for label in unsaid[:NAMED])
        more = f" and {len(unsaid) - NAMED:,} more" if len(unsaid) > NAMED else ""
        yield (
            f"classes that are never predicted: {named}{more}, with {int(counts[unsaid].sum()):,} of the {samples:,}"
            f" samples; `{WorstClassRecall.name}` is 0"
        )
