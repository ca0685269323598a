"""TrivialAugment, RandAugment and AugMix: changes drawn from fourteen, for each image its own, made batch by batch.

The changes and how strong they are is what torchvision publishes, where they are made of 256 grey levels. Here images
are fractions and no change rounds, but for `posterize` and `equalize`, which are about levels.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import autocontrast, equalize

from raydistill.kinds.augmentations import AugmixConfig, RandAugmentConfig, TrivialAugmentConfig
from raydistill.tasks.devices import to_device
from raydistill.training.augment import Draws, by_choice
from raydistill.training.colours import blended, brightened, contrasted, saturated

# Of torchvision's names and in its order: identity, shear x, shear y, translate x, translate y, rotate (degrees),
# brightness, colour, contrast, sharpness, posterize (bits), solarize (threshold), autocontrast, equalize.
IDENTITY, SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y, ROTATE = range(6)
OPERATIONS, SIGNED = 14, range(SHEAR_X, 10)
COLOURS = 4  # brightness to sharpness
BINS, AUGMIX_BINS = 31, 10
DEPTH = 3

ByNumber = Callable[[Tensor, Tensor], Tensor]
Space = Literal["trivial", "rand", "augmix"]


def trivial_augment(step: TrivialAugmentConfig, inputs: Tensor, draws: Draws) -> Tensor:
    operation, strength, sign = draws.integers(OPERATIONS, BINS, 2)
    return _applied("trivial", inputs, operation, strength, sign)


def rand_augment(step: RandAugmentConfig, inputs: Tensor, draws: Draws) -> Tensor:
    drawn = draws.integers(*(OPERATIONS, 2) * step.operations)
    for operation, sign in zip(drawn[::2], drawn[1::2], strict=True):
        inputs = _applied("rand", inputs, operation, torch.full_like(operation, step.magnitude), sign)
    return inputs


def augmix(step: AugmixConfig, inputs: Tensor, draws: Draws) -> Tensor:
    """Weights of Dirichlet(1, ..., 1) are exponentials divided by their sum, the image's own part is uniform."""
    count = OPERATIONS - 1 - (0 if step.colours else COLOURS)
    chain = (DEPTH, *(count, step.severity, 2) * DEPTH)
    drawn = draws.integers(*chain * step.width)
    numbers = draws.uniform(step.width + 1)
    shares = (-torch.log1p(-numbers[:, 1:].double())).clamp(min=1e-12)
    shares = (1 - numbers[:, :1]) * (shares / shares.sum(dim=1, keepdim=True)).to(inputs.dtype)
    mixed = numbers[:, 0, None, None, None] * inputs
    for number in range(step.width):
        depth, *rounds = drawn[number * len(chain) : (number + 1) * len(chain)]
        images = inputs
        for place in range(DEPTH):
            operation, strength, sign = rounds[3 * place : 3 * place + 3]
            # Without the identity, and maybe without colours, which lie between moves and the rest.
            operation = operation + 1
            if not step.colours:
                operation = torch.where(operation > ROTATE, operation + COLOURS, operation)
            operation = torch.where(place <= depth, operation, IDENTITY)
            images = _applied("augmix", images, operation, strength, sign)
        mixed = mixed + shares[:, number, None, None, None] * images
    return mixed.clamp(0, 1)


