"""A split whose inputs are rows of an array in a file: a batch is gathered, the whole is never in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raydistill.tasks.cuts import three_parts
from raydistill.tasks.devices import all_to_device, to_device
from raydistill.tasks.hashing import fold_key, smallest_hashes
from raydistill.tasks.labels import UNLABELLED
from raydistill.tasks.normalisation import Normalisation, channel_statistics
from raydistill.tasks.seeds import PIXEL_STATISTICS
from raydistill.tasks.splits import TaskData, View, task_data, tensor_split
from raydistill.tasks.task import Arrays, Task

STATISTICS_BYTES = 2**28


@dataclass(frozen=True, eq=False)
class MappedSplit:
    """Samples `rows` (N,) of `stored` (M, ...), delivered where `labels` are. Views do nothing."""

    task: Task
    stored: NDArray[Any]
    rows: NDArray[np.int64]
    labels: Tensor
    ids: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, positions: Tensor) -> MappedSplit:
        positions = positions.to(self.labels.device)
        rows = self.rows[positions.cpu().numpy()]
        return replace(self, rows=rows, labels=self.labels[positions], ids=self.ids[positions])

    def to(self, device: torch.device | str) -> MappedSplit:
        return replace(self, labels=self.labels.to(device), ids=self.ids.to(device))

    def batches(self, order: Sequence[Tensor], view: View | None) -> Iterator[Tensor]:
        device = self.labels.device
        for positions in all_to_device(order, "cpu"):
            inputs = to_device(self.gather(positions.numpy()), device)
            yield inputs.float().div_(255) if inputs.dtype == torch.uint8 else inputs

    def gather(self, positions: NDArray[np.int64]) -> Tensor:
        """Inputs (B, ...) as they would be in memory: bytes, int64 or float32."""
        inputs = self.task.arranged(self.stored[self.rows[positions]])
        nothing = np.zeros(len(inputs), dtype=np.int64)
        return tensor_split(Arrays(inputs, nothing, nothing)).inputs


def build_mapped_data(
    task: Task, parts: Mapping[str, Arrays], stored: Mapping[str, NDArray[Any]]
) -> TaskData:
    """The splits of `parts`, whose inputs are rows of `stored`.

    Mean and deviation are those of the labelled training samples, or of as many, chosen by hash, as fit into
    `STATISTICS_BYTES`.
    """
    splits = {
        name: MappedSplit(
            task,
            stored.get(name, stored["train"]),
            part.inputs,
            torch.from_numpy(part.labels),
            torch.from_numpy(part.ids),
        )
        for name, part in three_parts(task, parts).items()
    }
    if task.input_dtype == "int64":
        return task_data(task, splits, Normalisation(torch.zeros(()), torch.ones(())))
    train = splits["train"].select((splits["train"].labels != UNLABELLED).nonzero()[:, 0])
    count = min(len(train), STATISTICS_BYTES // max(train.stored[:1].nbytes, 1))
    chosen = smallest_hashes(train.ids.numpy(), count, fold_key(PIXEL_STATISTICS))
    statistics = channel_statistics(train.gather(np.flatnonzero(chosen)))
    return task_data(task, splits, Normalisation(*statistics))
