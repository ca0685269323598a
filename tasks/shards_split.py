"""A split whose pixels are memory-mapped: a batch is gathered from the page cache, and the whole is never in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from raydistill.tasks.cuts import three_parts
from raydistill.tasks.devices import all_to_device, to_device
from raydistill.tasks.hashing import fold_key, smallest_hashes
from raydistill.tasks.labels import UNLABELLED
from raydistill.tasks.normalisation import Normalisation, channel_statistics
from raydistill.tasks.seeds import PIXEL_STATISTICS
from raydistill.tasks.splits import TaskData, View, task_data
from raydistill.tasks.task import Arrays

if TYPE_CHECKING:
    from raydistill.tasks.many_class import ManyClass
    from raydistill.tasks.pixel_cache import Pixels

STATISTICS_BYTES = 2**28


@dataclass(frozen=True, eq=False)
class ShardsSplit:
    """Rows (N,) of `pixels` (M, C, H, W) uint8, both in the machine's memory; delivered on the labels' device."""

    pixels: Tensor
    rows: Tensor
    labels: Tensor
    ids: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, positions: Tensor) -> ShardsSplit:
        positions = positions.to(self.labels.device)
        return replace(
            self, rows=self.rows[positions.cpu()], labels=self.labels[positions], ids=self.ids[positions]
        )

    def to(self, device: torch.device | str) -> ShardsSplit:
        return replace(self, labels=self.labels.to(device), ids=self.ids.to(device))

    def batches(self, order: Sequence[Tensor], view: View | None) -> Iterator[Tensor]:
        device = self.labels.device
        for positions in all_to_device(order, "cpu"):
            pixels = self.pixels.index_select(0, self.rows[positions])
            yield to_device(pixels, device).float().div_(255)


def build_shards_data(task: ManyClass, parts: Mapping[str, Arrays], pixels: Mapping[str, Pixels]) -> TaskData:
    """The splits of `parts`, whose inputs are rows of `pixels`.

    Mean and standard deviation are those of the labelled training pictures, or of as many, chosen by hash, as fit into
    `STATISTICS_BYTES`.
    """
    files = {name: torch.from_numpy(values) for name, values in pixels.items()}
    splits = {
        name: _split(files.get(name, files["train"]), part) for name, part in three_parts(task, parts).items()
    }
    train = splits["train"].select((splits["train"].labels != UNLABELLED).nonzero()[:, 0])
    count = min(len(train), STATISTICS_BYTES // max(train.pixels[:1].numel(), 1))
    chosen = torch.from_numpy(smallest_hashes(train.ids.numpy(), count, fold_key(PIXEL_STATISTICS)))
    statistics = channel_statistics(train.pixels.index_select(0, train.rows[chosen]))
    return task_data(task, splits, Normalisation(*statistics))


def _split(pixels: Tensor, part: Arrays) -> ShardsSplit:
    return ShardsSplit(
        pixels, torch.from_numpy(part.inputs), torch.from_numpy(part.labels), torch.from_numpy(part.ids)
    )
