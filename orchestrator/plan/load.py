"""From a YAML file to a `Plan`, or to one error that names the line."""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import getitem
from pathlib import Path as FilePath
from typing import Any

import yaml
from pydantic import ValidationError
from yaml.composer import Composer
from yaml.cyaml import CParser  # type: ignore[attr-defined]  # its stub imports it without a word
from yaml.resolver import Resolver

from raydistill.errors import PlanError, did_you_mean
from raydistill.plan.mistakes import Path, mistakes, one_line
from raydistill.plan.model import models_in
from raydistill.plan.places import placed_values
from raydistill.plan.schema import Plan
from raydistill.plan.short_forms import written_out
from raydistill.plan.sources import modules_of_task

MAX_BYTES = 1_000_000  # a plan is a page; 2,000 stages are 300 kB
MAX_NODES = 50_000  # more comes from aliases that multiply
MAX_DEPTH = 50
TAG = "tag:yaml.org,2002:"
PLAIN_TAGS = {TAG + kind for kind in ("str", "int", "float", "bool", "null", "timestamp", "seq", "map")}
Entries = dict[str, tuple[int, yaml.Node]]
"""The keys of a mapping, with the line of each and its value."""


@dataclass
class Source:
    """A parsed plan before it is checked: plain values, and the line that each path came from."""

    file: str
    has_lines: bool = True
    values: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    overrides: dict[Path, str] = field(default_factory=dict)
    entries: dict[int, "Entries"] = field(default_factory=dict)
    nodes: int = 0

    def at(self, line: int) -> str:
        """A line of the file, as a person writes it."""
        return f"{self.file}:{line}" if self.has_lines else self.file

    def place(self, path: Path) -> str:
        """Where `path` was written: the nearest enclosing line, or the `--set` that gave it."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.overrides:
                return f"--set {self.overrides[path[:end]]}"
            if path[:end] in self.lines:
                return self.at(self.lines[path[:end]])
        return self.file

    def error(self, path: Path, message: str) -> PlanError:
        """A `PlanError` that names the place and the path."""
        where = ".".join(str(part) for part in path)
        return PlanError(one_line(f"{self.place(path)}: {where + ': ' if where else ''}{message}"))

    def line(self, path: Path) -> int:
        """The line of `path` or of what encloses it; 0 for what the command line gave."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.overrides:
                return 0
            if path[:end] in self.lines:
                return self.lines[path[:end]]
        return 0


Overrides = Sequence[str] | Mapping[str, Any]
"""Other values of a plan: `["stages.student.epochs=10"]` as on the command line, or `{"stages.student.epochs": 10}`."""


def load_plan(file: FilePath | str, overrides: Overrides = ()) -> Plan:
    """Read, override and check a plan. Every mistake is a `PlanError` of one line."""
    return check_plan(read_source(FilePath(file), overrides))


def build_plan(values: Mapping[str, Any], overrides: Overrides = ()) -> Plan:
    """Check a plan whose `values` are those of a plan file, short forms included, and override some.

    Paths are relative to the working folder. Every mistake is a `PlanError` of one line.
    """
    source = Source("the plan", has_lines=False, values=_plain(values))
    return check_plan(_overridden(source, overrides))


def override_plan(plan: Plan, overrides: Overrides) -> Plan:
    """The plan with other values, checked anew."""
    return check_plan(_overridden(copy.deepcopy(source_of(plan)), overrides))


def source_of(plan: Plan) -> Source:
    """How a plan was written; one that code put together counts as written with all its values."""
    if plan._source is not None:
        return plan._source
    return Source("the plan", has_lines=False, values=plan_values(plan))


def plan_values(plan: Plan) -> dict[str, Any]:
    """The plan with all defaults, as the JSON values that a plan file with them holds."""
    values: dict[str, Any] = json.loads(plan.model_dump_json())
    for name, config in plan.stages.items():
        for path, _ in models_in(config):
            model = reduce(getitem, path, values["stages"][name])
            model |= model.pop("options")
    return values


def read_source(file: FilePath, overrides: Overrides = ()) -> Source:
    """Parse the YAML of `file`, write its short forms out, and apply overrides."""
    return _overridden(parse_source(_read_text(file), str(file)), overrides)


def _overridden(source: Source, overrides: Overrides) -> Source:
    """The same source, written out, with other values."""
    source.values = written_out(source.values, Plan)
    for override in overrides:
        if isinstance(overrides, Mapping):
            value = _plain(overrides[override])
            _override(source, override, value, one_line(f"{override}={json.dumps(value)}"))
        else:
            _override_by_text(source, override)
        source.values = written_out(source.values, Plan)
    return source


