"""Which classes a generalist confuses: second moments of its predictions (arXiv 1503.02531, section 5.2).

The moments are sums over samples, so that parts of the data can be summed anywhere and merged by adding.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Matrix = Literal["correlation", "covariance"]

SMALLEST_VARIANCE = 1e-12  # a class that is never predicted is correlated with nothing


@dataclass
class Moments:
    """`count` samples, the sum of their probabilities (C,), and of the products of any two (C, C)."""

    count: int
    first: NDArray[np.float64]
    second: NDArray[np.floating]

    @classmethod
    def empty(cls, num_classes: int) -> "Moments":
        """No samples yet. Above 4,000 classes products are summed in float32: half of a matrix that is C² large."""
        kind = np.float64 if num_classes <= 4000 else np.float32
        return cls(0, np.zeros(num_classes), np.zeros((num_classes, num_classes), kind))

    def add(self, probabilities: NDArray[np.float32]) -> None:
        """Take the predictions (B, C) of more samples."""
        values = probabilities.astype(self.second.dtype)
        self.count += len(values)
        self.first += values.sum(axis=0, dtype=np.float64)
        self.second += values.T @ values

    def merge(self, other: "Moments") -> None:
        """Take the samples of another part."""
        self.count += other.count
        self.first += other.first
        self.second += other.second

    def similarity(self, matrix: Matrix) -> NDArray[np.floating]:
        """Covariance or correlation of the classes' probabilities, (C, C), with zeros on the diagonal.

        The diagonal goes because a column's own variance is larger than all else in it: with it, every class is far
        from every other.
        """
        mean = self.first / self.count
        result = self.second / self.count
        result -= np.outer(mean, mean).astype(result.dtype)
        if matrix == "correlation":
            deviation = np.sqrt(np.maximum(np.diagonal(result), 0)).astype(np.float64)
            scale = np.where(deviation**2 > SMALLEST_VARIANCE, 1 / np.maximum(deviation, 1e-30), 0)
            result *= scale[:, None].astype(result.dtype)
            result *= scale[None, :].astype(result.dtype)
        np.fill_diagonal(result, 0)
        return result
