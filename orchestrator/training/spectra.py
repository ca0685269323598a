"""Changes of spectra, (B, frames, features) or (B, channels, frames, features)."""

import torch
from torch import Tensor

from raydistill.kinds.augmentations import SpecAugmentConfig
from raydistill.training.augment import Draws


def spec_augment(step: SpecAugmentConfig, inputs: Tensor, draws: Draws) -> Tensor:
    frames, features = inputs.shape[-2:]
    numbers = draws.uniform(2 * (step.feature_masks + step.frame_masks)).unflatten(1, (-1, 2))
    bands, spans = numbers.split([step.feature_masks, step.frame_masks], dim=1)
    is_hidden = (
        _hidden(spans, step.frames, frames)[:, :, None] | _hidden(bands, step.features, features)[:, None]
    )
    return inputs.masked_fill(is_hidden.view(-1, *[1] * (inputs.dim() - 3), frames, features), step.value)


def _hidden(numbers: Tensor, widest: int, length: int) -> Tensor:
    """Which of `length` places lie in a mask; width and start of each are numbers (B, masks, 2) in [0, 1).
    → (B, length)."""
    width = (numbers[..., :1] * (widest + 1)).floor()
    start = (numbers[..., 1:] * (length - width + 1)).floor()
    places = torch.arange(length, device=numbers.device)
    return ((places >= start) & (places < start + width)).any(dim=1)
