"""Samples as the loop sees them: a split yields batches of float32 inputs in the order it is asked for.

What fits in memory is one tensor on the device (`TensorSplit`), a batch is an index into it. Pictures in folders
(`raydistill.tasks.folder_split.FolderSplit`) are decoded by workers under the same contract.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raydistill.tasks.cuts import three_parts
from raydistill.tasks.devices import all_to_device
from raydistill.tasks.labels import UNLABELLED
from raydistill.tasks.normalisation import Normalisation, channel_statistics

if TYPE_CHECKING:
    from raydistill.tasks.task import Arrays, Task


@dataclass(frozen=True)
class View:
    """Names one augmented view of every sample: what is drawn for it depends on these two and the sample's id."""

    seed: int
    index: int


class Split(Protocol):
    """Samples with stable ids; `ids` and `labels` are (N,) int64, and lie on the split's device. A training sample
    without a label has `UNLABELLED`."""

    @property
    def ids(self) -> Tensor: ...

    @property
    def labels(self) -> Tensor: ...

    def __len__(self) -> int: ...

    def select(self, positions: Tensor) -> Self:
        """The samples at these positions, in their order."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """The same samples, delivered on `device`."""
        ...

    def batches(self, order: Sequence[Tensor], view: View | None) -> Iterator[Tensor]:
        """For each tensor of positions (B,): inputs (B, ...), images scaled to [0, 1], not normalised."""
        ...


def is_resident(split: Split) -> bool:
    """Whether all samples lie on the split's device, so that positions there are enough to make a batch of them."""
    return getattr(split, "is_resident", False)


@dataclass(frozen=True)
class TaskData:
    """A task's three splits, and the normalisation that fits its inputs."""

    train: Split
    validation: Split
    test: Split
    num_classes: int
    class_names: tuple[str, ...]
    normalisation: Normalisation


@dataclass(frozen=True, eq=False)
class TensorSplit:
    """Samples in memory. uint8 inputs (N, ...) are images of 256 grey levels; others are float32, or int64 that stand
    for things. Views are ignored."""

    inputs: Tensor
    labels: Tensor
    ids: Tensor
    is_resident: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, positions: Tensor) -> TensorSplit:
        positions = positions.to(self.labels.device)
        return TensorSplit(self.inputs[positions], self.labels[positions], self.ids[positions])

    def to(self, device: torch.device | str) -> TensorSplit:
        return TensorSplit(self.inputs.to(device), self.labels.to(device), self.ids.to(device))

    def batches(self, order: Sequence[Tensor], view: View | None) -> Iterator[Tensor]:
        for positions in all_to_device(order, self.inputs.device):
            inputs = self.inputs.index_select(0, positions)
            yield inputs.float().div_(255) if inputs.dtype == torch.uint8 else inputs


def build_task_data(task: Task, parts: Mapping[str, Arrays]) -> TaskData:
    """The splits of a task that fits in memory. `ValueError` names the first sample that is not valid."""
    parts = three_parts(task, parts)
    for name, part in parts.items():
        check_inputs(task, name, part)
    splits = {name: tensor_split(part) for name, part in parts.items()}
    inputs = splits["train"].inputs
    if inputs.dtype == torch.int64:
        return task_data(task, splits, Normalisation(torch.zeros(()), torch.ones(())))
    # Of what has a label: a baseline is the same whatever lies beside that.
    if not (has_label := splits["train"].labels != UNLABELLED).all():
        inputs = inputs[has_label]
    return task_data(task, splits, Normalisation(*channel_statistics(inputs)))


def task_data(task: Task, splits: Mapping[str, Split], normalisation: Normalisation) -> TaskData:
    """A task with these splits."""
    names = task.class_names
    three = (splits["train"], splits["validation"], splits["test"])
    return TaskData(*three, len(names), names, normalisation)


def check_inputs(task: Task, split: str, part: Arrays) -> None:
    """`ValueError` unless the inputs are finite numbers of the task's shape."""
    if part.inputs.shape[1:] != task.input_shape:
        raise ValueError(
            f"task `{task.name}`: inputs are {part.inputs.shape[1:]}, expected {task.input_shape}"
        )
    if not task.input_shape:
        raise ValueError(f"task `{task.name}`: an input is a single number; give it a shape such as (1,)")
    if part.inputs.dtype.kind == "f" and not np.isfinite(part.inputs).all():
        finite = np.isfinite(part.inputs).reshape(len(part.ids), -1).all(axis=1)
        raise ValueError(f"task `{task.name}`: sample {part.ids[~finite][0]} of `{split}` is not finite")
    if part.inputs.dtype.kind not in "fiub":
        raise ValueError(f"task `{task.name}`: inputs are {part.inputs.dtype}, not numbers")


def tensor_split(part: Arrays) -> TensorSplit:
    """Arrays as they are in memory: bytes, int64 or float32."""
    is_bytes, is_integer = part.inputs.dtype == np.uint8, part.inputs.dtype.kind in "iu"
    inputs = part.inputs if is_bytes else part.inputs.astype(np.int64 if is_integer else np.float32)
    return TensorSplit(_tensor(inputs), _tensor(part.labels), _tensor(part.ids))


def _tensor(values: NDArray[np.generic]) -> Tensor:
    # Arrays over a file's bytes are read-only, which torch warns about: those are copied.
    return torch.from_numpy(np.require(values, requirements=["C", "W"]))
