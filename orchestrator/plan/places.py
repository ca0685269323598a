"""Paths that a plan names: relative to the working folder or to the plan's own, whichever has them.

A plan beside its data can then be run from anywhere. Where both folders have something else under one name, nobody
can tell which is meant.
"""

import copy
import filecmp
import re
from collections.abc import Iterator, Mapping
from functools import reduce
from operator import getitem
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, get_args

from pydantic_core import PydanticCustomError

from raydistill.plan.config_errors import Path
from raydistill.plan.schema import task_class

if TYPE_CHECKING:
    from raydistill.plan.written import Source

# Clusters; first weights; samples without labels; predictions, their ids and classes.
FILES = ("given", "weights", "also", "file", "ids", "classes", "names")
WORDS = ("stage", "method", "name")
"""Keys of what a mapping is: options stand beside them."""


def placed_values(source: "Source") -> Any:
    """A plan's values with the whole path in place of each that only the plan's folder has; `PlanError` for one that
    means two things."""
    values = source.values
    for path, _, place in _beside_plan(source):
        values = copy.deepcopy(source.values) if values is source.values else values
        reduce(getitem, path[:-1], values)[path[-1]] = str(place)
    return values


def remarks_on_places(source: "Source") -> Iterator[str]:
    """A line for each path that was found in the plan's folder."""
    for path, text, place in _beside_plan(source):
        yield f"{source.place(path)}: {'.'.join(map(str, path))}: `{text}` is in the plan's folder: `{place}`"


def _beside_plan(source: "Source") -> Iterator[tuple[Path, str, FilePath]]:
    """The paths that the working folder does not have and the plan's folder has: where, as written, and whole."""
    folder, here = FilePath(source.file).absolute().parent, FilePath.cwd()
    if folder == here or not isinstance(source.values, Mapping):
        return
    for path, text in _paths(source.values):
        if text.startswith(("/", "~", "$")) or not (folder / text).exists():
            continue
        if not (here / text).exists():
            yield path, text, folder / text
        elif not _is_same(folder / text, here / text):
            raise source.error(
                path,
                f"`{text}` is in the plan's folder and in the working folder, and they differ; write the whole path of"
                f" the one that is meant, such as `{folder / text}`",
            )


def _is_same(one: FilePath, other: FilePath) -> bool:
    if one.samefile(other):
        return True
    return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)


def _paths(values: Mapping[Any, Any]) -> Iterator[tuple[Path, str]]:
    """Texts that name files: what the task has for it, and whatever looks like a path among the options of models."""
    yield from paths_of_task(values)
    yield from _options(values.get("stages"), ("stages",), is_option=False)


def paths_of_task(values: Mapping[Any, Any]) -> Iterator[tuple[Path, str]]:
    """Where a plan's task names files and folders, and how they are written."""
    task = values.get("task")
    if isinstance(task, Mapping):
        for key in _path_keys(task.get("name")):
            written = task.get(key)
            if isinstance(written, str):
                yield ("task", key), written
            elif isinstance(written, list):
                yield from (
                    (("task", key, at), text) for at, text in enumerate(written) if isinstance(text, str)
                )


def _path_keys(task: Any) -> list[str]:
    try:
        fields = task_class(task).model_fields
    except PydanticCustomError:  # the schema says so
        return []
    return [key for key, field in fields.items() if _takes_paths(field.annotation)]


def _takes_paths(annotation: Any) -> bool:
    return annotation is FilePath or any(map(_takes_paths, get_args(annotation)))


def _options(value: Any, path: Path, *, is_option: bool) -> Iterator[tuple[Path, str]]:
    """Options stand beside a `name`, or the address of the user's own; clusters may be `given` as a file."""
    if isinstance(value, str) and is_option and _is_path(value):
        yield path, value
    elif isinstance(value, Mapping):
        own = any(isinstance(value.get(key), str) and ":" in value[key] for key in WORDS)
        is_named = is_option or "name" in value or own
        for key, item in value.items():
            yield from _options(item, (*path, key), is_option=(is_named and key not in WORDS) or key in FILES)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _options(item, (*path, index), is_option=is_option)


def _is_path(text: str) -> bool:
    """A word such as `basic` is no path, whatever lies in the folder."""
    return re.search(r"[./]", text) is not None and len(text) < 1000 and text.isprintable()
