"""What a plan needs of the working folder, found without importing anything.

Two ways were possible: to send the folder without what looks private, or to send what the plan needs. A list of
private names is never complete, and a working folder holds much that has no name at all: notes, exports, other
people's files. What a plan needs can be read: its own file, the files that it names, the packages of the modules that
it names and of what these import, and the files that their code names in plain text. So that is what travels;
`--include` adds to it, `--whole-folder` sends the rest. Code that puts a path together while it runs cannot be read:
the job's own error names such a file.

A whole package travels, not only its imported modules: tables and settings lie beside code.
"""

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from raydistill.errors import PlanError
from raydistill.execution.submit.rules import Reason
from raydistill.plan.load import Source
from raydistill.plan.mistakes import one_line

PATHS_OF_TASKS = ("folder", "file", "cache")
FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


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
    """What the plan in `plan_file`, as `source` has it, needs of `folder`."""
    places = [folder, *([parent] if (parent := plan_file.absolute().parent).is_relative_to(folder) else [])]
    required: dict[str, Need] = {}
    modules: list[tuple[str, str]] = []
    for path, text in _texts(source.values):
        where = f"{source.place(path)}: {'.'.join(map(str, path))}"
        if path[:1] == ("task",) and path[-1] in PATHS_OF_TASKS:
            if not text.startswith(("/", "~", "$")):
                required[_first_there(folder, places, text) or _normal(text)] = Need(
                    where, _data_way_out(path, text)
                )
        elif FUNCTION.fullmatch(text):
            modules.append((text.partition(":")[0], where))
        elif _is_path(text) and (name := _first_there(folder, places, text)) and (folder / name).is_file():
            required[name] = Need(where)
    trees = _read_modules(folder, modules)
    mentioned: dict[str, str] = {}
    for name, (tree, where) in trees.items():
        required.setdefault(name, Need(where, is_module=True))
        for text in _paths_in(tree):
            if found := _first_there(folder, [folder, (folder / name).parent], text):
                mentioned.setdefault(found, name)
    folders = frozenset(top for name in trees if (top := name.partition("/")[0]) != name)
    return Needs(required, mentioned, folders, is_whole)


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


def _read_modules(folder: Path, modules: list[tuple[str, str]]) -> dict[str, tuple[ast.Module, str]]:
    """Syntax tree and asker of every module of the folder that these are or import, by the file's name."""
    waiting = list(modules)
    read: dict[str, tuple[ast.Module, str]] = {}
    while waiting:
        module, where = waiting.pop()
        for name in _files_of(folder, module):
            if name in read:
                continue
            try:
                tree = ast.parse((folder / name).read_bytes())
            except (SyntaxError, ValueError, OSError):  # whoever imports it says so
                tree = ast.Module([], [])
            read[name] = tree, where
            waiting += [(imported, name) for imported in _imports(tree, name)]
    return read


def _files_of(folder: Path, module: str) -> list[str]:
    """The files that are run when a module of the folder is imported: the packages around it, and its own."""
    parts = module.split(".")
    if parts[0] in sys.stdlib_module_names or parts[0] == "raydistill":
        return []
    packages = ["/".join((*parts[:end], "__init__.py")) for end in range(1, len(parts) + 1)]
    return [name for name in (*packages, "/".join(parts) + ".py") if (folder / name).is_file()]


def _imports(tree: ast.Module, name: str) -> Iterator[str]:
    """What a module imports, also by a dotted name in a text; a name that is imported may be a module too."""
    package = PurePosixPath(name).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            around = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*around, *([node.module] if node.module else [])))
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and MODULE.fullmatch(node.value):
            yield node.value


def _paths_in(tree: ast.Module) -> Iterator[str]:
    """Paths in a module's text: in one piece, or in pieces joined by `/`, `Path(…)` or `os.path.join(…)`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _is_path(node.value):
            yield node.value
        elif isinstance(node, (ast.BinOp, ast.Call)):
            pieces = _pieces(node)
            if len(pieces) > 1:
                yield "/".join(pieces)


def _pieces(node: ast.expr) -> list[str]:
    """The texts that a path ends with; what comes before them is known only while the code runs."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return [*_pieces(node.left), *_pieces(node.right)]
    if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in (
        "Path",
        "join",
        "joinpath",
    ):
        return [piece for argument in node.args for piece in _pieces(argument)]
    return []


def _is_path(text: str) -> bool:
    """A word such as `hinton` is no path, whatever lies in the folder."""
    return re.search(r"[./]", text) is not None and len(text) < 1000 and text.isprintable()


def _first_there(folder: Path, places: list[Path], text: str) -> str | None:
    """The name below `folder` of what a relative path leads to from the first of these places that has it."""
    if Path(text).is_absolute():
        return None
    for place in places:
        name = _normal(((place / text).relative_to(folder)).as_posix())
        if name not in (".", "") and not name.startswith("..") and (folder / name).exists():
            return name
    return None


def _normal(text: str) -> str:
    parts: list[str] = []
    for part in PurePosixPath(text).parts:
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        else:
            parts.append(part)
    return "/".join(parts)
