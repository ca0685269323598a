"""Parts of images, drawn one for each: cut out and scaled, or painted over."""

from dataclasses import dataclass
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor

from raydistill.kinds.augmentations import EraseConfig, ResizedCropConfig
from raydistill.training.augment import Draws

ATTEMPTS = 10


@dataclass(frozen=True)
class Boxes:
    """Of B images one part each: tensors (B,) float64 of whole pixels. `found`: whether an attempt fitted."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    found: Tensor


def resized_crop(step: ResizedCropConfig, inputs: Tensor, draws: Draws) -> Tensor:
    """Bilinear. A part is never larger than the image, so there is nothing to smooth before scaling."""
    height, width = inputs.shape[-2:]
    boxes = random_boxes(draws.uniform(4 * ATTEMPTS), height, width, step.scale, step.ratio)
    central_height, central_width = _central(height, width, step.ratio)
    grid = inputs.new_empty(len(inputs), height, width, 2)
    grid[..., 1] = _places(
        torch.where(boxes.found, boxes.top, (height - central_height) // 2),
        torch.where(boxes.found, boxes.height, central_height),
        height,
    )[:, :, None]
    grid[..., 0] = _places(
        torch.where(boxes.found, boxes.left, (width - central_width) // 2),
        torch.where(boxes.found, boxes.width, central_width),
        width,
    )[:, None, :]
    return F.grid_sample(inputs, grid, padding_mode="border", align_corners=False)


def erase(step: EraseConfig, inputs: Tensor, draws: Draws) -> Tensor:
    height, width = inputs.shape[-2:]
    numbers = draws.uniform(4 * ATTEMPTS + 1)
    boxes = random_boxes(numbers[:, 1:], height, width, step.scale, step.ratio)
    is_erased = boxes.found & (numbers[:, 0] < step.probability)
    inside = _within(boxes.top, boxes.height, height)[:, :, None]
    inside = inside & _within(boxes.left, boxes.width, width)[:, None, :] & is_erased[:, None, None]
    return inputs.masked_fill(inside[:, None], step.value)


def random_boxes(
    numbers: Tensor, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Boxes:
    """The first attempt that fits, of ten: `numbers` (B, 40) in [0, 1) are area, ratio, left and top of each in turn.

    As `raydistill.tasks.folder_split.random_box` draws it for one picture.
    """
    area, shape, left, top = numbers.double().unflatten(1, (ATTEMPTS, 4)).unbind(2)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * area)
    shape = torch.exp(log(ratio[0]) + (log(ratio[1]) - log(ratio[0])) * shape)
    widths, heights = torch.sqrt(area * shape).round(), torch.sqrt(area / shape).round()
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = fits.byte().argmax(dim=1, keepdim=True)

    def taken(values: Tensor) -> Tensor:
        return values.gather(1, first)[:, 0]

    return Boxes(
        taken((top * (height - heights + 1)).floor()),
        taken((left * (width - widths + 1)).floor()),
        taken(heights),
        taken(widths),
        fits.any(dim=1),
    )


def _central(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int]:
    """The largest height and width whose ratio lies between the ends."""
    if width / height < ratio[0]:
        return round(width / ratio[0]), width
    if width / height > ratio[1]:
        return height, round(height * ratio[1])
    return height, width


def _places(start: Tensor, size: Tensor, length: int) -> Tensor:
    """Where each of `length` pixels of the result lies in the image, in [-1, 1] from border to border, (B, length)."""
    middles = torch.arange(length, dtype=torch.float64, device=start.device) + 0.5
    within = (middles * (size / length)[:, None] - 0.5).clamp(min=0).minimum(size[:, None] - 1)
    return (2 * (start[:, None] + within) + 1) / length - 1


def _within(start: Tensor, size: Tensor, length: int) -> Tensor:
    """Which of `length` places lie in the `size` places from each start, (B,) → (B, length)."""
    places = torch.arange(length, device=start.device)
    return (places >= start[:, None]) & (places < (start + size)[:, None])
