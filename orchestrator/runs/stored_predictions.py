"""What a model says about the samples of a split, as a stage stored it: logits in float16, labels and ids."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raydistill.errors import StoreError

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


class StoredPredictions(NamedTuple):
    """What a model says about N samples of C classes."""

    ids: Integers
    labels: Integers
    logits: Floats

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
    return StoredPredictions(tensors["ids"], tensors["labels"], logits)


def softmax(logits: Floats, temperature: float = 1.0) -> Floats:
    """Probabilities of logits (N, C) at a temperature."""
    scaled = logits / np.float32(temperature)
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    probabilities: Floats = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities
