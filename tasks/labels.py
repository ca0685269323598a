"""Samples that have a label, and those that have none."""

import numpy as np
from numpy.typing import NDArray

from raydistill.tasks.hashing import cut

UNLABELLED = -1
"""The label of a training sample that has none."""


def cut_labelled(
    ids: NDArray[np.int64], labels: NDArray[np.int64], fraction: float, key: int
) -> NDArray[np.bool_]:
    """Mark a part of the samples that have a label by hash, (N,) → (N,): the same ones whatever lies beside them."""
    chosen: NDArray[np.bool_] = labels != UNLABELLED
    chosen[chosen] = cut(ids[chosen], fraction, key)
    return chosen
