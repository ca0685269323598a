"""Pickles that hold nothing but numpy arrays and plain containers, read without giving them any other power.

CIFAR's Python version is published as pickles of Python 2. An unpickler that resolves only the three names a numpy
array is rebuilt from cannot be made to call anything else.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

# numpy moved `_reconstruct` between versions; the function an array itself names is the right one for this numpy.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names `{module}.{name}`, which no array needs") from None


def load_array_pickle(path: Path) -> Any:
    """The object in a pickle of arrays; `ValueError` names a file that is damaged or asks for anything else."""
    with path.open("rb") as stream:
        try:
            return _ArrayUnpickler(stream, encoding="latin1").load()
        # A damaged pickle can stumble anywhere in the machine that runs it: IndexError, KeyError, TypeError ...
        except Exception as error:
            raise ValueError(f"`{path}` is refused or damaged: {error}") from error
