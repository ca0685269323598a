"""TrivialAugment, RandAugment and AugMix against torchvision's change of one image, with the numbers drawn for it."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2

from raydistill.kinds.augmentations import AugmentationOptions
from raydistill.tasks.hashing import fold_key
from raydistill.tasks.hashing import uniform as numpy_uniform
from raydistill.training.augment import augment
from raydistill.training.counter_random import integers

SEED, VIEW = 3, 5
STEPS: list[dict[str, Any]] = [
    {"name": "trivial_augment"},
    {"name": "rand_augment"},
    {"name": "rand_augment", "operations": 3, "magnitude": 30},
    {"name": "augmix"},
    {"name": "augmix", "width": 2, "severity": 5, "colours": False},
]


def pictures(channels: int = 3, height: int = 14, width: int = 18, count: int = 300) -> tuple[Tensor, Tensor]:
    """Smooth pictures of 256 levels."""
    generator = torch.Generator().manual_seed(7)
    coarse = torch.rand(count, channels, 4, 4, generator=generator)
    pixels = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    pixels[3] = 0.4
    return (pixels * 255).round() / 255, torch.randint(2**62, (count,), generator=generator)


def drawn(sample: int, *bounds: int) -> list[int]:
    numbers: list[int] = integers(torch.tensor([sample]), fold_key(SEED, VIEW, 0), bounds)[0].tolist()
    return numbers


def changed(policy: Any, space: Any, bins: int, image: Tensor, name: str, strength: int, sign: int) -> Tensor:
    """By torchvision; fractions but for posterize, where it takes them for other levels than those of pictures."""
    table, is_signed = space[name]
    values = table(bins, *image.shape[-2:])
    magnitude = 0.0 if values is None else float(values[strength]) * (-1 if is_signed and sign else 1)
    as_levels = name == "Posterize" and image.is_floating_point()
    if as_levels:
        image = (image * 255).round().to(torch.uint8)
    made = policy._apply_image_or_video_transform(image, name, magnitude, v2.InterpolationMode.NEAREST, {})
    return made / 255 if as_levels else made


def slow_trivial(step: Any, image: Tensor, sample: int) -> Tensor:
    policy = v2.TrivialAugmentWide()
    space = policy._AUGMENTATION_SPACE
    operation, strength, sign = drawn(sample, 14, 31, 2)
    return changed(policy, space, 31, image, list(space)[operation], strength, sign)


def slow_rand(step: Any, image: Tensor, sample: int) -> Tensor:
    policy = v2.RandAugment()
    space = policy._AUGMENTATION_SPACE
    numbers = drawn(sample, *(14, 2) * step.operations)
    for operation, sign in zip(numbers[::2], numbers[1::2], strict=True):
        image = changed(policy, space, 31, image, list(space)[operation], step.magnitude, sign)
    return image


def slow_augmix(step: Any, image: Tensor, sample: int) -> Tensor:
    policy = v2.AugMix()
    space = policy._AUGMENTATION_SPACE if step.colours else policy._PARTIAL_AUGMENTATION_SPACE
    # In the order of the other policies, which AugMix's table has not.
    names = [name for name in v2.RandAugment._AUGMENTATION_SPACE if name in space]
    numbers = iter(drawn(sample, *(3, *(len(names), step.severity, 2) * 3) * step.width))
    own, *parts = numpy_uniform(np.array([sample]), fold_key(SEED, VIEW, 2_000_000), step.width + 1)[0]
    weights = np.array([-math.log(1 - part) for part in parts])
    weights = (1 - own) * weights / weights.sum()
    mixed = own * image
    for weight in weights:
        depth, chain = next(numbers) + 1, image
        for place in range(3):
            operation, strength, sign = next(numbers), next(numbers), next(numbers)
            if place < depth:
                chain = changed(policy, space, 10, chain, names[operation], strength, sign)
        mixed = mixed + weight * chain
    return mixed.float()


SLOW = {"trivial_augment": slow_trivial, "rand_augment": slow_rand, "augmix": slow_augmix}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("step", STEPS, ids=str)
def test_each_sample_is_changed_as_torchvision_changes_it(step: dict[str, Any], channels: int) -> None:
    # So small that no shear of AugMix ends between two pixels: what comes after that in a chain would be another.
    inputs, ids = pictures(channels, 5, 7) if step["name"] == "augmix" else pictures(channels)
    config = AugmentationOptions.choose(step)
    made = augment(inputs, ids, [config], SEED, VIEW)
    slow = SLOW[step["name"]]
    expected = torch.stack([slow(config, image, int(i)) for image, i in zip(inputs, ids, strict=True)])
    # Where a place lies between two pixels, or a value between two levels, the last bit decides.
    is_other = (made - expected).abs() > 1e-5
    assert is_other.float().mean() < 0.003
    assert is_other.flatten(1).any(dim=1).float().mean() < 0.1
    assert made.min() >= 0
    assert made.max() <= 1


@pytest.mark.parametrize("operation", range(14))
def test_every_change_at_every_strength_is_torchvisions_of_256_levels(operation: int) -> None:
    inputs, ids = pictures(count=4000, height=8, width=8)
    numbers = integers(ids, fold_key(SEED, VIEW, 0), (14, 31, 2))
    rows = (numbers[:, 0] == operation).nonzero()[:, 0]
    inputs, ids = inputs[rows], ids[rows]
    made = augment(inputs, ids, [AugmentationOptions.choose({"name": "trivial_augment"})], SEED, VIEW)
    levels = (inputs * 255).round().to(torch.uint8)
    expected = torch.stack([slow_trivial(None, image, int(i)) for image, i in zip(levels, ids, strict=True)])
    # Torchvision cuts off what lies between levels, of grey and of smooth pixels once more before they are blended.
    is_other = (made * 255 - expected.float()).abs() > (2.01 if 7 <= operation <= 9 else 1.01)
    assert is_other.float().mean() < 0.005
    assert len(rows) > 200


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_pixels_do_not_depend_on_the_batch_or_the_order(step: dict[str, Any]) -> None:
    config = AugmentationOptions.choose(step)
    inputs, ids = pictures(height=40, width=60, count=60)
    before = inputs.clone()
    whole = augment(inputs, ids, [config], SEED, VIEW)
    shuffled = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))
    for size in (1, 7):
        parts = [augment(inputs[p], ids[p], [config], SEED, VIEW) for p in shuffled.split(size)]
        assert torch.equal(torch.cat(parts), whole[shuffled])
    assert torch.equal(inputs, before)
    assert not torch.equal(whole, augment(inputs, ids, [config], SEED, VIEW + 1))


def test_changes_strengths_and_signs_are_all_alike() -> None:
    numbers = integers(torch.arange(20_000), fold_key(SEED, VIEW, 0), (14, 31, 2))
    for column, bound in enumerate((14, 31, 2)):
        counts = np.bincount(numbers[:, column].numpy(), minlength=bound)
        assert stats.chisquare(counts).pvalue > 1e-4
