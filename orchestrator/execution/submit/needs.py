"""What a plan needs of the working folder, found without importing anything.

Two ways were possible: to send the folder without what looks private, or to send what the plan needs. A list of
private names is never complete, and a working folder holds much that has no name at all: notes, exports, other
people's files. What a plan needs can be read, and is read for its identity anyway: its own file, the files that it
names, the packages of the modules that it names and of what these import, and the files that their code names. So that
is what travels; `--include` adds to it, `--whole-folder` sends the rest. A path that code puts together while it runs
cannot be read: the job's own error names such a file.

A whole package travels, not only its imported modules: tables and settings lie beside code.
"""

import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from raydistill.errors import PlanError
from raydistill.execution.submit.rules import Reason
from raydistill.models.weight_files import companions
from raydistill.plan.address import ADDRESS
from raydistill.plan.config_errors import one_line
from raydistill.plan.kind import Kind
from raydistill.plan.places import paths_of_task
from raydistill.plan.source_code import find_module, read_source
from raydistill.plan.written import Source

PATHS_OF_TASKS = ("folder", "file", "cache")
LONGEST_PATH = 300


@dataclass(frozen=True)
class Need:
    """Who needs a file: a place in the plan, or a module."""

    where: str
    way_out: str = ""
    is_module: bool = False


@dataclass(frozen=True)
class Needs:
    """Names below the working folder.

    `required`: the plan cannot run without them. `mentioned`: a module has their path in its text. `folders`: the
    packages of the modules.
    """

    required: Mapping[str, Need] = field(default_factory=dict)
    mentioned: Mapping[str, str] = field(default_factory=dict)
    folders: frozenset[str] = frozenset()
    is_whole: bool = False

    def covers(self, name: str) -> bool:
        """Whether a file is sent if no rule leaves it out."""
        names = {name, *(parent.as_posix() for parent in PurePosixPath(name).parents)}
        return self.is_whole or any(
            not names.isdisjoint(wanted) for wanted in (self.required, self.mentioned, self.folders)
        )


def find_needs(folder: Path, plan_file: Path, source: Source, is_whole: bool = False) -> Needs:
    """What the plan in `plan_file`, as `source` has it, needs of the working folder `folder`."""
    places = [folder, *([parent] if (parent := plan_file.absolute().parent).is_relative_to(folder) else [])]
    required: dict[str, Need] = {}
    mentioned: dict[str, str] = {}
    data = dict(paths_of_task(source.values))
    for path, text in _texts(source.values):
        where = f"{source.place(path)}: {'.'.join(map(str, path))}"
        is_named = (path[:1] == ("task",) or path[-2:-1] == ("also",)) and path[-1] in PATHS_OF_TASKS
        if is_named or path in data:
            if not text.startswith(("/", "~", "$")):
                name = _first_there(folder, places, text) or PurePosixPath(text).as_posix()
                required[name] = Need(where, _data_way_out(path, text))
        elif ADDRESS.fullmatch(text):
            for module in _modules_of(text):
                files, named = _read_code(folder, module)
                required |= {file: Need(where, is_module=True) for file in files if file not in required}
                mentioned |= dict.fromkeys(named, module)
        elif re.search(r"[./]", text) and (found := _first_there(folder, places, text, is_file=True)):
            required |= dict.fromkeys(_with_companions(folder, found), Need(where))
    modules = [name for name, need in required.items() if need.is_module]
    folders = frozenset(top for name in modules if (top := name.partition("/")[0]) != name)
    return Needs(required, mentioned, folders, is_whole)


def _with_companions(folder: Path, name: str) -> list[str]:
    """A file, and those without which it is of no use: the shards of an index, the tensors of an ONNX model."""
    try:
        others = companions(folder / name)
    except (ValueError, OSError):  # whoever reads it says what is wrong
        others = ()
    return [name, *(path.relative_to(folder).as_posix() for path in others if path.is_file())]


def refuse_left_out(name: str, need: Need, reason: Reason | None) -> PlanError:
    """The error for a needed file that is not sent."""
    why = f": {reason.text}" if reason else " to the Ray cluster"
    way_out = need.way_out or f"send it with `--include {name}`"
    if need.is_module:
        way_out += f", or say `--exclude {name}` where the nodes have it installed"
    return PlanError(one_line(f"{need.where}: `{name}` is not sent{why}; {way_out}"))


def _data_way_out(path: tuple[Any, ...], text: str) -> str:
    return (
        f"name a path that every node sees, such as `--set {'.'.join(map(str, path))}=/shared/{Path(text).name}`, or"
        f" send small data with `--include {text}`"
    )


def _texts(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Every text of a plan, with its path."""
    if isinstance(values, str):
        yield path, values
    elif isinstance(values, dict):
        for key, value in values.items():
            yield from _texts(value, (*path, key))
    elif isinstance(values, list):
        for index, value in enumerate(values):
            yield from _texts(value, (*path, index))


def _modules_of(address: str) -> list[str]:
    """The module of an address; of a config class, which the plan's check has imported, its implementation's too."""
    module, _, name = address.partition(":")
    kind: Any = getattr(sys.modules.get(module), name, None)
    if isinstance(kind, type) and issubclass(kind, Kind):
        return [module, kind.implementation.partition(":")[0]]
    return [module]


def _read_code(folder: Path, module: str) -> tuple[list[str], list[str]]:
    """Names below the folder: the modules that are run when one is imported, and the files that their text names."""
    source = read_source(module)
    if source is None:
        return [], []
    found = [known.file for name in source.modules if (known := find_module(name)) and known.file]
    files = [file for file in found if file.is_relative_to(folder)]
    places = [folder, *dict.fromkeys(file.parent for file in files)]
    named = [name for text in source.files if (name := _first_there(folder, places, text))]
    return [file.relative_to(folder).as_posix() for file in files], named


def _first_there(folder: Path, places: list[Path], text: str, is_file: bool = False) -> str | None:
    """The name below `folder` of what a relative path leads to from the first of these places that has it."""
    if Path(text).is_absolute() or not text.isprintable() or len(text) > LONGEST_PATH:
        return None
    for place in places:
        path = Path(os.path.normpath(place / text))  # not `resolve`: what a link leads to is asked later
        if path != folder and path.is_relative_to(folder) and (path.is_file() if is_file else path.exists()):
            return path.relative_to(folder).as_posix()
    return None
