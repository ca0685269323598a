"""Inputs that a program has in its hands, a few at a time: pictures as bytes or by their paths, and arrays."""

import base64
import binascii
import io
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from raydistill.errors import PlanError
from raydistill.inference.batches import Batch, Picture, decoded, regrouped
from raydistill.inference.form import Form
from raydistill.inference.labels import ranked
from raydistill.prediction import Predictor, as_batch
from raydistill.tasks.array_files import read_header
from raydistill.tasks.task import Task
from raydistill.training.evaluation import BATCH


@dataclass(frozen=True)
class Answering:
    """A model that is asked again and again, by any number of threads. What it cannot read is a `PlanError`."""

    probabilities: Callable[[Tensor], Tensor]
    """Of raw inputs (B, ...): (B, C) float32."""
    class_names: Sequence[str]
    """Of all C classes."""
    form: Form
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, predictor: Predictor, task: Task) -> "Answering":
        """What a model that was loaded says; a class that has no name is called by its number."""
        names, count = predictor.first.class_names, predictor.first.description["num_classes"]
        return cls(
            lambda raw: torch.softmax(predictor.logits(raw), dim=1),
            (*names, *map(str, range(len(names), count))),
            Form.of(predictor.first, task),
        )

    def pictures(self, pictures: Sequence[bytes | Path]) -> NDArray[np.float32]:
        """Probabilities (N, C) of encoded pictures, or of files of such."""
        if not self.form.takes_pictures:
            raise PlanError(f"the model takes numbers of shape {self.form.shape}, not pictures")
        named = [
            Picture(f"picture {place}", one, f"picture {place}" if isinstance(one, bytes) else None)
            for place, one in enumerate(pictures)
        ]
        return self._of_batches(list(regrouped(decoded(named, self.form.decode))))

    def arrays(self, inputs: ArrayLike) -> NDArray[np.float32]:
        """Probabilities (N, C) of an array of inputs (N, ...), or of one: of pictures bytes or numbers in [0, 1], of
        all else what it was trained on."""
        values = as_batch(np.asarray(inputs), "the batch", self.form.shape, self.form.dtype).numpy()
        if values.dtype.kind == "f" and len(values):
            self._check(values)
        starts = range(0, len(values), BATCH)
        sources = [str(row) for row in range(len(values))]
        return self._of_batches(
            [Batch(sources[start : start + BATCH], values[start : start + BATCH]) for start in starts]
        )

    def _check(self, values: NDArray[np.float32]) -> None:
        if not np.isfinite(values).all():
            raise PlanError("the batch has numbers that are not finite")
        # Grey levels of 0 to 255 would be taken for pixels without a word.
        if self.form.takes_pictures and (values.min() < 0 or values.max() > 1):
            raise PlanError("pixels as numbers are in [0, 1]; give those of 0 to 255 as bytes (uint8)")

    def ranked(self, probabilities: NDArray[np.float32], top: int) -> list[tuple[tuple[str, float], ...]]:
        """The `top` classes of each row with their probabilities, best first."""
        rows = Batch([""] * len(probabilities), probabilities)
        return [row.ranked for row in ranked(rows, torch.from_numpy(probabilities), self.class_names, top)]

    def _of_batches(self, batches: Sequence[Batch]) -> NDArray[np.float32]:
        for batch in batches:
            for error in batch.errors.values():
                raise PlanError(error)
        if not any(len(batch.values) for batch in batches):
            raise PlanError("there is no input")
        with self.lock:  # a forward pass takes all cores
            return torch.cat([self.probabilities(batch.raw) for batch in batches]).numpy()


def decoded_text(text: str, place: int) -> bytes:
    """The picture that a text holds in base64. `PlanError` calls it by its place."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise PlanError(f"picture {place} is a text, and no base64; a path is a `pathlib.Path`") from None


def array_of(content: bytes) -> NDArray[Any]:
    """The array of numbers that a .npy in memory holds. `PlanError` for what is none, or is cut off."""
    stream = io.BytesIO(content)
    try:
        shape, is_fortran, dtype = read_header(stream)
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
        values = np.frombuffer(content, dtype, offset=stream.tell())
        if len(values) != math.prod(shape):
            raise ValueError(f"it should hold {math.prod(shape)} values, and has {len(values)}")
        return values.reshape(shape, order="F" if is_fortran else "C")
    except Exception as error:  # numpy parses headers as Python, and raises what that raises
        raise PlanError(f"the array cannot be read: {' '.join(str(error).split())}") from None
