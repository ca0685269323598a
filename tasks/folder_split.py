"""Pictures decoded from files by DataLoader workers; a training view's crop is drawn from (seed, sample id, view)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from raydistill.tasks.hashing import fold_key, uniform
from raydistill.tasks.splits import View
from raydistill.tasks.task import Arrays

if TYPE_CHECKING:
    from raydistill.tasks.image_folder import ImageFolder

ATTEMPTS = 10
LARGEST_RATIO = 4 / 3
Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class FolderSplit:
    """Samples on disk: `paths` (N,) under `folder`, delivered on `device`."""

    task: ImageFolder
    paths: NDArray[np.str_]
    labels: Tensor
    ids: Tensor

    @classmethod
    def of(cls, task: ImageFolder, part: Arrays) -> FolderSplit:
        """The split that `part` describes, on the CPU."""
        return cls(task, part.inputs, torch.from_numpy(part.labels), torch.from_numpy(part.ids))

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, positions: Tensor) -> FolderSplit:
        positions = positions.to(self.labels.device)
        paths = self.paths[positions.cpu().numpy()]
        return replace(self, paths=paths, labels=self.labels[positions], ids=self.ids[positions])

    def to(self, device: torch.device | str) -> FolderSplit:
        return replace(self, labels=self.labels.to(device), ids=self.ids.to(device))

    def batches(self, order: Sequence[Tensor], view: View | None) -> Iterator[Tensor]:
        device = self.labels.device
        loader = DataLoader(
            _Pictures(self.task, self.paths, self.ids.cpu().numpy(), view),
            batch_sampler=[positions.tolist() for positions in order],
            num_workers=self.task.workers,
            pin_memory=device.type == "cuda",
            # Without a generator of its own the loader draws from torch's, and resuming would not repeat exactly.
            generator=torch.Generator(),
        )
        for pixels in loader:
            yield pixels.to(device, non_blocking=True).float().div_(255)


class _Pictures(Dataset[Tensor]):
    """Picture at a position → (3, size, size) uint8."""

    def __init__(
        self, task: ImageFolder, paths: NDArray[np.str_], ids: NDArray[np.int64], view: View | None
    ) -> None:
        self.task, self.paths, self.ids, self.view = task, paths, ids, view

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> Tensor:
        picture = _decode(self.task.folder / str(self.paths[position]))
        box = self._box(position, *picture.size)
        size = self.task.image_size
        resized = picture.resize((size, size), Image.Resampling.BILINEAR, box=box)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()

    def _box(self, position: int, width: int, height: int) -> Box:
        if self.view is None:
            return centre_box(width, height, self.task.image_size / self.task.resize)
        draws = uniform(
            self.ids[position : position + 1], fold_key(self.view.seed, self.view.index), 4 * ATTEMPTS
        )[0]
        return random_box(width, height, draws.reshape(ATTEMPTS, 4), self.task.smallest_area)


def centre_box(width: int, height: int, part: float) -> Box:
    """(left, top, right, bottom) of the central square whose side is `part` of the picture's shorter side."""
    side = min(width, height) * min(part, 1.0)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


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


def _decode(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except OSError as error:
        raise ValueError(f"`{path}` is not a readable picture: {error}") from error
