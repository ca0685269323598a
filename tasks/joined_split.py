"""Two splits as one: the second's samples come after the first's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from raydistill.tasks.devices import all_to_device
from raydistill.tasks.folder_split import FolderSplit
from raydistill.tasks.picture_store import FolderPictures
from raydistill.tasks.splits import Split, TensorSplit, View


def join(first: Split, second: Split) -> Split:
    """Both, in their order, on the CPU. `ValueError` for tensors that mean other things."""
    labels, ids = torch.cat([first.labels, second.labels]), torch.cat([first.ids, second.ids])
    if (
        isinstance(first, FolderSplit)
        and isinstance(second, FolderSplit)
        and isinstance(first.store, FolderPictures)
        and isinstance(second.store, FolderPictures)
    ):
        # An absolute path stays itself below any folder.
        files = [str(second.store.folder / path) for path in second.places.tolist()]
        places = np.concatenate([first.places, np.array(files, dtype=str)])
        return replace(first, places=places, labels=labels, ids=ids)
    if isinstance(first, TensorSplit) and isinstance(second, TensorSplit):
        if first.inputs.dtype != second.inputs.dtype:
            raise ValueError(
                f"inputs of {second.inputs.dtype} cannot stand beside the task's own of {first.inputs.dtype}: the"
                " numbers mean other things"
            )
        return TensorSplit(torch.cat([first.inputs, second.inputs]), labels, ids)
    return JoinedSplit(first, second, torch.arange(len(labels)), labels, ids)


@dataclass(frozen=True, eq=False)
class JoinedSplit:
    """Samples `rows` (N,), on the CPU, of `first` and `second`, counted through both."""

    first: Split
    second: Split
    rows: Tensor
    labels: Tensor
    ids: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, positions: Tensor) -> JoinedSplit:
        positions = positions.to(self.labels.device)
        return replace(
            self, rows=self.rows[positions.cpu()], labels=self.labels[positions], ids=self.ids[positions]
        )

    def to(self, device: torch.device | str) -> JoinedSplit:
        return JoinedSplit(
            self.first.to(device),
            self.second.to(device),
            self.rows,
            self.labels.to(device),
            self.ids.to(device),
        )

    def batches(self, order: Sequence[Tensor], view: View | None) -> Iterator[Tensor]:
        chosen = [self.rows[positions] for positions in all_to_device(order, "cpu")]
        device, count = self.labels.device, len(self.first)
        is_first = [rows < count for rows in chosen]
        parts = (
            self.first.batches([r[own] for r, own in zip(chosen, is_first, strict=True) if own.any()], view),
            self.second.batches(
                [r[~own] - count for r, own in zip(chosen, is_first, strict=True) if not own.all()], view
            ),
        )
        # Where each sample of the parts, one after the other, belongs: a stable sort, turned around.
        places = all_to_device([(~own).long().argsort(stable=True).argsort() for own in is_first], device)
        for own, place in zip(is_first, places, strict=True):
            inputs = [
                next(part) for part, some in zip(parts, (own.any(), not own.all()), strict=True) if some
            ]
            yield torch.cat(inputs).index_select(0, place)
