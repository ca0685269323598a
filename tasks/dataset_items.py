"""What a user's Datasets hold, as arrays. Whatever is wrong with them is a `ValueError` of one line with its place."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raydistill.tasks.labels import UNLABELLED
from raydistill.tasks.task import Arrays

if TYPE_CHECKING:
    from raydistill.tasks.datasets import Datasets

SPLITS = {"train", "validation", "test"}
ITEMS_AT_ONCE = 1024


@dataclass(frozen=True)
class Batched:
    """What one collated batch looks like."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def is_integer(self) -> bool:
        """Whether the numbers stand for things: bytes are of pictures."""
        return np.dtype(self.dtype).kind in "iu" and self.dtype != "uint8"


def opened(task: Datasets) -> Mapping[str, Any]:
    """The task's Datasets by split, made once in a process."""
    return _opened(type(task), task.model_dump_json())


@lru_cache(maxsize=4)
def _opened(kind: type[Datasets], options: str) -> Mapping[str, Any]:
    task = kind.model_validate_json(options)
    try:
        found = task.datasets()
    except Exception as error:  # whatever the user's code does
        raise ValueError(f"task `{task.name}`: `datasets` fails: {_line(error)}") from error
    if not isinstance(found, Mapping) or not {"train", "test"} <= found.keys() <= SPLITS:
        got = f"the keys {sorted(found)}" if isinstance(found, Mapping) else f"a {type(found).__name__}"
        raise ValueError(
            f"task `{task.name}`: `datasets` returns {got}; it should be a mapping of `train` and `test`, perhaps"
            " `validation`"
        )
    for split, dataset in found.items():
        _check_dataset(task, split, dataset)
    return found


def _check_dataset(task: Datasets, split: str, dataset: Any) -> None:
    place = f"task `{task.name}`: `{split}`"
    if not hasattr(type(dataset), "__getitem__") or "IterableDataset" in _bases(dataset):
        raise ValueError(
            f"{place} is a {type(dataset).__name__}, whose items have no positions; give a map-style Dataset, which has"
            " `__getitem__` and `__len__`, or a list of its items"
        )
    try:
        count = len(dataset)
    except Exception as error:
        raise ValueError(f"{place} has no length: {_line(error)}; give its Dataset a `__len__`") from error
    if not count:
        raise ValueError(f"{place} is empty")


def _bases(dataset: Any) -> set[str]:
    return {base.__name__ for base in inspect.getmro(type(dataset))}


def first_input(task: Datasets) -> Batched:
    """A batch of the first training item alone."""
    return _first_input(type(task), task.model_dump_json())


@lru_cache(maxsize=16)
def _first_input(kind: type[Datasets], options: str) -> Batched:
    task = kind.model_validate_json(options)
    dataset = opened(task)["train"]
    once, again = (collated(task, "train", [item(task, "train", dataset, 0)[0]]) for _ in range(2))
    if not np.array_equal(once, again, equal_nan=once.dtype.kind == "f"):
        raise ValueError(
            f"task `{task.name}`: item 0 of `train` is another one every time it is asked for; leave random changes to"
            " `augment` in the plan, so that teachers and students see the same"
        )
    return Batched(once.shape, str(once.dtype))


def read_items(task: Datasets) -> dict[str, Arrays]:
    """All samples; of a stream the inputs are positions."""
    return {split: _read_split(task, split, dataset) for split, dataset in opened(task).items()}


def _read_split(task: Datasets, split: str, dataset: Any) -> Arrays:
    count = len(dataset)
    known = task.labels(split)
    if task.stream and known is not None:
        labels = np.array(
            [_label(task, split, row, label) for row, label in enumerate(known)], dtype=np.int64
        )
        if len(labels) != count:
            raise ValueError(
                f"task `{task.name}`: `labels` gives {len(labels)} for the {count} items of `{split}`"
            )
        inputs = np.arange(count)
    else:
        inputs, labels = _read_all(task, split, dataset)
    if split == "train" and not task.unlabelled and (labels == UNLABELLED).any():
        first = int((labels == UNLABELLED).argmax())
        raise ValueError(
            f"task `{task.name}`: item {first} of `train` has no label; where that is meant, the task's property"
            " `unlabelled` says how many have none"
        )
    ids = np.array([task.sample_id(split, row) for row in range(count)], dtype=np.int64)
    return Arrays(inputs, labels, ids)


