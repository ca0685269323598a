"""The first task of configs/method_comparison_digits.yaml: the embedded digits at half of their size."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydistill.tasks.mnist import Mnist
from raydistill.tasks.task import Arrays


class HalvedDigits(Mnist):
    """Digits of 14 x 14 pixels, each the mean of four: a small network sees hundreds of them in a second."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (1, 14, 14)

    def read(self) -> dict[str, Arrays]:
        return {
            split: replace(arrays, inputs=_halved(arrays.inputs)) for split, arrays in super().read().items()
        }


def _halved(pictures: NDArray[Any]) -> NDArray[np.uint8]:
    """Pictures (N, 1, 28, 28) of bytes as (N, 1, 14, 14)."""
    squares = pictures.reshape(len(pictures), 1, 14, 2, 14, 2).mean(axis=(3, 5))
    return squares.round().astype(np.uint8)
