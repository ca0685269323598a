"""Items of a user's Dataset, read by DataLoader workers while training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from raydistill.tasks.cuts import three_parts
from raydistill.tasks.dataset_items import checked, collated, item, opened
from raydistill.tasks.devices import all_to_device, to_device
from raydistill.tasks.hashing import fold_key, smallest_hashes
from raydistill.tasks.normalisation import Normalisation, channel_statistics
from raydistill.tasks.seeds import PIXEL_STATISTICS
from raydistill.tasks.splits import TaskData, View, task_data, tensor_split
from raydistill.tasks.task import Arrays

if TYPE_CHECKING:
    from raydistill.tasks.datasets import Datasets

STATISTICS_ITEMS = 2048


@dataclass(frozen=True, eq=False)
class DatasetSplit:
    """Items `rows` (N,), on the CPU, of the Dataset of one split, delivered where `labels` are. Views do nothing."""

    task: Datasets
    name: str
    rows: Tensor
    labels: Tensor
    ids: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, positions: Tensor) -> DatasetSplit:
        positions = positions.to(self.labels.device)
        rows = self.rows[positions.cpu()]
        return replace(self, rows=rows, labels=self.labels[positions], ids=self.ids[positions])

    def to(self, device: torch.device | str) -> DatasetSplit:
        return replace(self, labels=self.labels.to(device), ids=self.ids.to(device))

    def batches(self, order: Sequence[Tensor], view: View | None) -> Iterator[Tensor]:
        device = self.labels.device
        loader = DataLoader(
            _Inputs(self.task, self.name),
            batch_sampler=[self.rows[positions].tolist() for positions in all_to_device(order, "cpu")],
            num_workers=self.task.workers,
            pin_memory=device.type != "cpu",
            generator=torch.Generator(),  # or the loader draws from torch's, and resuming would not repeat exactly
            collate_fn=_Collate(self.task, self.name),
        )
        for batch in loader:
            if isinstance(batch, str):
                raise ValueError(batch)
            inputs = to_device(batch, device)
            yield inputs.float().div_(255) if inputs.dtype == torch.uint8 else inputs


class _Inputs(Dataset[object]):
    """Position → the input of an item, or the error: returned, as torch would wrap one that a worker raises."""

    def __init__(self, task: Datasets, name: str) -> None:
        self.task, self.name, self.dataset = task, name, opened(task)[name]

    def __getitem__(self, position: int) -> object:
        try:
            return item(self.task, self.name, self.dataset, position)[0]
        except ValueError as error:
            return error


@dataclass(frozen=True)
class _Collate:
    task: Datasets
    name: str

    def __call__(self, inputs: list[object]) -> Tensor | str:
        try:
            for value in inputs:
                if isinstance(value, ValueError):
                    raise value
            batch = checked(self.task, self.name, collated(self.task, self.name, inputs))
        except ValueError as error:
            return str(error)
        nothing = np.zeros(len(batch), dtype=np.int64)
        return tensor_split(Arrays(batch, nothing, nothing)).inputs


def build_streamed_data(task: Datasets, parts: Mapping[str, Arrays]) -> TaskData:
    """The splits; mean and deviation are those of as many labelled training items as `STATISTICS_ITEMS`, by hash."""
    whose = {name: name if name in parts else "train" for name in ("train", "validation", "test")}
    splits = {
        name: DatasetSplit(
            task, whose[name], *(torch.from_numpy(v) for v in (part.inputs, part.labels, part.ids))
        )
        for name, part in three_parts(task, parts).items()
    }
    if task.input_dtype == "int64":
        return task_data(task, splits, Normalisation(torch.zeros(()), torch.ones(())))
    labelled = (splits["train"].labels >= 0).nonzero()[:, 0]
    ids = splits["train"].ids[labelled].numpy()
    chosen = smallest_hashes(ids, min(len(ids), STATISTICS_ITEMS), fold_key(PIXEL_STATISTICS))
    order = labelled[torch.from_numpy(chosen)].split(256)
    inputs = torch.cat(list(splits["train"].batches(order, None)))
    return task_data(task, splits, Normalisation(*channel_statistics(inputs)))
