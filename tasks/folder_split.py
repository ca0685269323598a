"""Pictures decoded by DataLoader workers; a training view's crop is drawn from (seed, sample id, view)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from raydistill.tasks.cuts import three_parts
from raydistill.tasks.devices import all_to_device, to_device
from raydistill.tasks.hashing import fold_key, uniform
from raydistill.tasks.normalisation import Normalisation
from raydistill.tasks.pictures import Box, PictureError, centre_box, part_of
from raydistill.tasks.splits import TaskData, View, task_data

if TYPE_CHECKING:
    from raydistill.tasks.picture_store import PictureStore
    from raydistill.tasks.picture_task import PictureTask
    from raydistill.tasks.task import Arrays

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ATTEMPTS = 10
LARGEST_RATIO = 4 / 3


@dataclass(frozen=True, eq=False)
class FolderSplit:
    """Samples on disk: `places` (N,) in `store`, delivered where `labels` are."""

    task: PictureTask
    store: PictureStore
    places: NDArray[Any]
    labels: Tensor
    ids: Tensor

    @classmethod
    def of(cls, task: PictureTask, store: PictureStore, part: Arrays) -> FolderSplit:
        """The split that `part` describes, on the CPU."""
        return cls(task, store, part.inputs, torch.from_numpy(part.labels), torch.from_numpy(part.ids))

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, positions: Tensor) -> FolderSplit:
        positions = positions.to(self.labels.device)
        places = self.places[positions.cpu().numpy()]
        return replace(self, places=places, labels=self.labels[positions], ids=self.ids[positions])

    def to(self, device: torch.device | str) -> FolderSplit:
        return replace(self, labels=self.labels.to(device), ids=self.ids.to(device))

    def batches(self, order: Sequence[Tensor], view: View | None) -> Iterator[Tensor]:
        device = self.labels.device
        loader = DataLoader(
            _Pictures(self, self.ids.cpu().numpy(), view),
            batch_sampler=[positions.tolist() for positions in all_to_device(order, "cpu")],
            num_workers=self.task.workers,
            pin_memory=device.type != "cpu",  # by a thread of the loader, where the steps do not wait for it
            # Without a generator of its own the loader draws from torch's, and resuming would not repeat exactly.
            generator=torch.Generator(),
            collate_fn=_stacked,
        )
        for pixels in loader:
            if isinstance(pixels, PictureError):
                raise pixels
            yield to_device(pixels, device).float().div_(255)


def build_folder_data(task: PictureTask, parts: Mapping[str, Arrays]) -> TaskData:
    """The splits of pictures in folders, with ImageNet's usual mean and standard deviation."""
    store = task.store()
    splits = {name: FolderSplit.of(task, store, part) for name, part in three_parts(task, parts).items()}
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    return task_data(task, splits, Normalisation(mean, std))


class _Pictures(Dataset[Tensor | PictureError]):
    """Picture at a position → (3, size, size) uint8, or the error: returned, as torch would wrap one that a worker
    raises."""

    def __init__(self, split: FolderSplit, ids: NDArray[np.int64], view: View | None) -> None:
        self.task, self.store, self.places, self.ids, self.view = (
            split.task, split.store, split.places, ids, view,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, position: int) -> Tensor | PictureError:
        try:
            image = self.store.read(self.places[position].item(), 3).image
        except PictureError as error:
            return error
        size = self.task.image_size
        if self.view is None:
            return torch.from_numpy(self.task.centre(image, size, size))
        box = self._box(self.view, position, *image.size)
        return torch.from_numpy(part_of(image, box, size, size))

    def _box(self, view: View, position: int, width: int, height: int) -> Box:
        draws = uniform(self.ids[position : position + 1], fold_key(view.seed, view.index), 4 * ATTEMPTS)[0]
        return random_box(width, height, draws.reshape(ATTEMPTS, 4), self.task.smallest_area)


def _stacked(pictures: list[Tensor | PictureError]) -> Tensor | PictureError:
    for picture in pictures:
        if isinstance(picture, PictureError):
            return picture
    batch: Tensor = default_collate(pictures)
    return batch


def random_box(width: int, height: int, draws: NDArray[np.float64], smallest_area: float) -> Box:
    """A crop of random area and shape (arXiv 1409.4842): ratio of sides 3/4 to 4/3, log-uniform.

    Each row of `draws` (attempts, 4) gives area, ratio, left and top of one attempt; the first crop that fits into
    the picture is taken, and the largest central square when none does.
    """
    for area_draw, ratio_draw, left_draw, top_draw in draws.tolist():
        area = width * height * (smallest_area + (1 - smallest_area) * area_draw)
        ratio = math.exp(math.log(LARGEST_RATIO) * (2 * ratio_draw - 1))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left, top = int(left_draw * (width - crop_width + 1)), int(top_draw * (height - crop_height + 1))
            return left, top, left + crop_width, top + crop_height
    return centre_box(width, height, 1.0)
