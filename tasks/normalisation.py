"""From raw inputs to what a model is trained on: one module for training, prediction, export and synthesis."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raydistill.tasks.batch_memory import batch_floats

SAMPLES_AT_ONCE = 2048


class Normalisation(nn.Module):
    """Raw inputs (B, ...) less `mean`, divided by `std`, which broadcast over one input; integers as they are.

    A model means nothing without the pair that it was trained with: they are saved with it, and loaded with it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, inputs: Tensor) -> Tensor:
        if not inputs.is_floating_point():
            return inputs
        # In place: a second tensor of 20 MB costs the operating system's zeroing of its pages, four times the division.
        return (inputs - self.mean).div_(self.std)

    def of_batch(self, inputs: Tensor) -> Tensor:
        """As `forward`; on the CPU in the memory of an earlier batch. No gradient goes through it."""
        if inputs.device.type != "cpu" or inputs.dtype != torch.float32:
            normalised: Tensor = self(inputs)
            return normalised
        shape = torch.broadcast_shapes(inputs.shape, self.mean.shape)
        return torch.sub(inputs, self.mean, out=batch_floats(shape)).div_(self.std)

    def on(self, device: torch.device | str) -> "Normalisation":
        """The same on `device`. `to` would move this one, which others use too."""
        return Normalisation(self.mean.to(device), self.std.to(device))


def channel_statistics(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel of inputs (N, C, ...), as (C, 1, ...), after scaling uint8 to [0, 1].

    Summed in float64 over fixed pieces, so that they do not depend on the number of threads; uint8 sums are exact.
    A constant channel gets the standard deviation 1.
    """
    channels, shape = inputs.shape[1], (inputs.shape[1], *[1] * (inputs.dim() - 2))
    total, squares = np.zeros(channels), np.zeros(channels)
    for piece in inputs.split(SAMPLES_AT_ONCE):
        values = piece.numpy().astype(np.float64).reshape(len(piece), channels, -1)
        total += values.sum(axis=(0, 2))
        squares += np.square(values).sum(axis=(0, 2))
    count = max(inputs.numel() // max(channels, 1), 1)
    scale = 255.0 if inputs.dtype == torch.uint8 else 1.0
    mean = total / count
    variance = np.maximum(squares / count - np.square(mean), 0)
    # Cancellation leaves about 1e-16 of the squares where the true variance is zero.
    std = np.where(variance > 1e-12 * squares / count, np.sqrt(variance) / scale, 1.0)
    return _float_tensor(mean / scale, shape), _float_tensor(std, shape)


def _float_tensor(values: NDArray[np.float64], shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).view(shape)
