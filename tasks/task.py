"""What every task is: a frozen description that answers without torch and loads its splits on demand."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer

if TYPE_CHECKING:  # numpy takes a third of the time of a dry run, and a description needs none of it
    import numpy as np
    from numpy.typing import NDArray

    from raydistill.tasks.splits import TaskData
    from raydistill.tasks.survey import Finding, Survey

DATA_ROOT = "RAYDISTILL_DATA"
GREY_LEVELS = "grey levels of 0 to 255 divided by 255"
"""What raw inputs are that were bytes."""


def data_root() -> Path:
    """Where this machine keeps data: `RAYDISTILL_DATA`, or `~/.cache/raydistill`."""
    return Path(os.environ.get(DATA_ROOT) or Path.home() / ".cache" / "raydistill").expanduser().absolute()


def _read_path(path: Path) -> Path:
    # Absolute at once: workers of a Ray cluster start in other working directories than the driver.
    if path.parts[:1] in ((f"${DATA_ROOT}",), (f"${{{DATA_ROOT}}}",)):
        return data_root().joinpath(*path.parts[1:])
    return path.expanduser().absolute()


def _write_path(path: Path) -> str:
    """Paths below this machine's data root are written relative to it: each node of a Ray cluster has its own root."""
    if DATA_ROOT in os.environ and path.is_relative_to(data_root()):
        return str(Path(f"${DATA_ROOT}") / path.relative_to(data_root()))
    return str(path)


UserPath = Annotated[
    Path, AfterValidator(_read_path), PlainSerializer(_write_path, return_type=str, when_used="json")
]


def common_folder(roots: Sequence[Path]) -> Path:
    """The deepest folder that all these lie in; of one, itself."""
    return Path(os.path.commonpath(roots))


class Cut(BaseModel):
    """What is kept together, and what is kept alike, when samples are set aside.

    Pictures of one patient, of one scene or from one camera are a group: split between training and test, they make a
    model look better than it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: Literal["sample", "group"] = "sample"
    """Whether single samples are set aside or whole groups."""
    stratified: bool = False
    """Whether every class keeps its share, as nearly as that can be."""


@dataclass(frozen=True)
class Arrays:
    """Samples as they lie on disk: inputs (N, ...), labels (N,) int64, ids (N,) int64, and where the data has such the
    number of each one's group, (N,) int64. A label is `UNLABELLED` where a training sample has none."""

    inputs: NDArray[Any]
    labels: NDArray[np.int64]
    ids: NDArray[np.int64]
    groups: NDArray[np.int64] | None = None

    def take(self, chosen: NDArray[np.bool_]) -> Arrays:
        """The samples that a mask (N,) marks, in the order they have."""
        groups = None if self.groups is None else self.groups[chosen]
        return Arrays(self.inputs[chosen], self.labels[chosen], self.ids[chosen], groups)


def class_index(names: Sequence[str], label: int | str) -> int:
    """Index of a class that a plan names: a text is its name, a number its index.

    `ValueError` when there is no such class, and for a number where classes are called by other numbers: folders `0`
    to `11` are sorted as texts, and the class with index 3 is called `11`.
    """
    if isinstance(label, str):
        if label not in names:
            raise ValueError(f"there is no class `{label}`")
        return names.index(label)
    called = [index for index, name in enumerate(names) if name.isdecimal() and int(name) == label]
    if called and label not in called:
        index = called[0]
        other = f", and the one with index {label} is called `{names[label]}`" if label < len(names) else ""
        raise ValueError(
            f'class {label} has the index {index}{other}; write the name in quotes, `"{names[index]}"`'
        )
    if not 0 <= label < len(names):
        raise ValueError(f"class {label} is not one of the task's 0 to {len(names) - 1}")
    if not called and all(name.isdecimal() for name in names):
        raise ValueError(f"no class is called {label}, though all are called by numbers, as `{names[0]}` is")
    return label


