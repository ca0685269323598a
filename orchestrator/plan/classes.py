"""Which classes a teacher knows, where they are not the task's: their names, and what the task's are made of."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from raydistill.errors import did_you_mean
from raydistill.plan.config import Config, Temperature
from raydistill.plan.config_errors import located_error


class ClassesConfig(Config):
    """Which classes a teacher knows: `[tabby, tiger cat, beagle]` or a file with their names, one a line or as JSON.

    Without a `map` they are the task's own, perhaps in another order, perhaps among others. With it each class of the
    task is made of some of the teacher's: `{cat: [tabby, tiger cat], dog: [beagle]}`. Its probability is the sum of
    theirs, as they are at the `temperature`, divided by what all mapped classes have; the rest is dropped.
    """

    names: tuple[str, ...] = Field(min_length=1)
    """The teacher's classes in the order of its outputs, or a file of them."""
    map: dict[str, tuple[str, ...]] | None = Field(None, description="the task's class: the teacher's")
    temperature: Temperature = 1.0
    """At which probabilities are added; the student's gives exactly the sums of softened ones."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, raw: Any) -> Any:
        return super()._refuse_unknown_keys(raw if isinstance(raw, (cls, Mapping)) else {"names": raw})  # type: ignore[operator]

    @field_validator("names", mode="before")
    @classmethod
    def _read_names(cls, raw: Any) -> Any:
        return names_in(raw) if isinstance(raw, str) else raw

    def members(self, task_names: Sequence[str]) -> list[list[int]]:
        """For each class of the task the numbers of the teacher's classes that it is made of; `ValueError` for a name
        that is not there or that stands twice, and for a class that nothing is left for."""
        _refuse_doubles(self.names, "the teacher has")
        position = {name: index for index, name in enumerate(self.names)}
        groups = {name: (name,) for name in task_names if name in position} if self.map is None else self.map
        for name in groups:
            if name not in task_names:
                raise ValueError(f"the task has no class `{name}`{did_you_mean(name, task_names)}")
        named = [name for group in groups.values() for name in group]
        _refuse_doubles(named, "the map names")
        for name in named:
            if name not in position:
                raise ValueError(f"the teacher has no class `{name}`{did_you_mean(name, self.names)}")
        empty = [name for name in task_names if not groups.get(name)]
        if empty:
            raise ValueError(
                f"nothing is said of the task's class `{empty[0]}` ({len(empty)} of {len(task_names)} are left"
                " empty); name the teacher's classes for it in `map`"
            )
        return [[position[member] for member in groups[name]] for name in task_names]


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