def _read_all(task: Datasets, split: str, dataset: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
    batches, labels = [], []
    for rows in _pieces(len(dataset)):
        items = [item(task, split, dataset, row) for row in rows]
        labels += [label for _, label in items]
        if not task.stream:
            batches.append(
                checked(task, split, collated(task, split, [value for value, _ in items]), task.input_shape)
            )
    inputs = np.arange(len(labels)) if task.stream else np.concatenate(batches)
    return inputs, np.array(labels, dtype=np.int64)


def _pieces(count: int) -> Iterator[range]:
    for start in range(0, count, ITEMS_AT_ONCE):
        yield range(start, min(start + ITEMS_AT_ONCE, count))


def item(task: Datasets, split: str, dataset: Any, row: int) -> tuple[Any, int]:
    """The input of an item, as it is, and its label."""
    try:
        found = dataset[row]
    except Exception as error:  # whatever the user's code does
        raise ValueError(
            f"task `{task.name}`: item {row} of `{split}` cannot be read: {_line(error)}"
        ) from error
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        raise ValueError(
            f"task `{task.name}`: item {row} of `{split}` is a {type(found).__name__}, not a pair (input, label)"
        )
    return found[0], _label(task, split, row, found[1])


def _label(task: Datasets, split: str, row: int, value: Any) -> int:
    label = UNLABELLED if value is None else value.item() if hasattr(value, "item") else value
    if type(label) is not int or not UNLABELLED <= label < task.num_classes:
        raise ValueError(
            f"task `{task.name}`: item {row} of `{split}` has the label {label!r}; {task.num_classes} classes allow the"
            f" integers 0 to {task.num_classes - 1}"
        )
    return label


def collated(task: Datasets, split: str, inputs: Sequence[Any]) -> NDArray[Any]:
    """The inputs of some items as one array, checked against the first ones."""
    place = f"task `{task.name}`: `{split}`"
    try:
        batch = as_array(task.collate(inputs))
    except Exception as error:
        raise ValueError(f"{place}: inputs cannot be collated: {_line(error)}") from error
    if batch.ndim < 2 or len(batch) != len(inputs):
        raise ValueError(f"{place}: {len(inputs)} inputs are collated to {batch.shape}, not (B, ...)")
    return batch


def checked(task: Datasets, split: str, batch: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """The batch; `ValueError` where it is not of the task's `shape`, which only those who have its Datasets know."""
    if batch.shape[1:] != shape:
        raise ValueError(
            f"task `{task.name}`: `{split}`: inputs are collated to {batch.shape[1:]}, and others to"
            f" {shape}; let `collate` pad to one length"
        )
    return batch


def stacked(inputs: Sequence[Any]) -> NDArray[Any]:
    """Inputs of one shape as an array (B, ...)."""
    arrays = [as_array(value) for value in inputs]
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        some = " and ".join(map(str, sorted(shapes)[:2]))
        raise ValueError(f"items have the shapes {some}; give the task a `collate` that pads them")
    return np.stack(arrays)


def as_array(value: Any) -> NDArray[Any]:
    """A tensor, an array, a list of numbers, or a picture of PIL as (channels, height, width)."""
    if hasattr(value, "getbands"):
        pixels = np.asarray(value.convert("L" if value.mode in ("1", "L") else "RGB"))
        return np.atleast_3d(pixels).transpose(2, 0, 1)
    array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    if array.dtype.kind not in "fiub":
        what = "texts" if array.dtype.kind in "US" else f"{array.dtype}"
        raise ValueError(f"they are {what}, not numbers; a text is given as the numbers of its tokens")
    return array


def _line(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else ""
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}".rstrip(": ")
