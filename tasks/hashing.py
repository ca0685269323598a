"""Numbers that belong to a sample and not to a moment: a counter-based hash of (key, sample id, counter).

The hash is SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014): an additive
counter with Stafford's variant 13 as finaliser. The same (key, id, counter) gives the same bits on every machine,
whatever was asked for before. Cuts made with it depend on the ids only, not on their order.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

MASK = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15
MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
SHIFTS = (30, 27, 31)


def fold_key(*numbers: int) -> int:
    """One 64-bit key from several integers; their order matters, and negative ones are taken modulo 2^64."""
    key = 0
    for number in numbers:
        key = _finalise_integer((key + GAMMA + _finalise_integer(number & MASK)) & MASK)
    return key


def hash_ids(ids: NDArray[np.int64], key: int) -> NDArray[np.uint64]:
    """64 hashed bits per id, (N,) → (N,); distinct ids never collide under one key."""
    return _finalise(np.atleast_1d(ids).astype(np.uint64) + np.uint64(key))


def uniform(ids: NDArray[np.int64], key: int, count: int) -> NDArray[np.float64]:
    """`count` uniform numbers in [0, 1) per id, (N,) → (N, count), with 24 random bits each."""
    counters = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GAMMA)
    bits = _finalise(hash_ids(ids, key)[:, None] + counters)
    return (bits >> np.uint64(40)).astype(np.float64) * 2.0**-24


def smallest_hashes(ids: NDArray[np.int64], count: int, key: int) -> NDArray[np.bool_]:
    """Mark the `count` ids with the smallest hash, (N,) → (N,): a random choice that ignores the order of `ids`."""
    chosen = np.zeros(len(ids), dtype=bool)
    if count > 0:
        chosen[np.argsort(hash_ids(ids, key), kind="stable")[:count]] = True
    return chosen


def cut(ids: NDArray[np.int64], fraction: float, key: int) -> NDArray[np.bool_]:
    """Mark `round(fraction * N)` ids by hash, (N,) → (N,)."""
    return smallest_hashes(ids, round(fraction * len(ids)), key)


def text_id(text: str) -> int:
    """63 bits of a text: a sample that is called so keeps its id when others come or go."""
    return (
        int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest()) >> 1
    )


def _finalise(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    # Arrays of unsigned integers wrap around silently; numpy scalars would warn.
    bits = (bits ^ (bits >> np.uint64(SHIFTS[0]))) * np.uint64(MULTIPLIERS[0])
    bits = (bits ^ (bits >> np.uint64(SHIFTS[1]))) * np.uint64(MULTIPLIERS[1])
    return bits ^ (bits >> np.uint64(SHIFTS[2]))


def _finalise_integer(bits: int) -> int:
    bits = ((bits ^ (bits >> SHIFTS[0])) * MULTIPLIERS[0]) & MASK
    bits = ((bits ^ (bits >> SHIFTS[1])) * MULTIPLIERS[1]) & MASK
    return bits ^ (bits >> SHIFTS[2])
