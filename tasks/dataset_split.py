"""Items of a user's Dataset, read by processes of their own while training, the same ones from epoch to epoch."""

from __future__ import annotations

import io
import logging
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from raydistill.tasks.cuts import three_parts
from raydistill.tasks.dataset_items import checked, collated, item, opened
from raydistill.tasks.devices import all_to_device
from raydistill.tasks.hashing import fold_key, smallest_hashes
from raydistill.tasks.loaders import Loaders
from raydistill.tasks.normalisation import Normalisation, channel_statistics
from raydistill.tasks.seeds import PIXEL_STATISTICS
from raydistill.tasks.splits import TaskData, View, task_data, tensor_split
from raydistill.tasks.task import Arrays

if TYPE_CHECKING:
    from raydistill.tasks.datasets import Datasets

STATISTICS_ITEMS = 2048
MOST_SENT = 256 << 20  # bytes of Datasets that are sent to each process that reads them

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class DatasetSplit:
    """Items `rows` (N,), on the CPU, of the Dataset of one split, delivered where `labels` are. Views do nothing.

    The splits of a task share their `readers`.
    """

    readers: Readers
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
        positions = all_to_device(order, "cpu")
        requests = [Request(self.name, self.rows[part].tolist()) for part in positions]
        for inputs in self.readers.batches(requests, self.labels.device):
            yield inputs.float().div_(255) if inputs.dtype == torch.uint8 else inputs


@dataclass(frozen=True)
class Request:
    """A batch: positions (B,) among the items of a split."""

    name: str
    rows: Sequence[int]


class _Items(Dataset[Tensor]):
    """The user's Datasets, as processes that read them have them: `packed` is what they are made from there."""

    def __init__(self, task: Datasets, packed: bytes | None = None) -> None:
        self._task, self._packed = (task if packed is None else None), packed

    def __getitems__(self, request: Request) -> Tensor | ValueError:
        """The inputs (B, ...) of some items, or the error about the first that cannot be used."""
        try:
            task, datasets, shape = self._opened
            dataset = datasets[request.name]
            inputs = [item(task, request.name, dataset, row)[0] for row in request.rows]
            batch = checked(task, request.name, collated(task, request.name, inputs), shape)
        except ValueError as error:
            return error
        nothing = np.zeros(len(batch), dtype=np.int64)
        return tensor_split(Arrays(batch, nothing, nothing)).inputs

    @cached_property
    def _opened(self) -> tuple[Datasets, Mapping[str, Any], tuple[int, ...]]:
        """The task, its Datasets, and the shape of an input."""
        if self._packed is None:
            assert self._task is not None
            return self._task, opened(self._task), self._task.input_shape
        try:
            found: tuple[Datasets, Mapping[str, Any], tuple[int, ...]] = pickle.loads(self._packed)
        except Exception as error:  # whatever the user's classes do
            raise ValueError(f"{type(error).__name__}: {error}") from error
        return found


class Readers:
    """Processes that read a task's items, for all of its splits and from epoch to epoch.

    They are begun by the fork server and sent the Datasets, pickled. Of those that cannot be sent, are large, or read
    otherwise there than here, processes are forked, as torch would: a copy of all that is in memory is free then, but
    one of a process with threads. The log says why.
    """

    def __init__(self, task: Datasets) -> None:
        self.task, self._here = task, _Items(task)
        packed, reason = _packed(task) if task.workers else (None, None)
        if reason is None:
            self._loaders = Loaders(self._here if packed is None else _Items(task, packed), task.workers)
        else:
            self._fork(reason)
        self._is_sent = packed is not None

    def batches(self, requests: Sequence[Request], device: torch.device) -> Iterator[Tensor]:
        """The inputs of each request, in order, on a device. `ValueError` names an item that cannot be used."""
        done = 0
        try:
            for batch in self._loaders.batches(requests, device):
                yield batch
                done += 1
        except ValueError as error:
            if not self._is_sent or isinstance(self._here.__getitems__(requests[done]), ValueError):
                raise
            # What its module did before does not come along.
            self._is_sent = False
            self._fork(f"reads otherwise in a process of its own: {error}")
            yield from self._loaders.batches(requests[done:], device)

    def _fork(self, reason: str) -> None:
        logger.info("task `%s`: a Dataset %s; the processes that read it are forked", self.task.name, reason)
        self._here._opened  # noqa: B018 - before they are, so that they have it
        self._loaders = Loaders(self._here, self.task.workers, is_forked=True)


class _Full(Exception):  # noqa: N818 - never leaves this file
    """More than is sent to a process."""


class _Bounded(io.BytesIO):
    def write(self, content: Any) -> int:
        if self.tell() + memoryview(content).nbytes > MOST_SENT:
            raise _Full
        return super().write(content)


def _packed(task: Datasets) -> tuple[bytes | None, str | None]:
    """A task with its Datasets as they are sent, or why they are not."""
    stream = _Bounded()
    try:
        pickle.dump((task, opened(task), task.input_shape), stream, protocol=pickle.HIGHEST_PROTOCOL)
    except _Full:
        return None, f"takes more than {MOST_SENT >> 20} MiB, which every process would have to itself"
    except Exception as error:  # whatever the user's classes do
        text = (str(error).splitlines() or [""])[0]
        return None, f"cannot be sent to another process ({type(error).__name__}: {text})"
    content = stream.getvalue()
    if b"__main__" in content:
        return None, "is of a class of the script that runs, which other processes do not have"
    return content, None


def build_streamed_data(task: Datasets, parts: Mapping[str, Arrays]) -> TaskData:
    """The splits; mean and deviation are those of as many labelled training items as `STATISTICS_ITEMS`, by hash."""
    whose = {name: name if name in parts else "train" for name in ("train", "validation", "test")}
    readers = Readers(task)
    splits = {
        name: DatasetSplit(
            readers, whose[name], *(torch.from_numpy(v) for v in (part.inputs, part.labels, part.ids))
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
