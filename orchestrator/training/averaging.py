"""The exponential moving average of a network's weights, which is often better than its last ones (Polyak and Juditsky
1992; Tarvainen and Valpola 2017, arXiv 1703.01780)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from raydistill.kinds.training import EmaConfig


class Average:
    """A copy of everything that a network's file holds, and follows it: weights and running statistics as averages,
    counters as they are. It begins as the network's first weights.

    Workers of a group have the same weights after every step, and so the same average, without a word to each other.
    """

    def __init__(self, network: nn.Module, config: EmaConfig) -> None:
        self.network, self.config = network, config
        self.state = {key: value.clone() for key, value in network.state_dict().items()}
        # By owner and name, not by tensor: a module may put another tensor in a buffer's place.
        owners = [
            (f"{name}.{own}" if name else own, tensors, own)
            for name, module in network.named_modules(remove_duplicate=False)
            for tensors in (module._parameters, module._buffers)
            for own in tensors
        ]
        kept = [owner for owner in owners if owner[0] in self.state]
        self.averaged = [owner for owner in kept if self.state[owner[0]].is_floating_point()]
        self.copied = [owner for owner in kept if not self.state[owner[0]].is_floating_point()]

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """After step number `step`, counted from 1: all averages move in one go, some launches on a device."""
        averages = [self.state[key] for key, _, _ in self.averaged]
        torch._foreach_lerp_(averages, _now(self.averaged), 1 - self.config.decay_at(step))
        for (key, _, _), value in zip(self.copied, _now(self.copied), strict=True):
            self.state[key].copy_(value)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The network is its average; afterwards it is itself again, bit for bit."""
        own = {key: value.clone() for key, value in self.network.state_dict().items()}
        self.network.load_state_dict(self.state)
        try:
            yield
        finally:
            self.network.load_state_dict(own)


def _now(owners: list[tuple[str, Mapping[str, Tensor | None], str]]) -> list[Tensor]:
    tensors = [tensors[own] for _, tensors, own in owners]
    return [tensor for tensor in tensors if tensor is not None]
