"""The memory of batches on the CPU, used again once nobody holds what lies in it.

A new tensor of some megabytes is pages that the operating system zeroes first; on a virtual machine that takes longer
than to fill them.
"""

import math
import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

KEPT = 4
SMALL = 1 << 18  # values; what is smaller comes from memory that the process has anyway

_idle: deque[Tensor] = deque(maxlen=KEPT)
"""Flat float32 tensors that nobody else holds. Threads take and give back by single operations."""


def batch_floats(shape: Sequence[int]) -> Tensor:
    """A float32 tensor of this shape, of any values."""
    count = math.prod(shape)
    if count < SMALL:
        return torch.empty(*shape)
    memory = _taken(count)
    seen = memory.numpy().reshape(shape)
    # The new tensor, and all that is made of it without a copy, holds this array, and the array's end is theirs.
    weakref.finalize(seen, _idle.append, memory).atexit = False
    return torch.from_numpy(seen)


def _taken(count: int) -> Tensor:
    with suppress(IndexError):
        while (memory := _idle.popleft()).numel() != count:  # of batches of another size, which are over
            pass
        return memory
    return torch.empty(count)
