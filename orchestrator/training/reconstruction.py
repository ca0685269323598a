"""Inputs that make a frozen network have given activations (arXiv 1710.07535, section 3)."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activations = Callable[[Tensor], dict[str, Tensor]]


def reconstruction_loss(
    wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], *, by_size: bool
) -> Tensor:
    """Σ_l w_l · mean((relu(r_l) - relu(h_l))²) over the layers of `wanted`, (B, D) each; w_l is 1, `by_size` 1 / D."""
    terms = [
        F.mse_loss(found[name].relu(), record.relu()) / (record.shape[1] if by_size else 1)
        for name, record in wanted.items()
    ]
    return torch.stack(terms).sum()


def reconstruct(
    activations: Activations,
    start: Tensor,
    wanted: Mapping[str, Tensor],
    *,
    steps: int,
    learning_rate: float,
    by_size: bool = False,
    smooth_every: int | None = None,
) -> Tensor:
    """Inputs (B, ...) like `start`, after `steps` of Adam towards the activations `wanted`; nothing else moves."""
    inputs = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([inputs], learning_rate)
    for step in range(steps):
        loss = reconstruction_loss(wanted, activations(inputs), by_size=by_size)
        (inputs.grad,) = torch.autograd.grad(loss, inputs)
        optimizer.step()
        if smooth_every and (step + 1) % smooth_every == 0:
            inputs.data = smoothed(inputs.data)
    return inputs.detach()


def smoothed(images: Tensor) -> Tensor:
    """Images (B, C, H, W) after a 3x3 mean, of the pixels that are there at the border, clipped to [0, 1]."""
    return F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False).clamp(0, 1)


@contextmanager
def thinned(model: nn.Module, generator: torch.Generator) -> Iterator[int]:
    """The network with the same random units dropped in every pass; yields how many dropout layers it has.

    A unit is kept with the probability of its dropout layer, and not rescaled.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Dropout) and module.p > 0]
    masks: dict[nn.Module, Tensor] = {}

    def drop(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if module not in masks:
            draws = torch.rand(output.shape[1:], generator=generator)
            masks[module] = (draws >= float(module.p)).to(output)  # type: ignore[arg-type]
        return output * masks[module]

    handles = [layer.register_forward_hook(drop) for layer in layers]
    try:
        yield len(layers)
    finally:
        for handle in handles:
            handle.remove()
