"""Frames of many utterances as arrays, and an id for each frame."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FRAME_BITS = 19
LONGEST = 2**FRAME_BITS  # frames of one utterance: 87 minutes


@dataclass(frozen=True)
class Utterances:
    """U utterances, one after the other: frames (F, coefficients) float32, labels (F,) int64, bounds (U + 1,) int64.

    Utterance u has the frames bounds[u] to bounds[u + 1]. `names` (U,) are the ids as text, `keys` (U,) int64 their
    44-bit hashes, `speakers` (U,) names.
    """

    frames: NDArray[np.float32]
    labels: NDArray[np.int64]
    bounds: NDArray[np.int64]
    names: NDArray[np.str_]
    keys: NDArray[np.int64]
    speakers: NDArray[np.str_]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Frames of each utterance (U,)."""
        lengths: NDArray[np.int64] = self.bounds[1:] - self.bounds[:-1]
        return lengths

    @property
    def ids(self) -> NDArray[np.int64]:
        """One id per frame (F,): the utterance's key, then the frame's place in it; both can be read back from it."""
        place = np.arange(len(self.labels)) - np.repeat(self.bounds[:-1], self.lengths)
        ids: NDArray[np.int64] = np.repeat(self.keys << FRAME_BITS, self.lengths) + place
        return ids

    def take(self, chosen: NDArray[np.bool_]) -> Utterances:
        """The utterances that a mask (U,) marks, in the order they have."""
        frames = np.repeat(chosen, self.lengths)
        bounds = np.concatenate([[0], np.cumsum(self.lengths[chosen])]).astype(np.int64)
        of_utterances = (self.names[chosen], self.keys[chosen], self.speakers[chosen])
        return Utterances(self.frames[frames], self.labels[frames], bounds, *of_utterances)


def utterance_key(name: object) -> int:
    """44 bits of a hash of an utterance's id, an integer or a text: it stays when others come or go."""
    digest = hashlib.blake2b(str(name).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> (FRAME_BITS + 1)
