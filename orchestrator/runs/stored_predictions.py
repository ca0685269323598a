"""What a model says about the samples of a split, as a stage stored it: logits in float16, labels and ids.

Of a split too large for all its logits, those of a sample, beside columns of all samples.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raydistill.errors import StoreError

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

OF_ALL = "all_"  # in the names of columns of all samples


class StoredColumns(NamedTuple):
    """Of all samples of a split: their ids and labels, the predicted classes, and these classes' probabilities."""

    ids: Integers
    labels: Integers
    predicted: Integers
    confidences: Floats

    @property
    def is_right(self) -> NDArray[np.bool]:
        """Which predictions are right, (N,)."""
        return self.predicted == self.labels


class StoredPredictions(NamedTuple):
    """What a model says about N samples of C classes. Where they are but a sample of the split, `columns` has all."""

    ids: Integers
    labels: Integers
    logits: Floats
    columns: StoredColumns | None = None

    @property
    def is_sample(self) -> bool:
        """Whether the split has more samples than these."""
        return self.columns is not None

    def of_all(self) -> StoredColumns:
        """Of the whole split."""
        if self.columns is not None:
            return self.columns
        return StoredColumns(self.ids, self.labels, self.predicted(), self.probabilities().max(axis=1))

    def probabilities(self, temperature: float = 1.0) -> Floats:
        """Softmax of the tempered logits, (N, C)."""
        return softmax(self.logits, temperature)

    def at(self, rows: Integers) -> "StoredPredictions":
        """The same model on some of the samples."""
        return StoredPredictions(self.ids[rows], self.labels[rows], self.logits[rows])

    def predicted(self) -> Integers:
        """The class of the largest logit, (N,)."""
        return self.logits.argmax(axis=1).astype(np.int64)


def load_predictions(path: Path) -> StoredPredictions:
    """Read the file; `StoreError` names it where a part is missing."""
    from safetensors.numpy import load_file

    tensors: dict[str, NDArray[Any]] = load_file(path)
    if missing := {"ids", "labels", "logits"} - tensors.keys():
        raise StoreError(f"`{path}` has no {', '.join(sorted(missing))}")
    logits = tensors["logits"].astype(np.float32)
    if "remainders" in tensors:  # of logits that are large for float16
        logits = logits + tensors["remainders"]
    columns = None
    if any(name.startswith(OF_ALL) for name in tensors):
        names = [OF_ALL + name for name in StoredColumns._fields]
        if missing := set(names) - tensors.keys():
            raise StoreError(f"`{path}` has no {', '.join(sorted(missing))}")
        columns = StoredColumns(*(tensors[name] for name in names))
    return StoredPredictions(tensors["ids"], tensors["labels"], logits, columns)


def softmax(logits: Floats, temperature: float = 1.0) -> Floats:
    """Probabilities of logits (N, C) at a temperature."""
    scaled = logits / np.float32(temperature)
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    probabilities: Floats = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities
