"""All that a step of a training changes, but for gradients: to look at it, and to take a step back."""

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

State = dict[Any, Tensor]


class StepState:
    """The weights and buffers of a learner by name, and what its optimizer keeps, by parameter and slot."""

    def __init__(self, learner: nn.Module, optimizer: Optimizer) -> None:
        self._learner, self._optimizer = learner, optimizer

    def tensors(self) -> State:
        """As they are now, and where they are."""
        tensors = chain(self._learner.named_parameters(), self._learner.named_buffers())
        moments = {
            (parameter, name): slot
            for parameter, slots in self._optimizer.state.items()
            for name, slot in slots.items()
            if isinstance(slot, Tensor)
        }
        return dict(tensors) | moments

    def snapshot(self) -> State:
        """Copies."""
        return {key: tensor.detach().clone() for key, tensor in self.tensors().items()}

    @torch.no_grad()
    def restore(self, before: State) -> None:
        """What was copied before, in place."""
        for key, tensor in self.tensors().items():
            if key in before:
                tensor.copy_(before[key])
            else:  # the optimizer had not met this parameter yet
                parameter, name = key
                del self._optimizer.state[parameter][name]
