"""Arrays the user has in .npy files, read where they lie."""

from __future__ import annotations

import json
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from raydistill.tasks.array_files import ROWS_AT_ONCE, digest_rows, map_npy, whole_labels
from raydistill.tasks.cuts import group_ids, set_aside, three_parts
from raydistill.tasks.digests import Stamp, digest_file, digest_text, remembered_of, stamp
from raydistill.tasks.hashing import fold_key, smallest_hashes
from raydistill.tasks.seeds import Purpose
from raydistill.tasks.task import Arrays, Task, UserPath
from raydistill.tasks.tensors import (
    Layout,
    as_models_take_them,
    is_integer,
    label_range,
    refuse_labels_from_1,
    shape_as_models_take_it,
    split_names,
)

if TYPE_CHECKING:
    from raydistill.tasks.splits import TaskData
    from raydistill.tasks.survey import Survey

FIRST_TEST_ID = 2 << 40  # rows are their own ids: those of another file stay apart
SURVEYED_BYTES = 2**28


class Npy(Task):
    """Inputs and labels, a .npy file each, which may be larger than memory: a batch is read from the file.

    uint8 inputs are images, divided by 255; of (N, height, width) they are grey. Other integers stand for things, as
    tokens do, and reach the model as they are, as int64. Images and floats are float32, and brought to mean 0 and
    deviation 1 over the labelled training samples, each channel by itself.
    """

    name: str = "npy"
    inputs: UserPath
    """One input per row."""
    labels: UserPath
    """One integer per row, from 0 to the number of classes - 1; -1, or NaN among floats, for a training sample that has
    none."""
    test_inputs: UserPath | None = None
    """The same for the test split; without it, test samples are rows that `split` marks, or are cut by hash."""
    test_labels: UserPath | None = None
    """The labels of `test_inputs`."""
    ids: UserPath | None = None
    """A different integer per row of `inputs`; without it, the row's number."""
    split: UserPath | None = None
    """For each row of `inputs` train, validation (or val), test, or 0, 1, 2."""
    groups: UserPath | None = None
    """The .npy with the group of each row, for `cut: {by: group}`."""
    layout: Layout | None = None
    """Where the channels of an image are. Models take them first; `channels_last` turns arrays (N, H, W, C) around.
    Without it, inputs that look like (H, W, C) are refused."""
    classes: int | tuple[str, ...] | None = None
    """Number or names of the classes; without it, the largest label decides."""
    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Part of the labelled rows set aside for the test, where nothing says which are."""

    files: ClassVar[tuple[str, ...]] = (
        "inputs",
        "labels",
        "test_inputs",
        "test_labels",
        "ids",
        "split",
        "groups",
    )
    not_identity: ClassVar[frozenset[str]] = Task.not_identity | frozenset(files)

    @property
    def class_names(self) -> tuple[str, ...]:
        if isinstance(self.classes, tuple):
            return self.classes
        count = self.classes or _range(self.labels, stamp(self.labels))[1] + 1
        return tuple(str(label) for label in range(count))

    @property
    def input_shape(self) -> tuple[int, ...]:
        stored = map_npy(self.inputs)
        if stored.ndim == 3 and stored.dtype == np.uint8:
            return (1, *stored.shape[1:])
        return shape_as_models_take_it(self.inputs, stored.shape[1:], self.layout)

    @property
    def input_dtype(self) -> Literal["float32", "int64"]:
        return "int64" if is_integer(map_npy(self.inputs).dtype) else "float32"

    @property
    def unlabelled(self) -> int:
        return _range(self.labels, stamp(self.labels))[2]

    @property
    def input_values(self) -> str:
        dtype = map_npy(self.inputs).dtype
        return super().input_values if dtype == np.uint8 else f"the numbers of `{self.inputs.name}`, {dtype}"

    def picture_input(
        self, source: Path | bytes, shape: tuple[int, ...], *, name: str | None = None
    ) -> NDArray[np.uint8]:
        """The whole picture, scaled, where the inputs are pictures themselves."""
        if self.inputs.is_file() and (dtype := map_npy(self.inputs).dtype) != np.uint8:
            raise ValueError(f"task `npy`: its inputs are {dtype}, not pictures; give them in a .npy file")
        return super().picture_input(source, shape, name=name)

    def arranged(self, inputs: NDArray[Any]) -> NDArray[Any]:
        if inputs.ndim == 3 and inputs.dtype == np.uint8:
            return inputs[:, None]
        return as_models_take_them(inputs, self.layout)

    def missing_files(self) -> str | None:
        if (self.test_inputs is None) != (self.test_labels is None):
            return "task `npy`: `test_inputs` and `test_labels` go together; name both, or none"
        for option, file in self._given().items():
            if not file.is_file():
                return (
                    f"task `npy` finds no file `{file}`: put a .npy there, or name another in the option `{option}`;"
                    " nothing can be downloaded"
                )
        return None

    def content(self) -> str:
        return digest_text(f"{self.num_classes} classes, {self._digests()['learned']}")

    def test_content(self) -> str:
        return str(self._digests()["test"])

    def read(self) -> dict[str, Arrays]:
        """Inputs are rows of the file of their split."""
        self._check_description()
        labels = _integers(self.labels)
        ids = np.arange(len(labels)) if self.ids is None else _integers(self.ids)
        self._refuse_other_lengths("inputs", "labels", "ids", "split", "groups")
        groups = None if self.groups is None else group_ids(map_npy(self.groups))
        everything = Arrays(np.arange(len(labels)), labels, ids, groups)
        belongs = self._belongs(everything)
        parts = {name: everything.take(belongs == name) for name in ("train", "validation", "test")}
        if self.test_inputs is not None and self.test_labels is not None:
            if len(parts["test"].ids):
                raise ValueError(
                    f"`{self.split}` marks rows as test, and `test_inputs` are others; leave one out"
                )
            self._refuse_other_lengths("test_inputs", "test_labels")
            rows = np.arange(len(map_npy(self.test_inputs)))
            parts["test"] = Arrays(rows, _integers(self.test_labels), rows + FIRST_TEST_ID)
        for name in ("train", "test"):
            if not len(parts[name].ids):
                raise ValueError(f"`{self.split or self.test_inputs or self.inputs}` has no {name} samples")
        return parts if len(parts["validation"].ids) else {name: parts[name] for name in ("train", "test")}

    def listed(self) -> dict[str, Arrays]:
        return self.read()

    def load(self) -> TaskData:
        from raydistill.tasks.mapped_split import build_mapped_data

        self.require_files()
        parts = self.read()
        self._refuse_what_is_not_finite()
        return build_mapped_data(self, parts, self.stored())

    def stored(self) -> dict[str, NDArray[Any]]:
        """The inputs as they lie, of training and, where it has a file of its own, of the test split."""
        test = {} if self.test_inputs is None else {"test": map_npy(self.test_inputs)}
        return {"train": map_npy(self.inputs), **test}

    def survey(self) -> Survey:
        """All floats are looked at for what is not finite; of inputs larger than `SURVEYED_BYTES`, so much, chosen by
        hash, for the rest."""
        from raydistill.tasks.splits import check_inputs
        from raydistill.tasks.survey import Finding, Survey, class_counts, input_findings

        self.require_files()
        parts, stored = three_parts(self, self.read()), self.stored()
        self._refuse_what_is_not_finite()
        some: dict[str, Arrays] = {}
        for name, part in parts.items():
            inputs = stored.get(name, stored["train"])
            most = SURVEYED_BYTES // max(inputs[:1].nbytes, 1)
            chosen = part.take(smallest_hashes(part.ids, most, fold_key(Purpose.SURVEYED)))
            some[name] = Arrays(self.arranged(inputs[chosen.inputs]), chosen.labels, chosen.ids)
            check_inputs(self, name, some[name])
        findings = list(input_findings(some))
        if self.input_dtype == "int64":
            text = f"`{self.inputs}` holds integers, which reach the models as they are; store measurements as floats"
            findings.append(Finding("note", f"{text}, which are normalised"))
        return Survey(class_counts(self, parts), tuple(findings))

    def _given(self) -> dict[str, Path]:
        options = {option: getattr(self, option) for option in self.files}
        return {option: file for option, file in options.items() if file is not None}

    def _belongs(self, everything: Arrays) -> NDArray[np.str_]:
        if self.split is not None:
            return split_names(self.split, map_npy(self.split))
        if self.test_inputs is not None:
            return np.full(len(everything.ids), "train")
        return np.where(set_aside(self, everything, self.test_fraction, Purpose.TEST_CUT), "test", "train")

    def _digests(self) -> dict[str, Any]:
        """Digests of the rows of training and validation, and of the test rows, however they are spread over files."""
        given = {option: digest_file(file) for option, file in self._given().items()}
        if self.test_inputs is not None:
            return {
                part: json.dumps(
                    {option: given[option] for option in given if option.startswith("test_") == is_test}
                )
                for part, is_test in (("learned", False), ("test", True))
            }
        cut = None if self.cut is None else self.cut.model_dump()
        options = json.dumps([given, self.split_seed, self.test_fraction, cut])
        return remembered_of(self.inputs, options, self._digest_rows)

    def _digest_rows(self) -> dict[str, Any]:
        parts = self.read()
        is_test = np.zeros(len(map_npy(self.inputs)), dtype=bool)
        is_test[parts["test"].inputs] = True
        columns = [map_npy(file) for file in self._given().values()]
        return {"learned": digest_rows(columns, ~is_test), "test": digest_rows(columns, is_test)}

    def _check_description(self) -> None:
        """`ValueError` for inputs that are not numbers of one kind and shape, and for labels counted from 1."""
        _ = self.input_shape
        stored = self.stored()
        for option, inputs in zip(("inputs", "test_inputs"), stored.values(), strict=False):
            if inputs.dtype.kind not in "fiub":
                raise ValueError(f"`{getattr(self, option)}` holds {inputs.dtype}, not numbers")
            if (inputs.dtype, inputs.shape[1:]) != (stored["train"].dtype, stored["train"].shape[1:]):
                raise ValueError(
                    f"`{self.test_inputs}` holds {inputs.dtype} {inputs.shape[1:]} per row, and `{self.inputs}`"
                    f" {stored['train'].dtype} {stored['train'].shape[1:]}; they should be alike"
                )
        smallest, largest, _ = _range(self.labels, stamp(self.labels))
        refuse_labels_from_1(f"`{self.labels}`", smallest, largest, self.num_classes)

    def _refuse_what_is_not_finite(self) -> None:
        for file in filter(None, (self.inputs, self.test_inputs)):
            refuse_what_is_not_finite(file)

    def _refuse_other_lengths(self, *options: str) -> None:
        lengths = {file: len(map_npy(file)) for option, file in self._given().items() if option in options}
        if len(set(lengths.values())) > 1:
            rows = ", ".join(f"`{file}` {count}" for file, count in lengths.items())
            raise ValueError(f"one row per sample is needed in each file; of rows, {rows}")


def refuse_what_is_not_finite(file: Path) -> None:
    """`ValueError` names the first row of a .npy that is not finite. A large file is looked at once."""
    if map_npy(file).dtype.kind == "f":
        row = remembered_of(file, "finite-1", partial(_first_not_finite, file))["row"]
        if row is not None:
            raise ValueError(f"row {row} of `{file}` is not finite")


def _first_not_finite(file: Path) -> dict[str, Any]:
    stored = map_npy(file)
    for start in range(0, len(stored), ROWS_AT_ONCE):
        block = stored[start : start + ROWS_AT_ONCE]
        is_finite = np.isfinite(block).reshape(len(block), -1).all(axis=1)
        if not is_finite.all():
            return {"row": start + int(is_finite.argmin())}
    return {"row": None}


@lru_cache(maxsize=16)
def _range(file: Path, changed: Stamp) -> tuple[int, int, int]:
    """The smallest and the largest label, and how many rows have none."""
    return label_range(f"`{file}`", _integers(file))


def _integers(file: Path) -> NDArray[np.int64]:
    values = map_npy(file)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    values = whole_labels(values)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ValueError(f"`{file}` should be one integer per row, not {values.dtype} {values.shape}")
    return values.astype(np.int64)