class Task(BaseModel):
    """Data, its classes and its three splits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Which task; its options stand beside it."""
    validation_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Part of the training samples set aside for validation, unless the data brings a validation split."""
    split_seed: int = 0
    """Chooses which samples are set aside."""
    cut: Cut | None = None
    """What is kept together, and what alike, when samples are set aside: `{by: group, stratified: true}`."""

    plain_word: ClassVar[str | None] = "name"
    """The key of a mapping for which a plain word may stand in a plan."""
    not_identity: ClassVar[frozenset[str]] = frozenset({"name", "folder", "file", "download", "workers"})
    came_later: ClassVar[frozenset[str]] = frozenset({"cut"})
    """Options that are no part of the identity as long as they have their default."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per label, in the order of the labels."""
        raise NotImplementedError

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch: (channels, height, width) for images."""
        raise NotImplementedError

    @property
    def input_dtype(self) -> Literal["float32", "int64"]:
        """What a model is given: numbers that were normalised, or integers as they are, which stand for things."""
        return "float32"

    @property
    def unseen_data(self) -> str | None:
        """What is learned from though no identity sees it, in words."""
        return None

    @property
    def unlabelled(self) -> int:
        """How many training samples have no label."""
        return 0

    @property
    def input_values(self) -> str:
        """The meaning of the numbers in a raw input, in words, for a user who has a model without its task."""
        return f"pixels, channels first, {GREY_LEVELS}"

    def identity(self) -> dict[str, Any]:
        """What determines the samples that are learned from, as JSON values; neither folders nor the test split are.

        `FileNotFoundError` when the data is not there.
        """
        self.require_files()
        fields = type(self).model_fields
        late = {key for key in self.came_later if getattr(self, key) == fields[key].default}
        options = self.model_dump(mode="json", exclude={*self.not_identity, *late})
        return {"name": self.name, "content": self.content(), **options}

    def content(self) -> str:
        """A name or digest of the classes and of the samples of training and validation."""
        raise NotImplementedError

    def test_content(self) -> str:
        """A name or digest of the test split's samples: a model is judged again when they change, not trained again.

        Where the samples are one published whole, it is that of the whole.
        """
        return self.content()

    def digests(self) -> Mapping[str, Mapping[str, str]]:
        """Of data in many files: split → file → SHA-256, to say what changed. Empty where the data is one whole."""
        return {}

    def missing_files(self) -> str | None:
        """None when the data is there; otherwise which files go where and which option downloads them."""
        raise NotImplementedError

    def require_files(self) -> None:
        """`FileNotFoundError` with the message of `missing_files`."""
        message = self.missing_files()
        if message is not None:
            raise FileNotFoundError(message)

    def read(self) -> dict[str, Arrays]:
        """`train` and `test`, and `validation` where the data brings one."""
        raise NotImplementedError

    def listed(self) -> dict[str, Arrays] | None:
        """As `read`, for labels: inputs are whatever names them. None where labels cannot be had without reading the
        inputs."""
        return None

    def survey_listed(self) -> tuple[dict[str, Arrays], tuple[Finding, ...]] | None:
        """As `listed`, with what is to be said of what was not read."""
        listed = self.listed()
        return None if listed is None else (listed, ())

    def load(self) -> TaskData:
        """The three splits in memory. `FileNotFoundError` or `ValueError` when the data is not there or not valid."""
        from raydistill.tasks.splits import build_task_data

        self.require_files()
        return build_task_data(self, self.read())

    def arranged(self, inputs: NDArray[Any]) -> NDArray[Any]:
        """Inputs (N, ...) of a file that is like the task's own, as the task has them."""
        return inputs

    def picture_input(
        self, source: Path | bytes, shape: tuple[int, ...], *, name: str | None = None
    ) -> NDArray[np.uint8]:
        """A picture, a file or its bytes, as raw input, uint8 `shape` (channels, height, width), for a model of this
        task. It goes through what the task's own pictures go through in evaluation; the task's data need not be there.
        `PictureError` names what cannot be read, by `name` where that is given; `ValueError` says that the inputs are
        no pictures.
        """
        from raydistill.tasks.pictures import scaled_picture

        if len(shape) != 3 or shape[0] not in (1, 3):
            raise ValueError(
                f"task `{self.name}`: inputs of shape {shape} are no pictures; give them in a .npy file"
            )
        return scaled_picture(source, shape, name=name)[0]

    def survey(self) -> Survey:
        """A look at the data before anything is trained: samples per split and class, and what the files show; what
        the counts show is said by `survey_task`. `FileNotFoundError` or `ValueError` for what cannot be used."""
        from raydistill.tasks.survey import survey_arrays

        self.require_files()
        return survey_arrays(self, self.read())
