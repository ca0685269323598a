"""Pictures decoded by DataLoader workers; a training view's crop is drawn from (seed, sample id, view)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from raydistill.tasks.batch_memory import batch_floats
from raydistill.tasks.cuts import three_parts
from raydistill.tasks.devices import all_to_device
from raydistill.tasks.hashing import fold_key, uniform
from raydistill.tasks.loaders import Loaders
from raydistill.tasks.normalisation import Normalisation
from raydistill.tasks.pictures import PictureError, centre_box
from raydistill.tasks.reduced import Box
from raydistill.tasks.splits import TaskData, View, task_data

if TYPE_CHECKING:
    from raydistill.tasks.picture_store import Parts
    from raydistill.tasks.picture_task import Part, PictureTask
    from raydistill.tasks.task import Arrays

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ATTEMPTS = 10
LARGEST_RATIO = 4 / 3


@dataclass(frozen=True, eq=False)
class FolderSplit:
    """Samples on disk: `places` (N,) in `store`, delivered where `labels` are.

    Splits of one store share its `loaders`: the processes that decode training pictures decode those of the test, too.
    """

    task: PictureTask
    store: Parts
    places: NDArray[Any]
    labels: Tensor
    ids: Tensor
    loaders: Loaders

    @classmethod
    def of(cls, task: PictureTask, store: Parts, loaders: Loaders, part: Arrays) -> FolderSplit:
        """The split that `part` describes, on the CPU."""
        labels, ids = torch.from_numpy(part.labels), torch.from_numpy(part.ids)
        return cls(task, store, part.inputs, labels, ids, loaders)

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, positions: Tensor) -> FolderSplit:
        positions = positions.to(self.labels.device)
        places = self.places[positions.cpu().numpy()]
        return replace(self, places=places, labels=self.labels[positions], ids=self.ids[positions])

    def to(self, device: torch.device | str) -> FolderSplit:
        return replace(self, labels=self.labels.to(device), ids=self.ids.to(device))

    def batches(self, order: Sequence[Tensor], view: View | None) -> Iterator[Tensor]:
        ids = self.ids.cpu().numpy()
        rows = [positions.numpy() for positions in all_to_device(order, "cpu")]
        requests = [Request(self.places[row], ids[row], view) for row in rows]
        for pixels in self.loaders.batches(requests, self.labels.device):
            yield as_floats(pixels)


def as_floats(pixels: Tensor) -> Tensor:
    """uint8 as floats from 0 to 1, where it lies."""
    values = pixels.float() if pixels.device.type != "cpu" else batch_floats(pixels.shape).copy_(pixels)
    return values.div_(255)


def build_folder_data(task: PictureTask, store: Parts, parts: Mapping[str, Arrays]) -> TaskData:
    """The splits of pictures in a store, with ImageNet's usual mean and standard deviation."""
    loaders = loaders_of(task, store)
    splits = {
        name: FolderSplit.of(task, store, loaders, part) for name, part in three_parts(task, parts).items()
    }
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    return task_data(task, splits, Normalisation(mean, std))


def loaders_of(task: PictureTask, store: Parts) -> Loaders:
    """What decodes the pictures of a store as a task wants them."""
    return Loaders(_Pictures(task, store), task.workers)


@dataclass(frozen=True)
class Request:
    """A batch: places (B,) in the store, ids (B,), and the view that is to be seen."""

    places: NDArray[Any]
    ids: NDArray[np.int64]
    view: View | None


@dataclass(frozen=True)
class _Pictures(Dataset[Tensor]):
    task: PictureTask
    store: Parts

    def __getitems__(self, request: Request) -> Tensor | PictureError:
        """(B, 3, size, size) uint8, or the error about the first picture that cannot be read."""
        size = self.task.image_size
        pixels = torch.empty((len(request.ids), 3, size, size), dtype=torch.uint8)
        try:
            for place, part, row in zip(
                request.places.tolist(), self._parts(request), pixels.numpy(), strict=True
            ):
                row[:] = self.task.pixels(partial(self.store.read_part, place, 3), part, size, size)
        except PictureError as error:
            return error
        return pixels

    def _parts(self, request: Request) -> Iterator[Part]:
        """Of each picture, what is seen of it."""
        if request.view is None:
            yield from repeat(self.task.centre, len(request.ids))
            return
        key = fold_key(request.view.seed, request.view.index)
        draws = uniform(request.ids, key, 4 * ATTEMPTS).reshape(-1, ATTEMPTS, 4)
        for own in draws:
            yield partial(random_box, draws=own, smallest_area=self.task.smallest_area)


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
