"""Batch normalisation over the samples of all workers, so that together they compute what one worker would.

torch's own SyncBatchNorm runs on GPUs only, and counts the sample that a worker without samples repeats.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class GlobalBatchNorm:
    """Lends a model's batch norms another `forward`; the modules, their hooks and their state stay as they are."""

    def __init__(self) -> None:
        self.counts = True  # whether this worker's batch is part of the global one

    @contextmanager
    def spread_over_workers(self, model: nn.Module, world: int) -> Iterator[None]:
        """Inside, batch norms in train mode use the mean and variance of the global batch."""
        modules = (
            [module for module in model.modules() if isinstance(module, _BatchNorm)] if world > 1 else []
        )
        for module in modules:
            module.forward = partial(self._forward, module)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for module in modules:
                del module.forward

    def _forward(self, module: _BatchNorm, inputs: Tensor) -> Tensor:
        """Normalise inputs (B, C, ...)."""
        if not module.training:
            return type(module).forward(module, inputs)
        axes, shape = [0, *range(2, inputs.dim())], [1, -1, *[1] * (inputs.dim() - 2)]
        values, own = inputs.float(), float(self.counts)
        size = values.new_full((1,), values.numel() / values.shape[1])
        sums = sum_over_workers(own * torch.cat([values.sum(axes), size]))
        mean, count = sums[:-1] / sums[-1], sums[-1]
        centred = values - mean.view(shape)
        variance = sum_over_workers(own * centred.square().sum(axes)) / count
        _track(module, mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        result = centred * (variance + module.eps).rsqrt().view(shape)
        if module.affine:
            result = result * module.weight.view(shape) + module.bias.view(shape)
        return result.to(inputs.dtype)


def sum_over_workers(values: Tensor) -> Tensor:
    """The sum of every worker's values, on every worker; gradients are summed on the way back."""
    result: Tensor = _SumOverWorkers.apply(values)
    return result


class _SumOverWorkers(torch.autograd.Function):
    """torch has this as `torch.distributed.nn.functional.all_reduce`, deprecated since 2.15 for a private one."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        values = values.clone()
        distributed.all_reduce(values)
        return values

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:
        return _SumOverWorkers.apply(gradient)


@torch.no_grad()
def _track(module: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Update the running statistics as torch does; `variance` is the unbiased one."""
    if module.running_mean is None or module.running_var is None or module.num_batches_tracked is None:
        return
    module.num_batches_tracked += 1
    factor = 1 / float(module.num_batches_tracked) if module.momentum is None else module.momentum
    module.running_mean.lerp_(mean, factor)
    module.running_var.lerp_(variance, factor)
