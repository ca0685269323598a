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
    AugmentConfig,
    CutoutConfig,
    FlipConfig,
    MixupConfig,
    PadCropConfig,
    ShiftConfig,
)
from raydistill.tasks.devices import to_device
from raydistill.training.counter_random import integers, uniform

MIXUP_STREAM = 1_000_000  # far from the positions of the steps, which are the other streams
QUANTILES = 4096


def augment(inputs: Tensor, ids: Tensor, steps: Sequence[AugmentConfig], seed: int, view: int) -> Tensor:
    """One view of inputs (B, C, H, W) whose zero is the background; `ids` (B,) int64 on the same device.

    Steps are applied in order, each with random numbers of its own. Mixup is left to the caller, who has the other
    samples at hand (`mixup_partners`). `ValueError` when `inputs` are not what a step needs.
    """
    for stream, step in enumerate(steps):
        if not inputs.is_floating_point():
            raise ValueError(
                f"augmentation `{step.name}` makes other numbers, but the inputs are integers that stand for things"
            )
        if isinstance(step, MixupConfig):
            continue
        if inputs.dim() != 4:
            raise ValueError(
                f"augmentation `{step.name}` needs images; an input has the shape {tuple(inputs.shape[1:])}"
            )
        inputs = _AUGMENTATIONS[type(step)](step, inputs, _Draws(ids, seed, view, stream))
    return inputs


def mixup_partners(ids: Tensor, view: int, seed: int, population: int, alpha: float) -> tuple[Tensor, Tensor]:
    """For each id (B,): the position of its partner among `population` samples, and the weight of the sample itself.

    Positions (B,) int64; weights (B,) float32 from Beta(alpha, alpha). The mixed input is w x + (1 - w) x_partner.
    """
    positions = integers(seed, ids, view, MIXUP_STREAM, (population,))[:, 0]
    place = uniform(seed, ids, view, MIXUP_STREAM + 1, 1)[:, 0] * QUANTILES
    table = _beta_quantiles(alpha, ids.device)
    below = place.long()
    return positions, torch.lerp(table[below], table[below + 1], place - below)


class _Draws:
    """The random numbers of one step for one batch."""

    def __init__(self, ids: Tensor, seed: int, view: int, stream: int) -> None:
        self.ids, self.seed, self.view, self.stream = ids, seed, view, stream

    def integers(self, *bounds: int) -> tuple[Tensor, ...]:
        """One tensor (B,) per bound, uniform on 0, ..., bound - 1."""
        return integers(self.seed, self.ids, self.view, self.stream, bounds).unbind(1)


def _shift(step: ShiftConfig, inputs: Tensor, draws: _Draws) -> Tensor:
    return _crop_from_padded(inputs, step.pixels, draws)


def _pad_crop(step: PadCropConfig, inputs: Tensor, draws: _Draws) -> Tensor:
    return _crop_from_padded(inputs, step.padding, draws)


def _crop_from_padded(inputs: Tensor, padding: int, draws: _Draws) -> Tensor:
    """A shift by up to `padding` pixels is a crop from the padded image; all crops are one view of its memory."""
    height, width = inputs.shape[-2:]
    top, left = draws.integers(2 * padding + 1, 2 * padding + 1)
    crops = F.pad(inputs, [padding] * 4).unfold(2, height, 1).unfold(3, width, 1)
    return crops[torch.arange(len(inputs), device=inputs.device), :, top, left]


def _flip(step: FlipConfig, inputs: Tensor, draws: _Draws) -> Tensor:
    (mirrored,) = draws.integers(2)
    return torch.where(mirrored.bool()[:, None, None, None], inputs.flip(-1), inputs)


def _cutout(step: CutoutConfig, inputs: Tensor, draws: _Draws) -> Tensor:
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


_AUGMENTATIONS: dict[type, Callable[[Any, Tensor, _Draws], Tensor]] = {
    ShiftConfig: _shift,
    PadCropConfig: _pad_crop,
    FlipConfig: _flip,
    CutoutConfig: _cutout,
}
