"""What `model.json` says about the weights beside it, checked before anything is built: it may come from anybody."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from torch import Tensor

from raydistill.errors import StoreError
from raydistill.plan.model import ModelConfig
from raydistill.runs.files import message_of, read_json

DESCRIPTION = "model.json"
MOST_BYTES = 64 * 2**20  # 15,000 long class names are 2 MB, a mean per value of a 512 x 512 picture 16 MB
MOST_INPUTS = 2**24  # values of one input: a picture of 2,300 x 2,300

Count = Annotated[int, Field(ge=1, strict=True)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class ModelDescription(BaseModel):
    """The parts of `model.json` that a model is built and used by. Mean and deviation are nested lists, or numbers."""

    model_config = ConfigDict(frozen=True)

    model: ModelConfig
    made_from: dict[str, Any] | None = None
    num_classes: Count
    input_shape: tuple[Count, ...]
    input_dtype: str = "float32"
    class_names: tuple[str, ...]
    mean: Any
    std: Any
    task: dict[str, Any]
    logit_offset: tuple[Finite, ...] = ()

    @field_validator("model", mode="before")
    @classmethod
    def _classes_are_written_out(cls, raw: Any) -> Any:
        """In a plan they may be a file; whoever sends a model does not choose what we read."""
        classes = raw.get("classes") if isinstance(raw, Mapping) else None
        names = classes.get("names") if isinstance(classes, Mapping) else classes
        if isinstance(names, str):
            raise ValueError("the names of `classes` are not written out")
        if isinstance(classes, Mapping) and classes.get("matrix") is not None:
            raise ValueError("the matrix of `classes` is not among the weights")
        return raw

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = len(self.class_names)
        # A model may be given more outputs than its task has classes; a task may not know their names.
        if 0 < names < self.num_classes and self.model.num_classes is None:
            raise ValueError(f"`class_names` has {names} names for {self.num_classes} classes")
        if self.logit_offset and len(self.logit_offset) != self.num_classes:
            raise ValueError(f"`logit_offset` has {len(self.logit_offset)} of {self.num_classes} values")
        if math.prod(self.input_shape) > MOST_INPUTS:
            raise ValueError(f"`input_shape` has more than {MOST_INPUTS:,} values")
        if bool((statistics(self.std, self.input_shape, "std") <= 0).any()):
            raise ValueError("`std` is not greater than 0 everywhere")
        statistics(self.mean, self.input_shape, "mean")
        return self


def statistics(values: Any, shape: tuple[int, ...], name: str) -> Tensor:
    """A mean or deviation that fits inputs of `shape`; `ValueError` when it does not, or is not finite."""
    try:
        tensor = torch.tensor(values, dtype=torch.float32)
        fits = torch.broadcast_shapes(tensor.shape, shape) == torch.Size(shape)
    except (TypeError, ValueError, RuntimeError, RecursionError):
        raise ValueError(f"`{name}` is no array of numbers that fits inputs of {shape}") from None
    if not fits or not bool(tensor.isfinite().all()):
        raise ValueError(f"`{name}` is not finite, or does not fit inputs of {shape}")
    return tensor


def read_description(folder: Path) -> tuple[dict[str, Any], ModelDescription]:
    """`model.json` as it stands, and checked; `StoreError` names the file and what is wrong with it."""
    file = folder / DESCRIPTION
    if file.is_file() and file.stat().st_size > MOST_BYTES:
        raise StoreError(f"`{file}` is damaged: it is larger than {MOST_BYTES // 2**20} MiB")
    values = read_json(file)
    try:
        return values, ModelDescription.model_validate(values)
    except RecursionError:
        raise StoreError(f"`{file}` is damaged: it is nested too deep") from None
    except ValidationError as error:
        raise StoreError(f"`{file}` is damaged: {message_of(error)}") from None
