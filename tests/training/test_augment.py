"""Augmentation against a slow loop over samples with plain Python integers; its random numbers against statistics."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from scipy import stats

from raydistill.kinds.augmentations import (
    AUGMENTATIONS,
    AugmentationOptions,
    CutmixConfig,
    CutoutConfig,
    FlipConfig,
    MixupConfig,
    PadCropConfig,
    ShiftConfig,
)
from raydistill.tasks.hashing import fold_key
from raydistill.tasks.hashing import uniform as numpy_uniform
from raydistill.training.augment import augment, mixing_partners, mixing_weights
from raydistill.training.counter_random import StaticView, integers, random_bits, uniform

EVERY_STEP = [
    ShiftConfig(pixels=2),
    PadCropConfig(padding=3),
    FlipConfig(),
    CutoutConfig(size=3),
    CutoutConfig(size=4),
]


def splitmix(state: int, counter: int) -> int:
    """The `counter`-th output of SplitMix64 from `state`, as in the paper; `counter` 0 is the bare finaliser."""
    z = (state + counter * 0x9E3779B97F4A7C15) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


def slow_integer(seed: int, sample: int, view: int, stream: int, counter: int, bound: int) -> int:
    state = splitmix((sample + fold_key(seed, view, stream)) % 2**64, 0)
    return (splitmix(state, counter + 1) >> 32) * bound >> 32


def slow_augment(
    image: np.ndarray, sample: int, steps: list[AugmentationOptions], seed: int, view: int
) -> np.ndarray:
    """One image (C, H, W), pixel by pixel."""
    channels, height, width = image.shape
    for stream, step in enumerate(steps):
        result = np.zeros_like(image)

        def draw(counter: int, bound: int, stream: int = stream) -> int:
            return slow_integer(seed, sample, view, stream, counter, bound)

        for c, y, x in np.ndindex(channels, height, width):
            if isinstance(step, ShiftConfig | PadCropConfig):
                reach = step.pixels if isinstance(step, ShiftConfig) else step.padding
                from_y = y + draw(0, 2 * reach + 1) - reach
                from_x = x + draw(1, 2 * reach + 1) - reach
                if 0 <= from_y < height and 0 <= from_x < width:
                    result[c, y, x] = image[c, from_y, from_x]
            elif isinstance(step, FlipConfig):
                result[c, y, x] = image[c, y, width - 1 - x] if draw(0, 2) else image[c, y, x]
            elif isinstance(step, CutoutConfig):
                top, left = draw(0, height) - step.size // 2, draw(1, width) - step.size // 2
                inside = top <= y < top + step.size and left <= x < left + step.size
                result[c, y, x] = 0 if inside else image[c, y, x]
        image = result
    return image


def random_images(count: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    inputs = torch.rand(count, 2, 7, 9, generator=generator)
    return inputs, torch.randint(2**62, (count,), generator=generator)


@pytest.mark.parametrize("step", EVERY_STEP, ids=lambda step: repr(step))
def test_each_step_agrees_with_a_loop_over_pixels(step: AugmentationOptions) -> None:
    inputs, ids = random_images()
    fast = augment(inputs, ids, [step], seed=-3, view=5)
    slow = [slow_augment(image.numpy(), int(i), [step], -3, 5) for image, i in zip(inputs, ids, strict=True)]
    np.testing.assert_array_equal(fast.numpy(), np.stack(slow))


def test_a_list_of_steps_agrees_with_a_loop_over_pixels() -> None:
    inputs, ids = random_images()
    fast = augment(inputs, ids, EVERY_STEP, seed=2**63, view=0)
    slow = [
        slow_augment(image.numpy(), int(i), EVERY_STEP, 2**63, 0)
        for image, i in zip(inputs, ids, strict=True)
    ]
    np.testing.assert_array_equal(fast.numpy(), np.stack(slow))


def test_pixels_do_not_depend_on_the_batch_or_the_order() -> None:
    inputs, ids = random_images(20)
    whole = augment(inputs, ids, EVERY_STEP, seed=1, view=2)
    shuffled = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    pieces = [augment(inputs[part], ids[part], EVERY_STEP, seed=1, view=2) for part in shuffled.split(3)]
    assert torch.equal(torch.cat(pieces), whole[shuffled])


def test_another_seed_or_view_gives_other_pixels_and_the_same_ones_come_back() -> None:
    inputs, ids = random_images()
    first = augment(inputs, ids, EVERY_STEP, seed=1, view=2)
    assert torch.equal(first, augment(inputs, ids, EVERY_STEP, seed=1, view=2))
    assert not torch.equal(first, augment(inputs, ids, EVERY_STEP, seed=1, view=3))
    assert not torch.equal(first, augment(inputs, ids, EVERY_STEP, seed=2, view=2))


def test_the_inputs_are_not_changed() -> None:
    inputs, ids = random_images()
    before = inputs.clone()
    augment(inputs, ids, EVERY_STEP, seed=0, view=0)
    assert torch.equal(inputs, before)


def test_every_shift_is_as_likely_as_any_other() -> None:
    pixel = torch.zeros(20_000, 1, 5, 5)
    pixel[:, :, 2, 2] = 1
    moved = augment(pixel, torch.arange(20_000), [ShiftConfig(pixels=2)], seed=0, view=0)
    counts = moved.sum(dim=(0, 1)).flatten().numpy()
    assert counts.sum() == 20_000
    assert stats.chisquare(counts).pvalue > 1e-4


def test_an_input_that_is_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match="`flip` needs images"):
        augment(torch.zeros(3, 8), torch.arange(3), [FlipConfig()], seed=0, view=0)


def test_mixup_alone_leaves_inputs_of_any_shape() -> None:
    inputs = torch.rand(3, 8)
    assert torch.equal(augment(inputs, torch.arange(3), [MixupConfig()], seed=0, view=0), inputs)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_mixup_weights_are_beta_distributed_and_partners_uniform(alpha: float) -> None:
    ids = torch.arange(20_000)
    partners = mixing_partners(ids, 4, 0, 10)
    weights = mixing_weights([MixupConfig(alpha=alpha)], ids, 4, 0, (2, 3)).flatten()
    assert stats.kstest(weights.double().numpy(), stats.beta(alpha, alpha).cdf).pvalue > 1e-4
    assert stats.chisquare(np.bincount(partners.numpy(), minlength=10)).pvalue > 1e-4
    assert abs(np.corrcoef(partners.numpy(), weights.numpy())[0, 1]) < 0.03


@pytest.mark.parametrize("steps", [[MixupConfig()], [CutmixConfig()], [CutmixConfig(), MixupConfig()]])
def test_what_is_mixed_depends_on_seed_id_and_view_only(steps: list[AugmentationOptions]) -> None:
    ids, shape = torch.arange(50), (3, 7, 9)
    partners, weights = mixing_partners(ids, 4, 1, 1000), mixing_weights(steps, ids, 4, 1, shape)
    few = ids.flip(0)[:7]
    assert torch.equal(mixing_partners(few, 4, 1, 1000), partners.flip(0)[:7])
    assert torch.equal(mixing_weights(steps, few, 4, 1, shape), weights.flip(0)[:7])
    assert not torch.equal(partners, mixing_partners(ids, 4, 2, 1000))
    assert not torch.equal(weights, mixing_weights(steps, ids, 4, 2, shape))


def test_a_view_whose_number_lies_in_a_tensor_is_that_view() -> None:
    """Also when another number is written after all was drawn once."""
    inputs, ids = torch.rand(12, 3, 9, 9), torch.arange(12) * 3
    steps, mixing = [step() for step in AUGMENTATIONS], [CutmixConfig(), MixupConfig()]
    view = StaticView(torch.device("cpu"))
    for number in (0, 4, 2**40):
        view.write(number)
        assert view.number == number
        assert torch.equal(augment(inputs, ids, steps, 5, view), augment(inputs, ids, steps, 5, number))
        drawn, expected = (mixing_partners(ids, 5, each, 12) for each in (view, number))
        assert torch.equal(drawn, expected)
        weights, wanted = (mixing_weights(mixing, ids, 5, each, (3, 9, 9)) for each in (view, number))
        assert torch.equal(weights, wanted)


def test_a_rectangle_of_another_is_pasted_as_the_paper_has_it() -> None:
    """Masks of one sample after another, from numbers that numpy draws, with the floor and the cut of the release."""
    height, width, view = 20, 31, 6
    weights = mixing_weights([CutmixConfig(alpha=0.7)], torch.arange(60), 4, view, (3, height, width))
    for sample, mask in enumerate(weights[:, 0].numpy()):
        part, row, column, _ = numpy_uniform(np.array([sample]), fold_key(4, view, 1_000_001), 4)[0]
        reach = 0.5 * np.sqrt(1 - stats.beta(0.7, 0.7).ppf(part))
        rows, columns = np.arange(height), np.arange(width)
        middle, half = int(row * height), int(reach * height)
        is_row = (rows >= max(middle - half, 0)) & (rows < min(middle + half, height))
        middle, half = int(column * width), int(reach * width)
        is_column = (columns >= max(middle - half, 0)) & (columns < min(middle + half, width))
        np.testing.assert_array_equal(mask, 1.0 - np.outer(is_row, is_column))


def test_a_sample_is_pasted_into_as_often_as_the_plan_says() -> None:
    weights = mixing_weights([CutmixConfig(probability=0.3)], torch.arange(5000), 4, 0, (1, 40, 40))
    is_mixed = weights.flatten(1).amin(dim=1) == 0
    assert abs(is_mixed.float().mean() - 0.3) < 0.03


def test_of_two_ways_to_mix_each_sample_gets_one() -> None:
    ids, shape, pair = torch.arange(4000), (1, 30, 30), (MixupConfig(alpha=1.0), CutmixConfig())
    both = mixing_weights(pair, ids, 4, 0, shape).expand(-1, 1, 30, 30)
    alone = [mixing_weights([step], ids, 4, 0, shape).expand(-1, 1, 30, 30) for step in pair]
    is_one = [(both == other).flatten(1).all(dim=1) for other in alone]
    assert (is_one[0] | is_one[1]).all()
    assert abs(is_one[0].float().mean() - 0.5) < 0.04


def test_only_images_are_cut() -> None:
    with pytest.raises(ValueError, match="`cutmix` needs images"):
        mixing_weights([CutmixConfig()], torch.arange(3), 0, 0, (8,))


def test_random_bits_are_those_of_splitmix64() -> None:
    ids = torch.tensor([0, 1, -1, 2**62])
    bits = random_bits(ids, fold_key(99, 3, 1), 4).numpy().view(np.uint64).tolist()
    states = [splitmix((int(i) + fold_key(99, 3, 1)) % 2**64, 0) for i in ids]
    assert bits == [[splitmix(state, counter) for counter in range(1, 5)] for state in states]


def test_torch_and_numpy_draw_the_same_numbers() -> None:
    ids = np.arange(100)
    expected = numpy_uniform(ids, fold_key(8, 1, 2), 3)
    np.testing.assert_array_equal(
        uniform(torch.from_numpy(ids), fold_key(8, 1, 2), 3).double().numpy(), expected
    )


def test_uniform_numbers_have_the_right_mean_variance_and_histogram() -> None:
    numbers = uniform(torch.arange(50_000), fold_key(0, 0, 0), 4).double().numpy().ravel()
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert abs(numbers.mean() - 1 / 2) < 5 / np.sqrt(12 * numbers.size)
    assert abs(numbers.var() - 1 / 12) < 5 / np.sqrt(180 * numbers.size)
    assert stats.chisquare(np.histogram(numbers, bins=256, range=(0, 1))[0]).pvalue > 1e-4


def test_neighbouring_ids_views_streams_and_seeds_are_uncorrelated() -> None:
    ids = torch.arange(20_000)
    columns = [
        uniform(ids + i, fold_key(s, v, t), 2)
        for s, i, v, t in [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    ]
    correlation = np.corrcoef(torch.cat(columns, dim=1).double().numpy().T) - np.eye(10)
    assert np.abs(correlation).max() < 5 / np.sqrt(20_000)


def test_one_changed_bit_of_the_id_changes_half_of_the_random_bits() -> None:
    ids = torch.arange(2000)
    before = random_bits(ids, fold_key(0, 0, 0), 1)[:, 0].numpy().view(np.uint64)
    for position in range(0, 63, 7):
        after = random_bits(ids ^ (1 << position), fold_key(0, 0, 0), 1)[:, 0].numpy().view(np.uint64)
        flipped = np.unpackbits((before ^ after).view(np.uint8)).reshape(2000, 64).mean(axis=0)
        assert np.abs(flipped - 0.5).max() < 5.5 * 0.5 / np.sqrt(2000)


def test_integers_reach_both_ends_and_never_the_bound() -> None:
    numbers = integers(torch.arange(5000), fold_key(0, 0, 0), (1, 3, 2**31 - 1))
    assert numbers[:, 0].unique().tolist() == [0]
    assert numbers[:, 1].unique().tolist() == [0, 1, 2]
    assert numbers[:, 2].min() >= 0
    assert 2**30 < numbers[:, 2].max() < 2**31 - 1


def test_successive_views_of_one_sample_differ() -> None:
    views = [integers(torch.tensor([5]), fold_key(0, view, 0), (2**31 - 1,)).item() for view in range(50)]
    assert all(a != b for a, b in pairwise(views))


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "shift", "pixels": 0},
        {"name": "mixup", "alpha": 0},
        {"name": "melt"},
        {"name": "flip", "pixels": 1},
        {},
    ],
)
def test_a_wrong_step_in_a_plan_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(AugmentationOptions).validate_python(wrong)
