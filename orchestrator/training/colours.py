"""Changes of brightness, colour and sharpness, with numbers of its own for each image.

Images (B, C, H, W) lie in [0, 1], C is 1 or 3. The pixels are those of `torchvision.transforms.v2.functional`, whose
kernels take one number for a batch; where they need none they are called.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import rgb_to_grayscale

from raydistill.kinds.augmentations import BlurConfig, ColourJitterConfig, GreyConfig
from raydistill.training.augment import Draws, by_choice


def colour_jitter(step: ColourJitterConfig, inputs: Tensor, draws: Draws) -> Tensor:
    """Four rounds: in each, every image is changed in one of the ways that it was not changed in before."""
    spreads = (step.brightness, step.contrast, step.saturation)
    numbers = draws.uniform(9)
    drawn = [
        max(0.0, 1 - spread) + (1 + spread - max(0.0, 1 - spread)) * number
        for spread, number in zip(spreads, numbers[:, :3].unbind(1), strict=True)
    ]
    factors = torch.stack([*drawn, step.hue * (2 * numbers[:, 3] - 1)], dim=1)
    changes = [
        change if spread else None
        for spread, change in zip(
            (*spreads, step.hue), (brightened, contrasted, saturated, turned), strict=True
        )
    ]
    order = numbers[:, 4:8].argsort(dim=1, stable=True)
    is_changed = numbers[:, 8] < step.probability
    for ways in order.unbind(1):
        factor = factors.gather(1, ways[:, None])[:, 0]
        inputs = by_choice(torch.where(is_changed, ways, -1), changes, inputs, factor)
    return inputs


def grey(step: GreyConfig, inputs: Tensor, draws: Draws) -> Tensor:
    is_grey = draws.uniform(1)[:, 0] < step.probability
    return by_choice(is_grey, [None, lambda images: rgb_to_grayscale(images, images.shape[1])], inputs)


def blur(step: BlurConfig, inputs: Tensor, draws: Draws) -> Tensor:
    numbers = draws.uniform(2)
    sigma = step.sigma[0] + (step.sigma[1] - step.sigma[0]) * numbers[:, 1]

    def blurred(images: Tensor, sigma: Tensor) -> Tensor:
        return _convolved(images, _bell(step.kernel, sigma))

    return by_choice(numbers[:, 0] < step.probability, [None, blurred], inputs, sigma)


def brightened(images: Tensor, factor: Tensor) -> Tensor:
    return blended(images, torch.zeros_like(images[:, :1]), factor)


def contrasted(images: Tensor, factor: Tensor) -> Tensor:
    """Away from the mean grey, or towards it."""
    # The order in which float32 is summed depends on the size of a batch; of float64 that leaves nothing to see.
    mean = rgb_to_grayscale(images).mean(dim=(1, 2, 3), keepdim=True, dtype=torch.float64)
    return blended(images, mean.to(images.dtype), factor)


def saturated(images: Tensor, factor: Tensor) -> Tensor:
    """Away from grey, or towards it."""
    return images if images.shape[1] == 1 else blended(images, rgb_to_grayscale(images), factor)


def turned(images: Tensor, rounds: Tensor) -> Tensor:
    """The hue, around the circle of colours."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(1)
    top, bottom = images.amax(dim=1), images.amin(dim=1)
    spread = top - bottom
    divisor = spread.clamp(min=1e-9)  # of grey the differences are 0 as well
    sixths = torch.where(
        top == red,
        (green - blue) / divisor,
        torch.where(top == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sixths = sixths + 6 * rounds[:, None, None]

    def channel(offset: int) -> Tensor:
        """What of the spread is missing: it rises and falls in a sixth of the circle each."""
        place = (sixths + offset).remainder(6)
        return top - spread * torch.minimum(place, 4 - place).clamp(0, 1)

    return torch.stack([channel(5), channel(3), channel(1)], dim=1)


def blended(images: Tensor, others: Tensor, factor: Tensor) -> Tensor:
    """factor x image + (1 - factor) x other, cut to [0, 1]; factors (B,) may lie above 1."""
    factor = factor[:, None, None, None]
    return (images * factor + others * (1 - factor)).clamp(0, 1)


def _bell(size: int, sigma: Tensor) -> Tensor:
    """Weights (B, size) that add up to 1."""
    reach = (size - 1) / (2 * 2**0.5)
    places = torch.linspace(-reach, reach, size, device=sigma.device)
    return torch.softmax(-((places / sigma[:, None]) ** 2), dim=1)


def _convolved(images: Tensor, weights: Tensor) -> Tensor:
    """Along both axes with each image's weights (B, size). A sum of shifted images: the same in every batch."""
    size = weights.shape[1]
    taps = weights[:, :, None, None, None].unbind(1)
    for axis in (-1, -2):
        length = images.shape[axis]
        padding = [size // 2, size // 2, 0, 0] if axis == -1 else [0, 0, size // 2, size // 2]
        padded = F.pad(images, padding, mode="reflect")
        images = taps[0] * padded.narrow(axis, 0, length)
        for place, tap in enumerate(taps[1:], 1):
            images += tap * padded.narrow(axis, place, length)
    return images
