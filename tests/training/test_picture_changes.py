"""Batched changes of pictures against torchvision's kernels, called for one sample at a time with the numbers that were
drawn for it."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from scipy import stats
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from raydistill.kinds.augmentations import AugmentationOptions
from raydistill.tasks.folder_split import ATTEMPTS, random_box
from raydistill.tasks.hashing import fold_key
from raydistill.tasks.hashing import uniform as numpy_uniform
from raydistill.training.augment import augment

SEED, VIEW = 3, 5
STEPS: list[dict[str, Any]] = [
    {"name": "resized_crop"},
    {"name": "resized_crop", "scale": [0.9, 1.0], "ratio": [1.5, 2.0]},
    {"name": "colour_jitter", "probability": 0.8},
    {"name": "colour_jitter", "brightness": 1.5, "contrast": 0.0, "hue": 0.5},
    {"name": "grey", "probability": 0.5},
    {"name": "blur"},
    {"name": "blur", "kernel": 7, "sigma": [1.0, 1.5], "probability": 1.0},
    {"name": "erase"},
    {"name": "erase", "scale": [0.5, 1.0], "ratio": [0.1, 10.0], "value": 0.25},
]


def chosen(step: dict[str, Any]) -> Any:
    return AugmentationOptions.choose(step)


def pictures(channels: int = 3, height: int = 13, width: int = 18, count: int = 40) -> tuple[Tensor, Tensor]:
    """As decoded: 256 levels. Some are of one colour."""
    generator = torch.Generator().manual_seed(7)
    pixels = torch.randint(256, (count, channels, height, width), generator=generator).float() / 255
    pixels[3] = 0.4
    pixels[4] = 0
    pixels[5] = 1
    return pixels, torch.randint(2**62, (count,), generator=generator)


def numbers(sample: int, count: int) -> list[float]:
    """What is drawn where fractions are: `UNIFORM_STREAM` is added to the step's place, 0."""
    drawn: list[float] = numpy_uniform(np.array([sample]), fold_key(SEED, VIEW, 2_000_000), count)[0].tolist()
    return drawn


