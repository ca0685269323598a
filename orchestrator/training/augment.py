"""Augmentation as functions of whole batches, replayable: the pixels of a sample depend on (seed, id, view) only.

Neither the batch a sample is in, nor its place there, nor the device or the number of workers changes them.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from raydistill.kinds.augmentations import (
    AugmentationOptions,
    CutmixConfig,
    CutoutConfig,
    FlipConfig,
    MixupConfig,
    PadCropConfig,
    ShiftConfig,
)
from raydistill.lookup import load_object
from raydistill.tasks.devices import to_device
from raydistill.training.counter_random import Key, StaticView, integers, uniform, view_key

MIXING_STREAM = 1_000_000  # far from the positions of the steps, which are the other streams
CHOICE_STREAM = 1_000_002  # the one between them is the mixing steps' fractions
UNIFORM_STREAM = 2_000_000  # is added where a step draws fractions
QUANTILES = 4096
AT_ONCE = 2**20  # numbers that a CPU changes at a time

Change = Callable[[Any, Tensor, "Draws"], Tensor]


def augment(
    inputs: Tensor, ids: Tensor, steps: Sequence[AugmentationOptions], seed: int, view: int | StaticView
) -> Tensor:
    """One view of inputs (B, C, H, W) whose zero is the background; `ids` (B,) int64 on the same device.

    Steps are applied in order, each with random numbers of its own. What mixes samples is left to the caller, who has
    the others at hand (`mixing_partners`). `ValueError` when `inputs` are not what a step needs.
    """
    for stream, step in enumerate(steps):
        if not inputs.is_floating_point():
            raise ValueError(
                f"augmentation `{step.name}` makes other numbers, but the inputs are integers that stand for things"
            )
        if step.mixes_samples:
            continue
        if (message := step.mistake(tuple(inputs.shape[1:]))) is not None:
            raise ValueError(message)
        change: Change = load_object(step.implementation)
        inputs = change(step, inputs, Draws(ids, seed, view, stream))
    return inputs


def mixing_partners(ids: Tensor, seed: int, view: int | StaticView, population: int) -> Tensor:
    """For each id the position of its partner among `population` samples, all alike: (B,) → (B,) int64."""
    (positions,) = Draws(ids, seed, view, MIXING_STREAM).integers(population)
    return positions


def mixing_weights(
    steps: Sequence[AugmentationOptions],
    ids: Tensor,
    seed: int,
    view: int | StaticView,
    shape: tuple[int, ...],
) -> Tensor:
    """How much of itself each sample keeps, for ids (B,) and inputs of a shape: (B, 1, ..., 1) or, of images, (B, 1, H,
    W) float32. The mixed input is w x + (1 - w) x_partner. Of several steps each sample is mixed by one."""
    draws = Draws(ids, seed, view, MIXING_STREAM)
    weights = [load_object(step.implementation)(step, draws, shape) for step in steps]
    mixed: Tensor = weights[0]
    if len(steps) > 1:
        (drawn,) = Draws(ids, seed, view, CHOICE_STREAM).integers(len(steps))
        for number, others in enumerate(weights[1:], 1):
            mixed = torch.where((drawn == number).view(-1, *[1] * len(shape)), others, mixed)
    return mixed


class Draws:
    """The random numbers of one step for a batch of samples `ids` (B,): the same whatever batch a sample is in."""

    def __init__(self, ids: Tensor, seed: int, view: int | StaticView, stream: int) -> None:
        self.ids, self.seed, self.view, self.stream = ids, seed, view, stream

    def integers(self, *bounds: int) -> tuple[Tensor, ...]:
        """One tensor (B,) int64 per bound, uniform on 0, ..., bound - 1."""
        return integers(self.ids, self._key(self.stream), bounds).unbind(1)

    def uniform(self, count: int) -> Tensor:
        """Numbers (B, count) in [0, 1)."""
        stream = self.stream + (1 if self.stream == MIXING_STREAM else UNIFORM_STREAM)
        return uniform(self.ids, self._key(stream), count)

    def _key(self, stream: int) -> Key:
        return view_key(self.seed, self.view, stream)


def by_choice(
    choice: Tensor, changes: Sequence[Callable[..., Tensor] | None], inputs: Tensor, *numbers: Tensor
) -> Tensor:
    """Of each input of a batch the change that was drawn for it, `changes[choice[i]]`; None leaves it as it is.

    A change is called with inputs and their rows of `numbers`. On a CPU it is shown those that it was drawn for.
    Anywhere else the host would wait to hear how many they are: it is shown all, and what it makes of the others is
    dropped.
    """
    is_on_host = inputs.device.type == "cpu"
    result = inputs.clone() if is_on_host else inputs
    for number, change in enumerate(changes):
        if change is None:
            continue
        chosen = choice == number
        if is_on_host:
            _change_rows(result, chosen.nonzero()[:, 0], change, inputs, *numbers)
        else:
            changed = change(inputs, *numbers)
            result = torch.where(chosen.view(-1, *[1] * (inputs.dim() - 1)), changed, result)
    return result


def _change_rows(result: Tensor, rows: Tensor, change: Callable[..., Tensor], *given: Tensor) -> None:
    """Write into `result` what a change makes of some rows of what it is given."""
    if not len(rows):
        return
    # A few images at a time stay in the caches: of large ones a blur takes a fifth of the time.
    for part in rows.split(max(1, AT_ONCE // result.shape[1:].numel())):
        result.index_copy_(0, part, change(*(each.index_select(0, part) for each in given)))


def mixup(step: MixupConfig, draws: Draws, shape: tuple[int, ...]) -> Tensor:
    """Weights from Beta(alpha, alpha), one for all of an input."""
    return _beta(step.alpha, draws.uniform(1)[:, 0]).view(-1, *[1] * len(shape))


def cutmix(step: CutmixConfig, draws: Draws, shape: tuple[int, ...]) -> Tensor:
    """0 in a rectangle and 1 around it."""
    if (message := step.mistake(shape)) is not None:
        raise ValueError(message)
    part, row, column, chance = draws.uniform(4).unbind(1)
    reach = 0.5 * torch.sqrt(1 - _beta(step.alpha, part))
    inside = _around(row, reach, shape[1])[:, :, None] & _around(column, reach, shape[2])[:, None, :]
    inside = inside & (chance < step.probability)[:, None, None]
    return (~inside)[:, None].float()


def _around(middle: Tensor, reach: Tensor, length: int) -> Tensor:
    """Which of `length` places lie around a middle, both given as parts of the length, (B,) → (B, length)."""
    middle, reach = (middle * length).long()[:, None], (reach * length).long()[:, None]
    places = torch.arange(length, device=middle.device)
    return (places >= middle - reach) & (places < middle + reach)


def _beta(alpha: float, numbers: Tensor) -> Tensor:
    """Numbers in [0, 1) made into such from Beta(alpha, alpha)."""
    place = numbers * QUANTILES
    table = _beta_quantiles(alpha, numbers.device)
    below = place.long()
    return torch.lerp(table[below], table[below + 1], place - below)


def shift(step: ShiftConfig, inputs: Tensor, draws: Draws) -> Tensor:
    return _crop_from_padded(inputs, step.pixels, draws)


def pad_crop(step: PadCropConfig, inputs: Tensor, draws: Draws) -> Tensor:
    return _crop_from_padded(inputs, step.padding, draws)


def _crop_from_padded(inputs: Tensor, padding: int, draws: Draws) -> Tensor:
    """A shift by up to `padding` pixels is a crop from the padded image; all crops are one view of its memory."""
    height, width = inputs.shape[-2:]
    top, left = draws.integers(2 * padding + 1, 2 * padding + 1)
    crops = F.pad(inputs, [padding] * 4).unfold(2, height, 1).unfold(3, width, 1)
    return crops[torch.arange(len(inputs), device=inputs.device), :, top, left]


def flip(step: FlipConfig, inputs: Tensor, draws: Draws) -> Tensor:
    (mirrored,) = draws.integers(2)
    return torch.where(mirrored.bool()[:, None, None, None], inputs.flip(-1), inputs)


def cutout(step: CutoutConfig, inputs: Tensor, draws: Draws) -> Tensor:
    height, width = inputs.shape[-2:]
    row, column = draws.integers(height, width)
    hole = _near(row, height, step.size)[:, None, :, None] & _near(column, width, step.size)[:, None, None, :]
    return inputs.masked_fill(hole, 0)


def _near(centre: Tensor, length: int, size: int) -> Tensor:
    """Which of `length` places lie in the `size` places around each centre, (B,) → (B, length)."""
    offset = torch.arange(length, device=centre.device) - (centre - size // 2)[:, None]
    return (offset >= 0) & (offset < size)


@lru_cache(maxsize=16)
def _beta_quantiles(alpha: float, device: torch.device) -> Tensor:
    """Quantiles 0, 1/n, ..., 1 of Beta(alpha, alpha), (n + 1,); torch has no such function."""
    from scipy.special import betaincinv

    quantiles = betaincinv(alpha, alpha, np.linspace(0, 1, QUANTILES + 1))
    return to_device(torch.from_numpy(quantiles.astype(np.float32)), device)
