"""Random numbers that are a function of (key, sample id) and of nothing else; a key is made by `fold_key`.

The same SplitMix64 as in `tasks/hashing.py`, on int64 tensors: torch's int64 products wrap around modulo 2^64 on every
device, so CPU and GPU give the same bits.
"""

import torch
from torch import Tensor

from raydistill.tasks.hashing import GAMMA, MULTIPLIERS, SHIFTS


def random_bits(ids: Tensor, key: int, count: int) -> Tensor:
    """`count` words of 64 random bits per id, (B,) → (B, count) int64, on the device of `ids`."""
    counters = torch.arange(1, count + 1, device=ids.device) * _signed(GAMMA)
    return _finalise(_finalise(ids + _signed(key))[:, None] + counters)


def uniform(ids: Tensor, key: int, count: int) -> Tensor:
    """Uniform numbers in [0, 1), (B,) → (B, count) float32: multiples of 2^-24, all equally likely."""
    bits = random_bits(ids, key, count)
    return _shift_right(bits, 40).to(torch.float32) * 2.0**-24


def integers(ids: Tensor, key: int, bounds: tuple[int, ...]) -> Tensor:
    """Column j is uniform on 0, ..., bounds[j] - 1: (B,) → (B, len(bounds)) int64; each bound is below 2^31.

    Fixed-point multiplication of 32 bits: the probabilities differ by at most 2^-32.
    """
    words = _shift_right(random_bits(ids, key, len(bounds)), 32).unbind(1)
    return torch.stack([(word * bound) >> 32 for word, bound in zip(words, bounds, strict=True)], dim=1)


def _finalise(bits: Tensor) -> Tensor:
    bits = (bits ^ _shift_right(bits, SHIFTS[0])) * _signed(MULTIPLIERS[0])
    bits = (bits ^ _shift_right(bits, SHIFTS[1])) * _signed(MULTIPLIERS[1])
    return bits ^ _shift_right(bits, SHIFTS[2])


def _shift_right(bits: Tensor, count: int) -> Tensor:
    """A logical shift: torch's own copies the sign bit of int64 downwards."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


def _signed(number: int) -> int:
    """The int64 with the bits of an unsigned 64-bit integer."""
    return number - 2**64 if number >= 2**63 else number