def slow_resized_crop(step: Any, image: Tensor, sample: int) -> Tensor:
    height, width = image.shape[-2:]
    box = first_box(numbers(sample, 40), step, width, height)
    if box is None and width / height < step.ratio[0]:
        box = (0, (height - round(width / step.ratio[0])) // 2, width, round(width / step.ratio[0]))
    elif box is None and width / height > step.ratio[1]:
        box = ((width - round(height * step.ratio[1])) // 2, 0, round(height * step.ratio[1]), height)
    left, top, box_width, box_height = box or (0, 0, width, height)
    return TF.resized_crop(image, top, left, box_height, box_width, [height, width], antialias=True)


def first_box(draws: list[float], step: Any, width: int, height: int) -> tuple[int, int, int, int] | None:
    """Left, top, width and height of the first that fits."""
    for area_draw, ratio_draw, left, top in np.reshape(draws, (-1, 4)).tolist():
        area = width * height * (step.scale[0] + (step.scale[1] - step.scale[0]) * area_draw)
        low, high = (math.log(end) for end in step.ratio)
        ratio = math.exp(low + (high - low) * ratio_draw)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(left * (width - w + 1)), int(top * (height - h + 1)), w, h
    return None


def slow_colour_jitter(step: Any, image: Tensor, sample: int) -> Tensor:
    draws = numbers(sample, 9)
    if draws[8] >= step.probability:
        return image

    def factor(place: int, spread: float) -> float:
        return max(0.0, 1 - spread) + draws[place] * (1 + spread - max(0.0, 1 - spread))

    for way in np.argsort(draws[4:8]):
        if way == 0 and step.brightness:
            image = TF.adjust_brightness(image, factor(0, step.brightness))
        elif way == 1 and step.contrast:
            image = TF.adjust_contrast(image, factor(1, step.contrast))
        elif way == 2 and step.saturation:
            image = TF.adjust_saturation(image, factor(2, step.saturation))
        elif way == 3 and step.hue:
            image = TF.adjust_hue(image, step.hue * (2 * draws[3] - 1))
    return image


def slow_grey(step: Any, image: Tensor, sample: int) -> Tensor:
    is_grey = numbers(sample, 1)[0] < step.probability
    return TF.rgb_to_grayscale(image, image.shape[0]) if is_grey else image


def slow_blur(step: Any, image: Tensor, sample: int) -> Tensor:
    is_blurred, place = numbers(sample, 2)
    sigma = step.sigma[0] + (step.sigma[1] - step.sigma[0]) * place
    return TF.gaussian_blur(image, [step.kernel] * 2, [sigma] * 2) if is_blurred < step.probability else image


def slow_erase(step: Any, image: Tensor, sample: int) -> Tensor:
    is_erased, *draws = numbers(sample, 41)
    box = first_box(draws, step, image.shape[2], image.shape[1])
    if box is None or is_erased >= step.probability:
        return image
    left, top, width, height = box
    return TF.erase(image, top, left, height, width, torch.tensor(step.value))


SLOW = {
    "resized_crop": slow_resized_crop,
    "colour_jitter": slow_colour_jitter,
    "grey": slow_grey,
    "blur": slow_blur,
    "erase": slow_erase,
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("step", STEPS, ids=str)
def test_each_sample_is_changed_as_torchvision_changes_it(step: dict[str, Any], channels: int) -> None:
    inputs, ids = pictures(channels)
    config = chosen(step)
    made = augment(inputs, ids, [config], SEED, VIEW)
    expected = torch.stack(
        [SLOW[step["name"]](config, image, int(i)) for image, i in zip(inputs, ids, strict=True)]
    )
    torch.testing.assert_close(made, expected, rtol=0, atol=2e-5)
    assert made.min() >= 0
    assert made.max() <= 1 + 1e-6
    if (step["name"], channels) != ("grey", 1):
        assert not torch.equal(made, inputs)


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_pixels_do_not_depend_on_the_batch_or_the_order(step: dict[str, Any]) -> None:
    inputs, ids = pictures(height=40, width=60)
    before = inputs.clone()
    whole = augment(inputs, ids, [chosen(step)], SEED, VIEW)
    shuffled = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))
    for size in (1, 7):
        parts = [augment(inputs[p], ids[p], [chosen(step)], SEED, VIEW) for p in shuffled.split(size)]
        assert torch.equal(torch.cat(parts), whole[shuffled])
    assert torch.equal(inputs, before)
    assert not torch.equal(whole, augment(inputs, ids, [chosen(step)], SEED, VIEW + 1))


def test_a_crop_is_that_of_pictures_in_files() -> None:
    step = chosen({"name": "resized_crop"})
    for sample in range(50):
        draws = np.array(numbers(sample, 4 * ATTEMPTS))
        left, top, right, bottom = random_box(31, 40, draws.reshape(-1, 4), 0.08)
        assert first_box(draws.tolist(), step, 31, 40) == (left, top, right - left, bottom - top)


def test_erased_areas_and_ratios_are_spread_as_the_plan_says() -> None:
    step = chosen({"name": "erase", "scale": [0.1, 0.3], "ratio": [0.5, 2.0]})
    made = augment(torch.ones(4000, 1, 100, 100), torch.arange(4000), [step], 0, 0)[:, 0]
    is_erased = (made == 0).any(dim=2).any(dim=1)
    assert abs(is_erased.float().mean() - 0.5) < 0.03
    heights = (made == 0).any(dim=2).sum(dim=1)[is_erased].double()
    widths = (made == 0).any(dim=1).sum(dim=1)[is_erased].double()
    areas, ratios = (heights * widths / 10_000).numpy(), (widths / heights).log().numpy()
    assert stats.kstest(areas, stats.uniform(0.1, 0.2).cdf).statistic < 0.05
    assert stats.kstest(ratios, stats.uniform(-math.log(2), 2 * math.log(2)).cdf).statistic < 0.05


def test_every_order_of_a_jitter_is_as_likely_as_any_other() -> None:
    orders = [tuple(np.argsort(numbers(sample, 8)[4:])) for sample in range(4800)]
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"name": "resized_crop", "scale": [0.5, 0.1]}, "0.5 is above 0.1"),
        ({"name": "resized_crop", "scale": [0.0, 1.0]}, "above 0"),
        ({"name": "erase", "ratio": [3.0, 0.3]}, "3 is above 0.3"),
        ({"name": "erase", "probability": 1.5}, "should be"),
        ({"name": "blur", "kernel": 4}, "write 5"),
        ({"name": "colour_jitter", "hue": 0.6}, "should be"),
    ],
)
def test_a_wrong_option_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TypeAdapter(AugmentationOptions).validate_python(wrong)


@pytest.mark.parametrize(
    ("step", "shape", "said"),
    [
        ({"name": "grey"}, (2, 8, 8), "1 or 3 channels, not 2"),
        ({"name": "blur", "kernel": 9}, (3, 4, 8), "`kernel` 9 reaches over images of 4 x 8"),
        ({"name": "erase"}, (5,), "needs images"),
    ],
)
def test_inputs_that_it_cannot_change_are_refused(
    step: dict[str, Any], shape: tuple[int, ...], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        augment(torch.zeros(2, *shape), torch.arange(2), [chosen(step)], SEED, VIEW)