def _plain(values: Any) -> Any:
    """Values as YAML would give them: tuples become lists, and what no plan can hold is an error."""
    try:
        return json.loads(json.dumps(values, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise PlanError(one_line(f"the plan: only what YAML can hold belongs in a plan: {error}")) from None


def parse_source(text: str, file: str) -> Source:
    """Parse the YAML of a plan, keeping the line of every key; duplicate keys and tags are refused."""
    source = Source(file)
    _parse(text, source)
    if not isinstance(source.values, dict):
        raise PlanError(f"{file}:1: a plan is a mapping with `name`, `task` and `stages`")
    return source


def _parse(text: str, source: Source) -> None:
    """Fill `source` with the values of a YAML text and their lines."""
    try:
        node = _Composer(text, source).get_single_node()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise _yaml_error(source, line, _problem(error, text)) from None
    except yaml.reader.ReaderError as error:
        line = text.encode().count(b"\n", 0, error.position) + 1
        raise _yaml_error(source, line, f"the character U+{error.character:04X} is not allowed") from None
    except UnicodeEncodeError as error:
        raise _yaml_error(source, 1, f"the byte 0x{ord(text[error.start]) & 0xFF:02x} is not UTF-8") from None
    source.values = None if node is None else _values(node, (), source)


class _Composer(Composer, CParser, Resolver):
    """Values and their lines from libyaml's events. What is too long or too deep is refused as soon as it is met: to
    read all of it first could take minutes."""

    def __init__(self, text: str, source: Source) -> None:
        CParser.__init__(self, text)
        Composer.__init__(self)
        Resolver.__init__(self)
        self.source = source
        self.nodes = self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.nodes += 1
        self.depth += 1
        if self.nodes > 2 * MAX_NODES:  # keys are nodes here, and none among the values
            raise _too_many(self.source, self.next_line)
        if self.depth > MAX_DEPTH + 1:
            raise _yaml_error(self.source, self.next_line, "nested too deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    @property
    def next_line(self) -> int:
        """The line of what is read next."""
        event: Any = self.peek_event()
        return int(event.start_mark.line) + 1


def validated(source: Source) -> Plan:
    """The plan that parsed values are, whether or not the task's files are there."""
    values = placed_values(source)
    try:
        plan = Plan.model_validate(values)
    except ValidationError as error:
        found = mistakes(error, values)
        raise source.error(*min(found, key=lambda mistake: source.line(mistake.path))) from None
    plan._source = source
    return plan


def check_plan(source: Source) -> Plan:
    """Validate parsed values against the schema, and that the task's files are there."""
    plan = validated(source)
    if problem := _data_problem(plan):
        written = (("task", key) for key in ("folder", "file") if key in source.values["task"])
        raise source.error(next(written, ("task",)), problem)
    return plan


def _data_problem(plan: Plan) -> str | None:
    """Why the task's data cannot be used; None when it is there and its description can be read."""
    try:
        if missing := plan.task.missing_files():
            return missing
        plan.task.identity()
        plan.task.test_content()
        if plan.task.num_classes < 2:
            return f"task `{plan.task.name}` has {plan.task.num_classes} class; a plan needs at least 2"
    except (OSError, ValueError) as error:
        return f"the data of task `{plan.task.name}` cannot be read: {error}"
    except Exception as error:
        if not modules_of_task(plan.task):
            raise
        return f"task `{plan.task.name}`: {type(error).__name__}: {error}"  # whatever the user's code does
    return None


def _read_text(file: FilePath) -> str:
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise PlanError(one_line(f"`{file}` does not exist{_plans_beside(file)}")) from None
    except IsADirectoryError:
        raise PlanError(one_line(f"`{file}` is a folder; name the plan's file{_plans_in(file)}")) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PlanError(one_line(f"`{file}` cannot be read: {reason}")) from None
    if len(content) > MAX_BYTES:
        raise PlanError(one_line(f"`{file}` is larger than {MAX_BYTES / 1e6:g} MB; is it a plan?"))
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise PlanError(
            one_line(
                f"{file}:{line}: the byte 0x{content[error.start]:02x} is not UTF-8; save the plan as UTF-8 text"
            )
        ) from None


def _values(node: yaml.Node, path: Path, source: Source) -> Any:
    line = node.start_mark.line + 1
    source.lines.setdefault(path, line)
    _count(source, line)
    if len(path) > MAX_DEPTH:
        raise PlanError(f"{source.place(path)}: nested too deep; does an alias contain itself?")
    if node.tag not in PLAIN_TAGS:
        tag = node.tag.replace(TAG, "!!")
        raise _yaml_error(source, line, f"the tag `{tag}` is not allowed; write a plain value")
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, source)
    if isinstance(node, yaml.SequenceNode):
        return [_values(item, (*path, index), source) for index, item in enumerate(node.value)]
    assert isinstance(node, yaml.ScalarNode)
    return _scalar(node, source)


def _mapping(node: yaml.MappingNode, path: Path, source: Source) -> dict[Any, Any]:
    values: dict[Any, Any] = {}
    for key, (line, value_node) in _entries(node, source).items():
        source.lines[(*path, key)] = line
        values[key] = _values(value_node, (*path, key), source)
    return values


def _entries(node: yaml.MappingNode, source: Source, depth: int = 0) -> Entries:
    """The keys of a mapping and their values: first those that it takes over, which its own ones replace."""
    if id(node) in source.entries:
        return source.entries[id(node)]
    own: Entries = {}
    inherited: Entries = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key = key_node.value
        if key_node.tag == TAG + "merge":
            inherited |= _inherited(value_node, line, source, depth + 1)
            continue
        if not isinstance(key, str) or key_node.tag not in PLAIN_TAGS or not key.isprintable():
            raise _yaml_error(source, line, "a key must be a word")
        if key in own:
            raise PlanError(
                f"{source.at(line)}: `{key}` is written twice, first on line {own[key][0]}; keep one"
            )
        own[key] = (line, value_node)
    source.entries[id(node)] = inherited | own
    return source.entries[id(node)]


def _inherited(node: yaml.Node, line: int, source: Source, depth: int) -> Entries:
    """What a mapping takes over with `<<: *other`, or with a list of such, of which the first wins."""
    if depth > MAX_DEPTH:
        raise _yaml_error(source, line, "`<<` nested too deep; does an alias contain itself?")
    entries: Entries = {}
    for other in reversed(node.value if isinstance(node, yaml.SequenceNode) else [node]):
        if not isinstance(other, yaml.MappingNode):
            raise _yaml_error(source, line, "`<<` takes over another mapping: `<<: *teacher`")
        taken = _entries(other, source, depth)
        _count(source, line, len(taken))
        entries |= taken
    return entries


def _count(source: Source, line: int, values: int = 1) -> None:
    source.nodes += values
    if source.nodes > MAX_NODES:
        raise _too_many(source, line)


def _too_many(source: Source, line: int) -> PlanError:
    return PlanError(f"{source.at(line)}: more than {MAX_NODES:,} values; do aliases multiply?")


def _scalar(node: yaml.ScalarNode, source: Source) -> Any:
    try:
        value = yaml.SafeLoader("").construct_object(node)
    except ValueError:  # `!!int two`, the 13th month, a number of 5,000 digits
        kind = node.tag.removeprefix(TAG)
        raise _yaml_error(
            source, node.start_mark.line + 1, f"`{_shortened(node.value)}` is no {kind}; quote text"
        ) from None
    if isinstance(value, str) and not node.style:  # plain
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


def _yaml_error(source: Source, line: int, problem: str) -> PlanError:
    return PlanError(one_line(f"{source.at(line)}: not valid in a plan: {problem}"))


def _problem(error: yaml.MarkedYAMLError, text: str) -> str:
    problem = str(error.problem)
    if (mark := error.problem_mark) is not None:
        letter = "".join(text.split("\n")[mark.line : mark.line + 1])[mark.column : mark.column + 1]
        if letter == "\t":
            return "a tab; indent with spaces"
        if problem == "found character that cannot start any token":
            return f"`{letter}` cannot begin a value; quote text"
    return problem if error.context is None else f"{error.context}, {problem}"


def _shortened(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."


def _override_by_text(source: Source, override: str) -> None:
    """Apply `path=value`, the value in YAML."""
    path_text, equals, value_text = override.partition("=")
    override = one_line(override)
    if not equals:
        raise PlanError(f"--set {override}: write it as `--set stages.student.epochs=10`")
    given = Source(f"--set {override}", has_lines=False)
    _parse(value_text, given)
    _override(source, path_text, given.values, override)


def _override(source: Source, path_text: str, value: Any, override: str) -> None:
    if not all(path_text.split(".")):
        raise PlanError(f"--set {override}: write it as `--set stages.student.epochs=10`")
    path = _set_value(source, path_text.split("."), value, override)
    for places in (source.lines, source.overrides):
        for written in [written for written in places if written[: len(path)] == path]:
            del places[written]
    source.overrides[path] = override


def _set_value(source: Source, keys: Sequence[str], value: Any, override: str) -> Path:
    """Put a value into the plan, making mappings on the way; returns the path with numbers for places in lists."""
    target, path = source.values, ()  # type: Any, Path
    for key in keys[:-1]:
        part = _key_in(source, target, path, key, override)
        path = (*path, part)
        if isinstance(target, dict) and part not in target:
            if path[:-1] == ("stages",):
                raise _no_such_place(source, path, target, override)
            source.overrides[path] = override
            target[part] = {}
        target = target[part]
    last = _key_in(source, target, path, keys[-1], override)
    target[last] = value
    return (*path, last)


def _key_in(source: Source, target: Any, path: Path, key: str, override: str) -> str | int:
    """`key` as it is written in a mapping, or as the number of a place that a list has."""
    if isinstance(target, dict):
        return key
    if isinstance(target, list) and key.isdecimal() and int(key) < len(target):
        return int(key)
    raise _no_such_place(source, (*path, key), (), override)


def _no_such_place(source: Source, path: Path, known: Any, override: str) -> PlanError:
    written = ".".join(str(part) for part in path)
    return PlanError(
        f"--set {override}: `{written}` does not exist in {source.file}{did_you_mean(str(path[-1]), known)}"
    )


def _plans_beside(file: FilePath) -> str:
    names = [str(path) for path in file.parent.glob("*.yaml")] if file.parent.is_dir() else []
    return did_you_mean(str(file), names)


def _plans_in(folder: FilePath) -> str:
    names = sorted(str(path) for path in folder.glob("*.yaml"))
    return f", such as `{names[0]}`" if names else ""
