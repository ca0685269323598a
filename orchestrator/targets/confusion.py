"""Which classes a generalist confuses: second moments of its predictions (arXiv 1503.02531, section 5.2).

The moments are sums over samples, which may come in any pieces. With very many classes their matrix takes nearly all
memory; it exists once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Matrix = Literal["correlation", "covariance"]

SMALLEST_VARIANCE = 1e-12  # a class that is never predicted is correlated with nothing
ROWS_AT_ONCE = 256


class Similarity(NamedTuple):
    """Covariance or correlation of the classes' probabilities, (C, C), with zeros on the diagonal.

    The outer product of `chance` (C,) with itself is what centring took off: what classes fall short by that are never
    predicted together.
    """

    values: NDArray[np.floating]
    chance: NDArray[np.float64]

    def together(self) -> NDArray[np.floating]:
        """The matrix before it was centred, (C, C): how much two classes are predicted together, 0 for never.

        Uses the values up: the result lies in their place.
        """
        result = self.values
        for rows in _blocks(len(result)):
            result[rows] += np.outer(self.chance[rows], self.chance)
        np.maximum(result, 0, out=result)  # up to rounding
        np.fill_diagonal(result, 0)
        return result


@dataclass
class Moments:
    """`count` samples, sums of their probabilities (C,) and of the products of any two, (C, C), lower triangle."""

    count: int
    first: NDArray[np.float64]
    second: NDArray[np.floating]

    @classmethod
    def empty(cls, num_classes: int) -> "Moments":
        """No samples yet. Above 4,000 classes products are summed in float32: half of a matrix that is C² large."""
        kind = np.float64 if num_classes <= 4000 else np.float32
        return cls(0, np.zeros(num_classes), np.zeros((num_classes, num_classes), kind, order="F"))

    def add(self, probabilities: NDArray[np.float32]) -> None:
        """Take the predictions (B, C) of more samples."""
        from scipy.linalg.blas import dsyrk, ssyrk

        values = np.asfortranarray(probabilities.T, dtype=self.second.dtype)
        self.count += values.shape[1]
        self.first += values.sum(axis=1, dtype=np.float64)
        add_products = ssyrk if self.second.dtype == np.float32 else dsyrk
        self.second = add_products(1.0, values, beta=1.0, c=self.second, lower=True, overwrite_c=True)

    def similarity(self, matrix: Matrix) -> Similarity:
        """How alike the classes' probabilities are.

        Uses the sums up: the result lies in their place. The diagonal goes because a column's own variance is larger
        than all else in it: with it, every class is far from every other.
        """
        result, mean = self.second, self.first / self.count
        _mirror_lower_triangle(result)
        variance = np.maximum(np.diagonal(result) / self.count - mean**2, 0)
        scale = np.ones_like(mean)
        if matrix == "correlation":
            scale = np.where(
                variance > SMALLEST_VARIANCE, 1 / np.sqrt(np.maximum(variance, SMALLEST_VARIANCE)), 0
            )
        for rows in _blocks(len(mean)):
            centred = result[rows] / self.count - np.outer(mean[rows], mean)
            result[rows] = centred * np.outer(scale[rows], scale)
        np.fill_diagonal(result, 0)
        return Similarity(result, mean * scale)


def _blocks(rows: int) -> Iterator[slice]:
    return (slice(start, start + ROWS_AT_ONCE) for start in range(0, rows, ROWS_AT_ONCE))


def _mirror_lower_triangle(matrix: NDArray[np.floating]) -> None:
    """Make a square matrix symmetric in place, block by block."""
    for rows in _blocks(len(matrix)):
        square = matrix[rows, rows]
        square[...] = np.tril(square) + np.tril(square, -1).T
        matrix[rows, rows.stop :] = matrix[rows.stop :, rows].T
