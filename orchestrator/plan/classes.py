"""Which classes a teacher knows, where they are not the task's: their names, and what the task's are made of."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from raydistill.errors import did_you_mean
from raydistill.plan.config import Boolean, Config, Integer, Positive, Temperature
from raydistill.plan.config_errors import located_error
from raydistill.plan.sources import by_content

if TYPE_CHECKING:
    from numpy.typing import NDArray


class ClassesConfig(Config):
    """Which classes a teacher knows: `[tabby, tiger cat, beagle]` or a file with their names, one a line or as JSON.

    Without a `map` they are the task's own, perhaps in another order, perhaps among others. With it each class of the
    task is made of some of the teacher's: `{cat: [tabby, tiger cat], dog: [beagle]}`. Its probability is the sum of
    theirs, as they are at the `temperature`, divided by what all mapped classes have; the rest is dropped.

    A teacher may know a part of the task's classes: `others: rest` (or names) says which of its own stand for all that
    it does not know, as a dustbin does. Their probability is spread evenly over the classes that the map leaves empty.
    Several such teachers become one by `combine: {rule: kl_fusion}`, each teaching what it knows.

    A teacher that gives an embedding has classes by a `matrix` with an embedding of each, such as CLIP's of their names
    (arXiv 2103.00020): a logit is `scale` times the cosine of both. Rows are in the order of `names`, or without names
    the task's classes in their order. What the network itself gives are then the numbers of an embedding.
    """

    came_later = frozenset({"others", "matrix", "array", "scale", "normalize", "columns"})

    names: tuple[str, ...] = ()
    """The teacher's classes in the order of its outputs, or a file of them."""
    map: dict[str, tuple[str, ...]] | None = Field(None, description="the task's class: the teacher's")
    temperature: Temperature = 1.0
    """At which probabilities are added; the student's gives exactly the sums of softened ones."""
    others: Literal["rest"] | tuple[str, ...] | None = Field(
        None, description="the teacher's that stand for what it does not know: names, or the `rest`"
    )
    matrix: str | None = Field(None, min_length=1, description=".npy, .npz or .safetensors: a row per class")
    array: str | None = Field(None, description="which of several arrays in the file of the matrix")
    scale: Positive = 100.0
    """Times the product of embedding and row: the inverse of a temperature."""
    normalize: Boolean = True
    """Whether embedding and rows are given the length 1 first: then their product is a cosine."""
    columns: Annotated[Integer, Field(ge=1)] | None = Field(
        None, description="numbers of a row, where the matrix lies among the weights"
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, raw: Any) -> Any:
        return super()._refuse_unknown_keys(raw if isinstance(raw, (cls, Mapping)) else {"names": raw})  # type: ignore[operator]

    @field_validator("names", mode="before")
    @classmethod
    def _read_names(cls, raw: Any) -> Any:
        return names_in(raw) if isinstance(raw, str) else raw

    @model_validator(mode="after")
    def _named_or_embedded(self) -> "ClassesConfig":
        if not self.names and self.matrix is None:
            raise located_error("name the teacher's classes, in the order of its outputs", "names")
        return self

    @property
    def has_matrix(self) -> bool:
        """Whether logits are products of an embedding with a matrix."""
        return self.matrix is not None or self.columns is not None

    def identified(self, values: dict[str, Any]) -> dict[str, Any]:
        """The matrix by its content."""
        kept = super().identified(values)
        file = None if self.matrix is None else by_content(str(Path(self.matrix).expanduser()))
        return kept if file is None else {**kept, "matrix": file}

    def rows(self, task_names: Sequence[str]) -> tuple[str, ...]:
        """The teacher's classes."""
        return self.names or tuple(task_names)

    def among_weights(self, task_names: Sequence[str], columns: int) -> "ClassesConfig":
        """The same for a model whose weights hold the matrix: no file is read."""
        return self.replace(matrix=None, array=None, names=self.rows(task_names), columns=columns)

    def read_matrix(self, task_names: Sequence[str]) -> "NDArray[Any]":
        """The matrix (classes, d) float32; `ValueError` for a file that does not hold one with a row per class."""
        # Which takes numpy, and a plan without a matrix does not.
        from raydistill.tasks.array_files import read_matrix

        assert self.matrix is not None
        names, found = self.rows(task_names), read_matrix(Path(self.matrix).expanduser(), self.array)
        if len(found) != len(names):
            whose = "`names` has" if self.names else "the task has"
            raise ValueError(f"`{self.matrix}` has {len(found)} rows, and {whose} {len(names)} classes")
        empty = [name for name, row in zip(names, found, strict=True) if not row.any()]
        if empty and self.normalize:
            raise ValueError(f"the row of `{empty[0]}` in `{self.matrix}` is all 0: it has no direction")
        return found

    def members(self, task_names: Sequence[str]) -> list[list[int]]:
        """For each class of the task the numbers of the teacher's classes that it is made of, for all that it does not
        know the same `others`; `ValueError` for a name that is not there or that stands twice, and for a class that
        nothing is left for."""
        names = self.rows(task_names)
        _refuse_doubles(names, "the teacher has")
        position = {name: index for index, name in enumerate(names)}
        groups = {name: (name,) for name in task_names if name in position} if self.map is None else self.map
        for name in groups:
            if name not in task_names:
                raise ValueError(f"the task has no class `{name}`{did_you_mean(name, task_names)}")
        named = [name for group in groups.values() for name in group]
        others = (
            tuple(name for name in names if name not in named) if self.others == "rest" else self.others or ()
        )
        named += others
        _refuse_doubles(named, "the map names")
        for name in named:
            if name not in position:
                raise ValueError(f"the teacher has no class `{name}`{did_you_mean(name, names)}")
        empty = [name for name in task_names if not groups.get(name)]
        if self.others is not None and not empty:
            raise ValueError("the teacher knows all classes of the task; leave `others` out")
        if empty and not others:
            way_out = "in `map`" if self.others is None else "as `others`: the map leaves it no rest"
            raise ValueError(
                f"nothing is said of the task's class `{empty[0]}` ({len(empty)} of {len(task_names)} are left"
                f" empty); name the teacher's classes for it {way_out}"
            )
        return [[position[member] for member in groups.get(name) or others] for name in task_names]

    def known(self, task_names: Sequence[str]) -> list[int] | None:
        """The numbers of the task's classes that the teacher tells from all that it does not know; None for all."""
        if self.others is None:
            return None
        groups = (
            set(self.rows(task_names)) if self.map is None else {key for key, own in self.map.items() if own}
        )
        return [number for number, name in enumerate(task_names) if name in groups]


def names_in(file: str) -> list[str]:
    """Names of classes in a file: a JSON list, or one a line."""
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8")
        found = json.loads(text) if file.endswith(".json") else text.splitlines()
    except (OSError, ValueError) as error:
        raise located_error(f"the file `{file}` cannot be read: {error}") from None
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise located_error(f"the file `{file}` should hold a list of names")
    return [name for name in found if name.strip()]


def _refuse_doubles(names: Sequence[str], who: str) -> None:
    name, count = Counter(names).most_common(1)[0] if names else ("", 0)
    if count > 1:
        raise ValueError(f"{who} `{name}` {count} times; keep one")
