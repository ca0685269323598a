"""Arrays the user has in one file: .npz, .safetensors or .parquet."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from raydistill.tasks.array_files import (
    array_names,
    digest_rows,
    dtype_of,
    open_array,
    open_labels,
    shape_of,
)
from raydistill.tasks.cuts import group_ids, set_aside
from raydistill.tasks.digests import Stamp, digest_file, digest_text, remembered_of, stamp
from raydistill.tasks.labels import UNLABELLED
from raydistill.tasks.seeds import Purpose
from raydistill.tasks.task import Arrays, Task, UserPath

if TYPE_CHECKING:
    from raydistill.tasks.survey import Survey

SPLIT_NAMES = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
CHANNELS = (1, 3, 4)
SPLIT_NUMBERS = {0: "train", 1: "validation", 2: "test"}

Layout = Literal["channels_first", "channels_last"]


class Tensors(Task):
    """Inputs of any shape with labels, from one file of named arrays or columns.

    uint8 inputs are images, divided by 255. Other integers stand for things, as tokens do, and reach the model as they
    are, as int64; store measurements as floats. Images and floats are float32, and brought to mean 0 and deviation
    1 over the labelled training samples, each channel (the first axis of an input) by itself.
    """

    name: str = "tensors"
    file: UserPath
    """The .npz, .safetensors or .parquet."""
    inputs: str = "inputs"
    """Array or column with one input per row."""
    labels: str = "labels"
    """Array or column with integers from 0 to the number of classes - 1. Training samples without a label have -1,
    or an empty cell: students learn from them what their teachers say."""
    ids: str = "ids"
    """Array or column with a different integer per row; without it, the row's number."""
    split: str = "split"
    """Array or column that says where a row belongs: train, validation (or val), test, or 0, 1, 2.

    Without it, test and validation are cut by hash, of the rows that have a label.
    """
    groups: str = "groups"
    """Array or column with the group of each row, for `cut: {by: group}`."""
    shape: tuple[int, ...] | None = None
    """Shape of one input, when the file holds it flat."""
    layout: Layout | None = None
    """Where the channels of an image are. Models take them first; `channels_last` turns arrays (N, H, W, C) around.
    Without it, inputs that look like (H, W, C) are refused."""
    classes: int | tuple[str, ...] | None = None
    """Number or names of the classes; without it, the largest label decides."""
    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Part of the rows set aside for the test, when the file has no `split`."""

    came_later: ClassVar[frozenset[str]] = Task.came_later | {"groups"}

    @property
    def class_names(self) -> tuple[str, ...]:
        if isinstance(self.classes, tuple):
            return self.classes
        count = self.classes or _label_range(self.file, self.labels, stamp(self.file))[1] + 1
        return tuple(str(label) for label in range(count))

    @property
    def input_shape(self) -> tuple[int, ...]:
        return shape_as_models_take_it(self.file, self._stored_shape, self.layout)

    @property
    def unlabelled(self) -> int:
        return _label_range(self.file, self.labels, stamp(self.file))[2]

    @property
    def _stored_shape(self) -> tuple[int, ...]:
        return self.shape or shape_of(self.file, self.inputs)[1:]

    @property
    def _stored_dtype(self) -> np.dtype[Any]:
        return _dtype(self.file, self.inputs, stamp(self.file))

    def picture_input(
        self, source: Path | bytes, shape: tuple[int, ...], *, name: str | None = None
    ) -> NDArray[np.uint8]:
        """The whole picture, scaled. Where the task's file is at hand, it must hold pictures itself: of other numbers
        it is unknown which one is white."""
        if self.file.is_file() and self._stored_dtype != np.uint8:
            raise ValueError(
                f"task `tensors`: its inputs are {self._stored_dtype}, not pictures; give them in a .npy file"
            )
        return super().picture_input(source, shape, name=name)

    @property
    def input_dtype(self) -> Literal["float32", "int64"]:
        return "int64" if is_integer(self._stored_dtype) else "float32"

    @property
    def input_values(self) -> str:
        if self._stored_dtype == np.uint8:
            return super().input_values
        return f"the numbers of `{self.inputs}` as they stood in the file of the task"

    def missing_files(self) -> str | None:
        if self.file.suffix == ".npy":
            return f"`{self.file}` holds one array; write `{{name: npy, inputs: …, labels: …}}` for two .npy files"
        if self.file.is_file():
            return None
        return (
            f"task `tensors` finds no file `{self.file}`: put an .npz, .safetensors or .parquet with "
            f"`{self.inputs}` and `{self.labels}` there, or name another `file`; nothing can be downloaded"
        )

    def identity(self) -> dict[str, Any]:
        identity = super().identity()
        self._check_description()
        if self.layout != "channels_last":  # what is not set leaves older results valid
            identity.pop("layout", None)
        return identity | ({"input_dtype": "int64"} if self.input_dtype == "int64" else {})

    def content(self) -> str:
        return digest_text(f"{self.num_classes} classes, {self._digests()['learned']}")

    def test_content(self) -> str:
        return self._digests()["test"]

    def _digests(self) -> Mapping[str, str]:
        """Digests of the rows of training and validation, and of the test rows, whatever else the file holds."""
        options = {"inputs", "labels", "ids", "split", "groups", "test_fraction", "split_seed", "cut"}
        return remembered_of(self.file, self.model_dump_json(include=options), self._digest_rows)

    def _digest_rows(self) -> dict[str, str]:
        inputs, labels = open_array(self.file, self.inputs), open_labels(self.file, self.labels)
        ids = (
            open_array(self.file, self.ids) if self.ids in array_names(self.file) else np.arange(len(labels))
        )
        belongs = np.empty(0, dtype=str)
        if len(inputs) == len(labels) == len(ids):
            groups = self._read_groups(len(labels))
            belongs = self._belongs(Arrays(inputs, labels, ids, groups))
        if not len(belongs) == len(ids) == len(labels):
            return {"learned": digest_file(self.file), "test": digest_file(self.file)}  # `read` refuses them
        columns = (inputs, labels, ids, belongs, *(() if groups is None else (groups,)))
        return {
            "learned": digest_rows(columns, belongs != "test"),
            "test": digest_rows(columns, belongs == "test"),
        }

    def survey(self) -> Survey:
        from raydistill.tasks.survey import Finding, Survey

        survey = super().survey()
        if self.input_dtype == "float32":
            return survey
        text = (
            f"`{self.inputs}` of `{self.file}` are integers and reach the models as they are; store measurements as"
            " floats, which are normalised"
        )
        return Survey(survey.counts, (*survey.findings, Finding("note", text)))

    def _check_description(self) -> None:
        """`ValueError` for inputs with the channels last, and for labels that were counted from 1."""
        _ = self.input_shape
        smallest, largest, _ = _label_range(self.file, self.labels, stamp(self.file))
        refuse_labels_from_1(f"`{self.labels}` of `{self.file}`", smallest, largest, self.num_classes)

    def read(self) -> dict[str, Arrays]:
        return self._parts(self._read_arrays())

    def listed(self) -> dict[str, Arrays]:
        return self._parts(self._read_labels())

    def _parts(self, everything: Arrays) -> dict[str, Arrays]:
        belongs = self._belongs(everything)
        parts = {name: everything.take(belongs == name) for name in ("train", "validation", "test")}
        for name in ("train", "test"):
            if self.split in array_names(self.file) and not len(parts[name].labels):
                raise ValueError(f"`{self.split}` of `{self.file}` marks no row as `{name}`")
        return parts if len(parts["validation"].labels) else {name: parts[name] for name in ("train", "test")}

    def arranged(self, inputs: NDArray[Any]) -> NDArray[Any]:
        if self.shape is not None:
            inputs = _reshape(self.file, inputs, self.shape)
        return as_models_take_them(inputs, self.layout)

    def _belongs(self, everything: Arrays) -> NDArray[np.str_]:
        """Which split each row is in: train, validation or test."""
        if self.split in array_names(self.file):
            return split_names(self.file, open_array(self.file, self.split))
        return np.where(set_aside(self, everything, self.test_fraction, Purpose.TEST_CUT), "test", "train")

    def _read_arrays(self) -> Arrays:
        rows, inputs = self._read_labels(), open_array(self.file, self.inputs)
        return Arrays(self.arranged(inputs), rows.labels, rows.ids, rows.groups)

    def _read_labels(self) -> Arrays:
        """The inputs are their rows."""
        self._check_description()
        labels, count = open_labels(self.file, self.labels), shape_of(self.file, self.inputs)[0]
        has_ids = self.ids in array_names(self.file)
        ids = open_array(self.file, self.ids) if has_ids else np.arange(len(labels))
        if not count == len(labels) == len(ids):
            raise ValueError(f"`{self.file}` holds {count} inputs, {len(labels)} labels and {len(ids)} ids")
        integers = (_integers(self.file, self.labels, labels), _integers(self.file, self.ids, ids))
        return Arrays(np.arange(count), *integers, self._read_groups(count))

    def _read_groups(self, count: int) -> NDArray[np.int64] | None:
        if self.cut is None or self.cut.by != "group" or self.groups not in array_names(self.file):
            return None
        groups = open_array(self.file, self.groups)
        if len(groups) != count:
            raise ValueError(f"`{self.file}` holds {count} labels and {len(groups)} `{self.groups}`")
        return group_ids(groups)


@lru_cache(maxsize=16)
def _label_range(file: Path, name: str, changed: Stamp) -> tuple[int, int, int]:
    """The smallest and the largest label, and how many rows have none."""
    return label_range(f"`{name}` of `{file}`", _integers(file, name, open_labels(file, name)))


def label_range(what: str, labels: NDArray[np.int64]) -> tuple[int, int, int]:
    """The smallest and the largest label, and how many rows have none; `ValueError` where none has any."""
    if not len(labels):
        raise ValueError(f"{what} is empty")
    known = labels[labels != UNLABELLED]
    if not len(known):
        raise ValueError(f"{what} has no label, {UNLABELLED} throughout: some rows need one, to judge by")
    return int(known.min()), int(known.max()), len(labels) - len(known)


def refuse_labels_from_1(what: str, smallest: int, largest: int, num_classes: int) -> None:
    """`ValueError` for labels that were counted from 1."""
    if smallest == 1 and largest == num_classes:
        raise ValueError(
            f"{what} go from 1 to {largest}, and {num_classes} classes have the labels 0 to {largest - 1}; subtract 1"
        )


def is_integer(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "iu" and dtype != np.uint8


def shape_as_models_take_it(file: Path, shape: tuple[int, ...], layout: Layout | None) -> tuple[int, ...]:
    """The shape of one input with its channels first; `ValueError` where it looks as if they were last."""
    if layout == "channels_last" and len(shape) == 3:
        return (shape[2], *shape[:2])
    if layout is None and looks_channels_last(shape):
        raise ValueError(
            f"inputs {shape} of `{file}` look like height, width, channels, and models take channels first;"
            f" write `layout: channels_last`, or `layout: channels_first` if they are {shape[0]} channels"
        )
    return shape


def as_models_take_them(inputs: NDArray[Any], layout: Layout | None) -> NDArray[Any]:
    """Inputs (N, ...) with their channels first."""
    if layout == "channels_last" and inputs.ndim == 4:
        return np.ascontiguousarray(np.moveaxis(inputs, -1, 1))
    return inputs


def looks_channels_last(shape: tuple[int, ...]) -> bool:
    """Three sizes of which the last alone can be that of an image's channels."""
    return len(shape) == 3 and shape[2] in CHANNELS and min(shape[:2]) > max(CHANNELS)


@lru_cache(maxsize=16)
def _dtype(file: Path, name: str, changed: Stamp) -> np.dtype[Any]:
    return dtype_of(file, name)


def _integers(file: Path, name: str, values: NDArray[Any]) -> NDArray[np.int64]:
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ValueError(
            f"`{name}` of `{file}` should be one integer per row, not {values.dtype} {values.shape}"
        )
    return values.astype(np.int64)


def _reshape(file: Path, inputs: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    try:
        return inputs.reshape(len(inputs), *shape)
    except ValueError as error:
        raise ValueError(
            f"the inputs {inputs.shape[1:]} of `{file}` cannot take the `shape` {shape}"
        ) from error


def split_names(file: Path, values: NDArray[Any]) -> NDArray[np.str_]:
    known: dict[Any, str] = SPLIT_NUMBERS if values.dtype.kind in "iu" else SPLIT_NAMES
    distinct, inverse = np.unique(values, return_inverse=True)
    unknown = [value for value in distinct.tolist() if value not in known]
    if unknown:
        raise ValueError(
            f"split `{unknown[0]}` in `{file}` is unknown; write train, validation, test or 0, 1, 2"
        )
    return np.array([known[value] for value in distinct.tolist()], dtype=str)[inverse]
