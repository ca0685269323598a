"""Spliced frames as batches: one tensor of frames, and per batch a gather of each sample's neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from raydistill.tasks.devices import all_to_device
from raydistill.tasks.normalisation import Normalisation
from raydistill.tasks.splits import TaskData, View, task_data

if TYPE_CHECKING:
    from raydistill.tasks.speech_frames import SpeechFrames
    from raydistill.tasks.utterances import Utterances


@dataclass(frozen=True, eq=False)
class FrameSplit:
    """N samples among F frames: `frames` (F, coefficients), of utterance u those from bounds[u] to bounds[u + 1].

    `places` (N,) are the samples' own frames; `offsets` (context,) where its neighbours lie. Selecting samples keeps
    all frames, as a neighbour need not be among them. Views are ignored.
    """

    frames: Tensor
    bounds: Tensor
    offsets: Tensor
    places: Tensor
    labels: Tensor
    ids: Tensor
    is_resident: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(self.places)

    def select(self, positions: Tensor) -> FrameSplit:
        positions = positions.to(self.places.device)
        return replace(
            self, places=self.places[positions], labels=self.labels[positions], ids=self.ids[positions]
        )

    def to(self, device: torch.device | str) -> FrameSplit:
        tensors = (self.frames, self.bounds, self.offsets, self.places, self.labels, self.ids)
        return FrameSplit(*(tensor.to(device) for tensor in tensors))

    def batches(self, order: Sequence[Tensor], view: View | None) -> Iterator[Tensor]:
        """For each tensor of positions (B,): inputs (B, context, coefficients); over an end its frame is repeated."""
        for positions in all_to_device(order, self.places.device):
            places = self.places[positions]
            utterances = torch.searchsorted(self.bounds, places, right=True)
            first, last = self.bounds[utterances - 1], self.bounds[utterances] - 1
            neighbours = places[:, None] + self.offsets
            neighbours = torch.clamp(neighbours, first[:, None], last[:, None])
            # One flat index gathers rows 1.4 times as fast as a matrix of indices does.
            spliced = self.frames.index_select(0, neighbours.flatten())
            yield spliced.view(len(places), len(self.offsets), self.frames.shape[1])


def build_frame_data(task: SpeechFrames, parts: Mapping[str, Utterances]) -> TaskData:
    """The splits of a task whose frames fit in memory; they are normalised already, so mean is 0 and deviation 1."""
    splits = {name: _frame_split(task, part) for name, part in parts.items()}
    return task_data(task, splits, Normalisation(torch.zeros(1, 1), torch.ones(1, 1)))


def _frame_split(task: SpeechFrames, part: Utterances) -> FrameSplit:
    return FrameSplit(
        frames=torch.from_numpy(part.frames),
        bounds=torch.from_numpy(part.bounds),
        offsets=torch.arange(-task.frames_before, task.frames_after + 1),
        places=torch.arange(len(part.labels)),
        labels=torch.from_numpy(part.labels),
        ids=torch.from_numpy(part.ids),
    )
