"""Training of networks that will be integers: weights and inputs of layers are rounded in every training step.

Jacob et al., CVPR 2018, arXiv 1712.05877. Gradients pass through the rounding as if it were not there. Nothing is kept
between steps and no parameter is renamed: the trained network is the plain one, and rounds well.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from raydistill.kinds.training import FakeQuantizationConfig

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
LEAST = 1e-12  # a scale of zeros


class FakeQuantized:
    """Runs a network as if its layers were integers."""

    def __init__(self, model: nn.Module, config: FakeQuantizationConfig) -> None:
        self.config = config
        self._active = False
        layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, LAYERS)}
        self._names = tuple(f"{path}.weight" if path else "weight" for path in layers)
        if config.activation_bits is not None:
            for layer in layers.values():
                layer.register_forward_pre_hook(self._round_inputs)

    def __call__(self, model: nn.Module, inputs: Tensor) -> Any:
        """What the model returns for inputs (B, ...)."""
        rounded = {
            name: rounded_weights(model.get_parameter(name), self.config.weight_bits) for name in self._names
        }
        self._active = True
        try:
            return functional_call(model, rounded, (inputs,))
        finally:
            self._active = False

    def _round_inputs(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if not self._active:
            return None
        assert self.config.activation_bits is not None
        return (rounded_inputs(inputs[0], self.config.activation_bits), *inputs[1:])


def rounded_weights(weights: Tensor, bits: int) -> Tensor:
    """Weights (C, ...) on the grid of signed integers of some bits, a scale for each of the C outputs.

    A batch norm behind the layer multiplies each output, weights and scale alike: folding it in changes no integer.
    """
    largest = 2 ** (bits - 1) - 1
    flat = weights.float().flatten(1)
    scales = (flat.detach().abs().amax(dim=1) / largest).clamp(min=LEAST)
    zeros = torch.zeros_like(
        scales
    )  # floats, since of integers torch looks at the range, for which a GPU is waited for
    rounded = torch.fake_quantize_per_channel_affine(weights.float(), scales, zeros, 0, -largest, largest)
    return rounded.to(weights.dtype)


def rounded_inputs(inputs: Tensor, bits: int) -> Tensor:
    """A batch's inputs of a layer on the grid of unsigned integers of some bits between its extremes and 0."""
    largest = 2**bits - 1
    values = inputs.float()
    extremes = values.detach().aminmax()
    least, most = extremes.min.clamp(max=0), extremes.max.clamp(min=0)
    scale = ((most - least) / largest).clamp(min=LEAST)
    zero = (-least / scale).round().clamp(0, largest).to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(values, scale, zero, 0, largest).to(inputs.dtype)
