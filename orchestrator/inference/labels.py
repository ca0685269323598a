"""The most probable classes of a batch of inputs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raydistill.inference.batches import Batch
from raydistill.prediction import Predictor


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one input, best first; or the `error` for which there are none."""

    source: str
    ranked: tuple[tuple[str, float], ...] = ()
    error: str | None = None


@dataclass(frozen=True, eq=False)
class Labelled:
    """Inputs by their `sources`, in their order: `errors` of some by their place among them; of the M others the most
    probable classes, best first, as names `labels` (M, K) and `probabilities` (M, K) float32."""

    sources: Sequence[str]
    labels: NDArray[np.object_]
    probabilities: NDArray[np.float32]
    errors: Mapping[int, str]

    @property
    def readable(self) -> list[str]:
        """The sources of the M that have labels."""
        return [source for place, source in enumerate(self.sources) if place not in self.errors]

    def __iter__(self) -> Iterator[Prediction]:
        rows = zip(self.labels.tolist(), self.probabilities.tolist(), strict=True)
        for place, source in enumerate(self.sources):
            if (error := self.errors.get(place)) is not None:
                yield Prediction(source, error=error)
            else:
                yield Prediction(source, tuple(zip(*next(rows), strict=True)))

    def without_errors(self) -> "Labelled":
        """Those that could be read."""
        return Labelled(self.readable, self.labels, self.probabilities, {})


def label(batch: Batch, predictor: Predictor, top: int) -> Labelled:
    """What a model says of a batch: all that could be read goes through it at once."""
    logits = predictor.logits(batch.raw) if len(batch.values) else torch.empty(0, 1)
    return ranked(batch, torch.softmax(logits, dim=1), predictor.first.class_names, top)


def ranked(batch: Batch, probabilities: Tensor, names: Sequence[str], top: int) -> Labelled:
    """The `top` classes of each input; a class beyond the `names` is called by its number."""
    count = probabilities.shape[1]
    values, indices = probabilities.topk(min(top, count))
    words = np.array([*names, *map(str, range(len(names), count))], dtype=object)
    return Labelled(batch.sources, words[indices.numpy()], values.numpy(), batch.errors)
