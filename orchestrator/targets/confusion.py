"""Which classes a generalist confuses: second moments of its predictions (arXiv 1503.02531, section 5.2).

The moments are sums over samples, which may come in any pieces; pieces of several workers add up from files. With very
many classes their matrix takes nearly all memory; in a process it exists once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from raydistill.runs.files import atomic_write

Matrix = Literal["correlation", "covariance"]

Batch = TypeVar("Batch")

EXACT_CLASSES = 4000  # up to which products are summed in float64
SMALLEST_VARIANCE = 1e-12  # a class that is never predicted is correlated with nothing
ROWS_AT_ONCE = 256
SUMS, PRODUCTS = "sums.npy", "products.npy"  # of saved moments
SAVED_AT_ONCE = 1 << 32  # bytes that the pieces of a sum may take on disk
PIECES = 16  # at most: more workers than that are no help


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
        """No samples yet. With very many classes products are summed in float32: half of a matrix that is C² large."""
        kind = np.float64 if num_classes <= EXACT_CLASSES else np.float32
        return cls(0, np.zeros(num_classes), np.zeros((num_classes, num_classes), kind, order="F"))

    def add(self, probabilities: NDArray[np.float32]) -> None:
        """Take the predictions (B, C) of more samples."""
        from scipy.linalg.blas import dsyrk, ssyrk

        values = np.asfortranarray(probabilities.T, dtype=self.second.dtype)
        self.count += values.shape[1]
        self.first += values.sum(axis=1, dtype=np.float64)
        add_products = ssyrk if self.second.dtype == np.float32 else dsyrk
        self.second = add_products(1.0, values, beta=1.0, c=self.second, lower=True, overwrite_c=True)

    def save(self, path: Path) -> None:
        """Write them to a folder that is there: the matrix first, so that with `SUMS` all of it is there."""
        # As it lies in memory: a copy would be a second matrix.
        for name, values in ((PRODUCTS, self.second.T), (SUMS, np.array([self.count, *self.first]))):
            with atomic_write(path / name) as temporary, temporary.open("wb") as stream:
                np.save(stream, values, allow_pickle=False)

    @classmethod
    def added_up(cls, paths: Sequence[Path]) -> "Moments":
        """The sums of what was saved, in the order of the folders: the same bytes whoever saved them, and when."""
        first, *others = paths
        sums = np.load(first / SUMS, allow_pickle=False)
        products = np.load(first / PRODUCTS, allow_pickle=False)
        for path in others:
            sums += np.load(path / SUMS, allow_pickle=False)
            mapped = np.load(path / PRODUCTS, mmap_mode="r", allow_pickle=False)
            for rows in _blocks(len(products)):
                products[rows] += mapped[rows]
        return cls(int(sums[0]), sums[1:], products.T)

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


def pieces_of(batches: Sequence[Batch], num_classes: int) -> list[Sequence[Batch]]:
    """Divide batches among workers: in as many parts, about equally long, as their sums may take room on disk. No
    matter how many workers there are, as sums of other parts would round differently."""
    size = num_classes**2 * (8 if num_classes <= EXACT_CLASSES else 4)
    count = min(len(batches), max(1, min(PIECES, SAVED_AT_ONCE // size)))
    ends = [len(batches) * index // count for index in range(count + 1)]
    return [batches[start:stop] for start, stop in pairwise(ends)]


def _blocks(rows: int) -> Iterator[slice]:
    return (slice(start, start + ROWS_AT_ONCE) for start in range(0, rows, ROWS_AT_ONCE))


def _mirror_lower_triangle(matrix: NDArray[np.floating]) -> None:
    """Make a square matrix symmetric in place, block by block."""
    for rows in _blocks(len(matrix)):
        square = matrix[rows, rows]
        square[...] = np.tril(square) + np.tril(square, -1).T
        matrix[rows, rows.stop :] = matrix[rows.stop :, rows].T