def _applied(space: Space, images: Tensor, operation: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    """To each image (B, C, H, W) its operation, at a strength that counts from 0; sign 1 turns it round."""
    table = _magnitudes(space, *images.shape[-2:], images.device)
    magnitude = table[operation, strength]
    is_turned = (operation >= SIGNED[0]) & (operation <= SIGNED[-1]) & (sign == 1)
    magnitude = torch.where(is_turned, -magnitude, magnitude)
    # What moves pixels is one change, whichever it is.
    change = torch.where(operation <= ROTATE, operation.clamp(max=1), operation - ROTATE + 1)
    return by_choice(change, CHANGES, images, operation, magnitude)


@lru_cache(maxsize=16)
def _magnitudes(space: Space, height: int, width: int, device: torch.device) -> Tensor:
    """Of each operation the number at each strength, (14, bins) float64."""
    shear, turn, factor, bins, lost, across = {
        "trivial": (0.99, 135.0, 0.99, BINS, (8, 6), (32.0, 32.0)),
        "rand": (0.3, 30.0, 0.9, BINS, (8, 4), (150 / 331 * width, 150 / 331 * height)),
        "augmix": (0.3, 30.0, 0.9, AUGMIX_BINS, (4, 4), (width / 3, height / 3)),
    }[space]
    rising = torch.linspace(0, 1, bins, dtype=torch.float64)
    bits = (lost[0] - torch.arange(bins) / ((bins - 1) / lost[1])).round()
    moves = [(rising * end).floor() for end in across]  # whole pixels
    rows = [
        shear * rising,
        shear * rising,
        *moves,
        turn * rising,
        *[factor * rising] * COLOURS,
        bits.double(),
    ]
    return to_device(torch.stack([0 * rising, *rows, 1 - rising, 0 * rising, 0 * rising]), device)


def moved(images: Tensor, operation: Tensor, magnitude: Tensor) -> Tensor:
    """Sheared from the upper left corner, shifted or rotated about the middle; the nearest pixel, or 0 from outside."""
    height, width = images.shape[-2:]
    none = torch.zeros_like(magnitude)

    def of(which: int) -> Tensor:
        return torch.where(operation == which, magnitude, none)

    angle, shear_x, shear_y = torch.deg2rad(of(ROTATE)), of(SHEAR_X), of(SHEAR_Y)
    to_column = (angle.cos(), shear_x - angle.sin(), shear_x * height / 2 - of(TRANSLATE_X))
    to_row = (shear_y + angle.sin(), angle.cos(), shear_y * width / 2 - of(TRANSLATE_Y))
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    y = (torch.arange(height, device=images.device) - (height - 1) / 2)[:, None]

    def places(parts: tuple[Tensor, Tensor, Tensor], length: int) -> Tensor:
        of_x, of_y, start = (part.to(images.dtype)[:, None, None] for part in parts)
        return (of_x * x + of_y * y + start) / (length / 2)

    grid = torch.stack([places(to_column, width), places(to_row, height)], dim=-1)
    return F.grid_sample(images, grid, mode="nearest", padding_mode="zeros", align_corners=False)


def sharpened(images: Tensor, factor: Tensor) -> Tensor:
    """Away from the mean of 3 x 3 pixels, of which the middle one counts 5 times; the border stays."""
    if min(images.shape[-2:]) <= 2:
        return images
    rows = images[..., :-2, :] + images[..., 1:-1, :] + images[..., 2:, :]
    smooth = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * images[..., 1:-1, 1:-1]
    changed = images.clone()
    changed[..., 1:-1, 1:-1] = blended(images[..., 1:-1, 1:-1], smooth / 13, factor)
    return changed


def posterized(images: Tensor, bits: Tensor) -> Tensor:
    """Only the highest bits of 8 are kept."""
    step = torch.pow(2, 8 - bits)[:, None, None, None]
    return torch.floor((images * 255).round() / step) * step / 255


def solarized(images: Tensor, threshold: Tensor) -> Tensor:
    """What is as light as a threshold, or lighter, is turned into its negative."""
    return torch.where(images >= threshold[:, None, None, None], 1 - images, images)


def _by_factor(change: ByNumber, images: Tensor, operation: Tensor, magnitude: Tensor) -> Tensor:
    return change(images, (1 + magnitude).to(images.dtype))


def _by_number(change: ByNumber, images: Tensor, operation: Tensor, magnitude: Tensor) -> Tensor:
    return change(images, magnitude.to(images.dtype))


def _alone(
    change: Callable[[Tensor], Tensor], images: Tensor, operation: Tensor, magnitude: Tensor
) -> Tensor:
    return change(images)


CHANGES = (
    None,
    moved,
    *(partial(_by_factor, change) for change in (brightened, saturated, contrasted, sharpened)),
    *(partial(_by_number, change) for change in (posterized, solarized)),
    *(partial(_alone, change) for change in (autocontrast, equalize)),
)
