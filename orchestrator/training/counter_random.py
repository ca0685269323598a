"""Random numbers that are a function of (key, sample id) and of nothing else; a key is made by `fold_key`, or lies on
the device.

The same SplitMix64 as in `tasks/hashing.py`, on int64 tensors: torch's int64 products wrap around modulo 2^64 on every
device, so CPU and GPU give the same bits.
"""

import torch
from torch import Tensor

from raydistill.tasks.devices import to_device
from raydistill.tasks.hashing import GAMMA, MULTIPLIERS, SHIFTS, fold_key

Key = int | Tensor
MOST_KEYS = 64  # of a view: a few for each augmentation


class StaticView:
    """The number of a view and its keys in tensors that stay where they are, while what was recorded reads them.

    `number` () int64. Keys are folded anew, for whoever has asked for them before, when another number is written.
    """

    def __init__(self, device: torch.device) -> None:
        self._places = torch.zeros(1 + MOST_KEYS, dtype=torch.int64, device=device)
        self._asked: list[tuple[int, int]] = []
        self._written = 0

    @property
    def number(self) -> Tensor:
        return self._places[0]

    def write(self, view: int) -> None:
        """Become this view."""
        self._written = view
        keys = [_signed(fold_key(seed, view, stream)) for seed, stream in self._asked]
        values = to_device(torch.tensor([view, *keys]), self._places.device)
        self._places[: len(values)].copy_(values)

    def key(self, seed: int, stream: int) -> Tensor:
        """What `fold_key` makes of (seed, view, stream), () int64."""
        if (seed, stream) not in self._asked:
            self._asked.append((seed, stream))
            self.write(self._written)
        return self._places[1 + self._asked.index((seed, stream))]


def view_key(seed: int, view: int | StaticView, stream: int) -> Key:
    """The key of a stream of random numbers in a view."""
    return fold_key(seed, view, stream) if isinstance(view, int) else view.key(seed, stream)


def random_bits(ids: Tensor, key: Key, count: int) -> Tensor:
    """`count` words of 64 random bits per id, (B,) → (B, count) int64, on the device of `ids`."""
    counters = torch.arange(1, count + 1, device=ids.device) * _signed(GAMMA)
    first = ids + (_signed(key) if isinstance(key, int) else key)
    return _finalise(_finalise(first)[:, None] + counters)


def uniform(ids: Tensor, key: Key, count: int) -> Tensor:
    """Uniform numbers in [0, 1), (B,) → (B, count) float32: multiples of 2^-24, all equally likely."""
    bits = random_bits(ids, key, count)
    return _shift_right(bits, 40).to(torch.float32) * 2.0**-24


def integers(ids: Tensor, key: Key, bounds: tuple[int, ...]) -> Tensor:
    """Column j is uniform on 0, ..., bounds[j] - 1: (B,) → (B, len(bounds)) int64; each bound is below 2^31.

    Fixed-point multiplication of 32 bits: the probabilities differ by at most 2^-32.
    """
    words = _shift_right(random_bits(ids, key, len(bounds)), 32).unbind(1)
    return torch.stack([(word * bound) >> 32 for word, bound in zip(words, bounds, strict=True)], dim=1)


def below(ids: Tensor, key: Key, bounds: Tensor, count: int) -> Tensor:
    """`count` numbers for each id, uniform on 0, ..., bound - 1: (B,) with bounds (B,) → (B, count) int64; as
    `integers`."""
    return (_shift_right(random_bits(ids, key, count), 32) * bounds[:, None]) >> 32


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
