"""SpecAugment against a loop over masks with numbers that numpy draws."""

from typing import Any

import numpy as np
import pytest
import torch

from raydistill.kinds.augmentations import AugmentationOptions, SpecAugmentConfig
from raydistill.tasks.hashing import fold_key
from raydistill.tasks.hashing import uniform as numpy_uniform
from raydistill.training.augment import augment

SEED, VIEW = 3, 5


def slow_spec_augment(step: SpecAugmentConfig, spectrum: np.ndarray, sample: int) -> np.ndarray:
    """One spectrum (..., frames, features): bands first, then spans, each with a width and a start."""
    count = 2 * (step.feature_masks + step.frame_masks)
    numbers = iter(numpy_uniform(np.array([sample]), fold_key(SEED, VIEW, 2_000_000), count)[0])
    made = spectrum.copy()
    for masks, widest, axis in ((step.feature_masks, step.features, -1), (step.frame_masks, step.frames, -2)):
        for _ in range(masks):
            width = int(next(numbers) * (widest + 1))
            start = int(next(numbers) * (spectrum.shape[axis] - width + 1))
            np.moveaxis(made, axis, 0)[start : start + width] = step.value
    return made


@pytest.mark.parametrize("shape", [(26, 40), (2, 11, 8)])
@pytest.mark.parametrize("options", [{}, {"feature_masks": 0, "frame_masks": 3, "value": -1.5}])
def test_each_sample_is_hidden_as_a_loop_hides_it(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    step = SpecAugmentConfig(name="spec_augment", **options)
    inputs, ids = torch.randn(60, *shape), torch.arange(60) * 7
    made = augment(inputs, ids, [step], SEED, VIEW)
    expected = [slow_spec_augment(step, each.numpy(), int(i)) for each, i in zip(inputs, ids, strict=True)]
    np.testing.assert_array_equal(made.numpy(), np.stack(expected))
    parts = [augment(inputs[p], ids[p], [step], SEED, VIEW) for p in torch.arange(60).flip(0).split(7)]
    assert torch.equal(torch.cat(parts), made.flip(0))


def test_widths_and_places_are_all_alike() -> None:
    step = SpecAugmentConfig(name="spec_augment", feature_masks=0, frame_masks=1, frames=3)
    is_hidden = augment(torch.ones(20_000, 6, 2), torch.arange(20_000), [step], SEED, VIEW)[..., 0] == 0
    widths = is_hidden.sum(dim=1)
    assert np.abs(np.bincount(widths.numpy()) / 20_000 - 1 / 4).max() < 0.02
    starts = is_hidden[widths == 2].byte().argmax(dim=1)
    assert np.abs(np.bincount(starts.numpy(), minlength=5) / len(starts) - 1 / 5).max() < 0.03


@pytest.mark.parametrize(
    ("options", "shape", "said"),
    [
        ({}, (40,), "needs frames of features"),
        ({"frames": 30}, (26, 40), "`frames` 30 is more than the 26 of an input"),
    ],
)
def test_inputs_that_it_cannot_hide_are_refused(
    options: dict[str, Any], shape: tuple[int, ...], said: str
) -> None:
    step = AugmentationOptions.choose({"name": "spec_augment", **options})
    with pytest.raises(ValueError, match=said):
        augment(torch.zeros(2, *shape), torch.arange(2), [step], SEED, VIEW)
