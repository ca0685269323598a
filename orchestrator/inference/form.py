"""What inputs of a model are: pictures that its task reads, or numbers of one shape."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raydistill.inference.batches import Batch, Picture
from raydistill.prediction import as_batch
from raydistill.tasks.task import GREY_LEVELS, Task
from raydistill.training.model_files import TrainedModel

BESIDE_INPUTS = ("label", "labels", "id", "ids", "split", "group", "groups")
"""Columns of a table that are no inputs, unless they are asked for."""


@dataclass(frozen=True)
class Form:
    """Inputs of `shape` and `dtype`, as the model takes them, and what the user said of his tables: their `columns`,
    and the `folder` where paths in them begin."""

    task: Task
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    takes_pictures: bool = True
    columns: Sequence[str] = ()
    folder: Path | None = None

    @classmethod
    def of(
        cls, model: TrainedModel, task: Task, columns: Sequence[str] = (), folder: Path | None = None
    ) -> "Form":
        """That of a model's inputs."""
        form = cls.described(model.description, task)
        return replace(form, columns=tuple(columns), folder=folder)

    @classmethod
    def described(cls, description: Mapping[str, Any], task: Task) -> "Form":
        """As the description of a model has it."""
        shape, values = tuple(description["input_shape"]), description.get("inputs", GREY_LEVELS)
        dtype = torch.int64 if description.get("input_dtype") == "int64" else torch.float32
        takes_pictures = len(shape) == 3 and shape[0] in (1, 3) and GREY_LEVELS in values
        return cls(task, shape, dtype, takes_pictures)

    def decode(self, picture: Picture) -> NDArray[np.uint8]:
        """The pixels (channels, height, width) that evaluation would see. `ValueError` names a picture that cannot be
        read."""
        return self.task.picture_input(picture.encoded(), self.shape, name=picture.name)

    def option(self, name: str) -> str | None:
        """An option of the model's task that is a text, such as the column where its inputs are."""
        value = getattr(self.task, name, None)
        return value if isinstance(value, str) else None

    def image(self, ending: str) -> str | None:
        """Where the task's own files that end so have a sample's picture: a column, or a tar's member."""
        return self.option("image") if getattr(self.task, "ending", None) == ending else None

    def batch(self, file: Path, first: int, rows: NDArray[Any]) -> Batch:
        """Rows of a file from the one with the number `first` on. What is not finite is an error of its row."""
        values = as_batch(self.arranged(rows), f"`{file}`", self.shape, self.dtype).numpy()
        sources = [f"{file}[{row}]" for row in range(first, first + len(rows))]
        if values.dtype.kind != "f":
            return Batch(sources, values)
        is_finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if is_finite.all():
            return Batch(sources, values)
        errors = {int(row): f"`{sources[row]}` is not finite" for row in np.flatnonzero(~is_finite)}
        return Batch(sources, values[is_finite], errors)

    def arranged(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Rows (N, ...) as the task arranges those of its own file, unless they have the model's shape already."""
        return rows if rows.shape[1:] == self.shape else self.task.arranged(rows)
