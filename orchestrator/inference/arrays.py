"""Inputs in files of arrays, block by block."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydistill.errors import PlanError
from raydistill.inference.batches import Batch
from raydistill.inference.form import Form
from raydistill.prediction import as_batch
from raydistill.tasks.array_files import array_names, blocks_of
from raydistill.training.evaluation import BATCH


def read_npy(file: Path, form: Form) -> Iterator[Batch]:
    """The rows of a .npy, or the one input that it is."""
    array = _mapped(file)
    if array.shape == form.shape:
        yield Batch([str(file)], as_batch(array, f"`{file}`", form.shape, form.dtype).numpy())
        return
    if not array.ndim or form.arranged(array[:1]).shape[1:] != form.shape:
        raise PlanError(
            f"`{file}` has the shape {array.shape}; the model takes {form.shape} or (N, *{form.shape})"
        )
    for start in range(0, len(array), BATCH):
        yield form.batch(file, start, array[start : start + BATCH])


def read_named_arrays(file: Path, form: Form) -> Iterator[Batch]:
    """The rows of one array of an .npz or .safetensors: the column asked for, the one that the task's own file has, or
    the only one."""
    names = array_names(file)
    known = [*form.columns[:1]] or [form.option("inputs") or "inputs"]
    if known[0] not in names and (form.columns or len(names) != 1):
        there = ", ".join(f"`{name}`" for name in names)
        raise PlanError(f"`{file}` has the arrays {there}; name the one with inputs with `--column`")
    start = 0
    for block in blocks_of(file, known[0] if known[0] in names else names[0], BATCH):
        yield form.batch(file, start, block)
        start += len(block)


def _mapped(file: Path) -> NDArray[Any]:
    try:  # mapped: a header may promise more than memory holds
        array = np.load(file, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise TypeError("it is an archive of several")
    except (ValueError, EOFError, TypeError, AttributeError) as error:
        raise PlanError(f"`{file}` is no array of numbers: {' '.join(str(error).split())}") from None
    if array.dtype.kind not in "biuf":
        raise PlanError(f"`{file}` is no array of numbers: it holds {array.dtype}")
    return array
