"""A plan as it is written: the values of a YAML text, and the line of each.

Whatever reads YAML reads it here, so that a text of somebody else can neither make objects nor take the time, memory or
stack of the process.
"""

from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path as FilePath
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.cyaml import CParser  # type: ignore[attr-defined]  # its stub imports it without a word
from yaml.resolver import Resolver

from raydistill.errors import PlanError
from raydistill.plan.config_errors import Path, one_line
from raydistill.plan.shipped import shipped_plans

MAX_BYTES = 1_000_000  # a plan is a page; 2,000 stages are 300 kB
MAX_NODES = 50_000  # more comes from aliases that multiply
MAX_STORED = 1_000_000  # a plan that is stored has all its defaults
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
    most: int = MAX_NODES

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


def parse_source(text: str, file: str) -> Source:
    """Parse the YAML of a plan, keeping the line of every key; duplicate keys and tags are refused."""
    source = Source(file)
    parse(text, source)
    if not isinstance(source.values, dict):
        raise PlanError(f"{file}:1: a plan is a mapping with `name`, `task` and `stages`")
    return source


def parse(text: str, source: Source) -> None:
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
        if self.nodes > 2 * self.source.most:  # keys are nodes here, and none among the values
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


def yaml_values(text: str, file: str, most: int = MAX_NODES) -> Any:
    """The values of a YAML text that is no plan, at most so many; `PlanError` names the file and the line."""
    source = Source(file, most=most)
    parse(text, source)
    return source.values


def read_plan_text(file: FilePath) -> str:
    """The text of a plan's file. `PlanError` when there is none, or it is none."""
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
    if source.nodes > source.most:
        raise _too_many(source, line)


def _too_many(source: Source, line: int) -> PlanError:
    return PlanError(f"{source.at(line)}: more than {source.most:,} values; do aliases multiply?")


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


def _plans_beside(file: FilePath) -> str:
    """What else could have been meant: files with near names, or the shipped plans."""
    names = [str(path) for path in file.parent.glob("*.yaml")] if file.parent.is_dir() else []
    near = get_close_matches(str(file), [*names, *shipped_plans()], cutoff=0.55)
    if near:
        return f"; did you mean {' or '.join(f'`{name}`' for name in near)}?"
    return ", and no shipped plan has this name; `distill plans` lists those"


def _plans_in(folder: FilePath) -> str:
    names = sorted(str(path) for path in folder.glob("*.yaml"))
    return f", such as `{names[0]}`" if names else ""
