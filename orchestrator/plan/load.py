"""From a YAML file to a `Plan`, or to one error that names the line."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import yaml
from pydantic import ValidationError

from orchestrator.errors import PlanError
from orchestrator.plan.config import Path, describe
from orchestrator.plan.schema import Plan

MAX_NODES = 100_000  # a plan is a page; more comes from aliases that multiply


@dataclass
class Source:
    """A parsed plan before it is checked: plain values, and the line that each path came from."""

    file: str
    values: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    overrides: dict[Path, str] = field(default_factory=dict)
    nodes: int = 0

    def place(self, path: Path) -> str:
        """Where `path` was written: the nearest enclosing line, or the `--set` that gave it."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.overrides:
                return f"--set {self.overrides[path[:end]]}"
            if path[:end] in self.lines:
                return f"{self.file}:{self.lines[path[:end]]}"
        return self.file

    def error(self, path: Path, message: str) -> PlanError:
        """A `PlanError` that names the place and the path."""
        where = ".".join(str(part) for part in path)
        return PlanError(f"{self.place(path)}: {where + ': ' if where else ''}{message}")


def load_plan(file: FilePath, overrides: Sequence[str] = ()) -> Plan:
    """Read, override and check a plan. Every mistake is a `PlanError` of one line."""
    return check_plan(read_source(file, overrides))


def read_source(file: FilePath, overrides: Sequence[str] = ()) -> Source:
    """Parse the YAML of `file` and apply `path=value` overrides."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise PlanError(f"`{file}` does not exist{_plans_beside(file)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"`{file}` cannot be read as a text file: {error}") from None
    source = parse_source(text, str(file))
    for override in overrides:
        _override(source, override)
    return source


def parse_source(text: str, file: str) -> Source:
    """Parse YAML, keeping the line of every key; duplicate keys are refused."""
    source = Source(file)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        source.values = _values(node, (), source) if node is not None else None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise PlanError(f"{file}:{line}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise PlanError(f"{file}: not valid YAML: {error}") from None
    if not isinstance(source.values, dict):
        raise PlanError(f"{file}:1: a plan is a mapping with `name`, `task` and `stages`")
    return source


def check_plan(source: Source) -> Plan:
    """Validate parsed values against the schema, and that the task's files are there."""
    try:
        plan = Plan.model_validate(source.values)
    except ValidationError as error:
        path, message = _first_mistake(error, source)
        raise source.error(path, message) from None
    if missing := plan.task.missing_files():
        raise source.error(("task",), missing)
    return plan


def _first_mistake(error: ValidationError, source: Source) -> tuple[Path, str]:
    mistakes = [describe(item) for item in error.errors()]
    path, message = min(mistakes, key=lambda mistake: source.lines.get(mistake[0], 10**9))
    return _written_path(path, source.values), message


def _written_path(path: Path, values: Any) -> Path:
    """Drop the tags that pydantic puts into a path for unions: keep the keys that the user wrote."""
    written: list[str | int] = []
    for position, part in enumerate(path):
        known = (isinstance(values, dict) and part in values) or (
            isinstance(values, list) and isinstance(part, int) and part < len(values)
        )
        if known:
            values = values[part]
            written.append(part)
        elif position == len(path) - 1 and isinstance(values, dict) and not str(part).startswith("tuple["):
            written.append(part)
    return tuple(written)


def _values(node: yaml.Node, path: Path, source: Source) -> Any:
    source.lines.setdefault(path, node.start_mark.line + 1)
    source.nodes += 1
    if source.nodes > MAX_NODES:
        raise PlanError(f"{source.file}: too large: more than {MAX_NODES} values")
    if len(path) > 50:
        raise PlanError(f"{source.place(path)}: nested too deep; does an alias contain itself?")
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, source)
    if isinstance(node, yaml.SequenceNode):
        return [_values(item, (*path, index), source) for index, item in enumerate(node.value)]
    assert isinstance(node, yaml.ScalarNode)
    return _scalar(node)


def _mapping(node: yaml.MappingNode, path: Path, source: Source) -> dict[Any, Any]:
    values: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise PlanError(f"{source.file}:{line}: a key must be a word")
        key = str(key_node.value)
        if key in values:
            first = source.lines[(*path, key)]
            raise PlanError(f"{source.file}:{line}: `{key}` is written twice, first on line {first}")
        source.lines[(*path, key)] = line
        values[key] = _values(value_node, (*path, key), source)
    return values


def _scalar(node: yaml.ScalarNode) -> Any:
    value = yaml.SafeLoader("").construct_object(node)
    if isinstance(value, str) and node.tag == "tag:yaml.org,2002:str" and node.style is None:
        return _number_or_text(value)
    return value


def _number_or_text(text: str) -> Any:
    """YAML 1.1 reads `1e-3` as text; every user means the number."""
    if "e" in text.lower() and text[:1] in "+-.0123456789":
        try:
            return float(text)
        except ValueError:
            return text
    return text


def _override(source: Source, override: str) -> None:
    path_text, equals, value_text = override.partition("=")
    if not equals or not path_text:
        raise PlanError(f"--set {override}: write it as `--set stages.student.epochs=10`")
    value = parse_source(f"value: {value_text}", f"--set {override}").values["value"]
    path = tuple(int(part) if part.isdigit() else part for part in path_text.split("."))
    _set_value(source, path, value, override)
    source.overrides[path] = override


def _set_value(source: Source, path: Path, value: Any, override: str) -> None:
    target: Any = source.values
    for depth, part in enumerate(path[:-1]):
        if isinstance(target, list) and isinstance(part, int) and part < len(target):
            target = target[part]
        elif isinstance(target, dict):
            target = target.setdefault(str(part), {})
        else:
            written = ".".join(str(p) for p in path[: depth + 1])
            raise PlanError(f"--set {override}: `{written}` does not exist in {source.file}")
    last = path[-1]
    if isinstance(target, list) and isinstance(last, int) and last < len(target):
        target[last] = value
    elif isinstance(target, dict):
        target[str(last)] = value
    else:
        raise PlanError(f"--set {override}: `{path[-1]}` does not exist in {source.file}")


def _plans_beside(file: FilePath) -> str:
    from orchestrator.errors import did_you_mean

    folder = file.parent
    names = [str(path) for path in folder.glob("*.yaml")] if folder.is_dir() else []
    return did_you_mean(str(file), names) if names else ""
