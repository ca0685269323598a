"""`distill explain`: the schema as text. What a word of a plan means and can be told, with defaults and sources.

Everything is found in the schema itself, from `Plan` downwards: what a mapping can be by its name, the parts that have
no name, and every key.
"""

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from raydistill.errors import PlanError, did_you_mean
from raydistill.kinds.capabilities import capabilities, needs
from raydistill.lookup import load_object
from raydistill.models import MODELS, Architecture
from raydistill.plan.address import class_at
from raydistill.plan.config import StageRef
from raydistill.plan.kind import Kind
from raydistill.plan.model import ModelConfig
from raydistill.plan.model_input import InputConfig
from raydistill.plan.schema import Plan, task_class
from raydistill.tasks import TASKS
from raydistill.tasks.task import Task

WIDTH = 100
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "none"}


@dataclass(frozen=True)
class Topic:
    """What can be written under a name: the keys of `kind`, but for those that the name decides."""

    kind: type[BaseModel]
    preset: Mapping[str, Any] = field(default_factory=dict)

    @property
    def own_word(self) -> str | None:
        """The key that says which kind this is."""
        if issubclass(self.kind, Kind):
            return self.kind.chosen_by.key
        return "name" if issubclass(self.kind, Task) else None

    @property
    def fields(self) -> dict[str, FieldInfo]:
        """The keys that a person writes beside the name."""
        fields = self.kind.model_fields
        return {
            key: value for key, value in fields.items() if key not in self.preset and key != self.own_word
        }


@dataclass(frozen=True)
class Option:
    """A key that can be written, in words."""

    key: str
    type: str
    """What may be written there, with its bounds."""
    default: str | None
    """None where it has to be written."""
    meaning: str


def options(topic: Topic) -> list[Option]:
    """What can be written beside a name, in the schema's order."""
    return [_option(key, topic.kind, value) for key, value in topic.fields.items()]


def explain(name: str | None) -> str:
    """The text for one name; without a name, all names but those of keys."""
    groups = topics()
    if name is None:
        return _overview(groups)
    if ":" in name:
        return f"{name}\n\n{_about(_users_own(name))}"
    parts = [f"{name}\n\n{_about(group[name])}" for group in groups.values() if name in group]
    if not parts:
        parts = list(_about_key(name, groups))
    if parts:
        return "\n\n".join(parts)
    known = [*(word for group in groups.values() for word in group), *keys(groups)]
    raise PlanError(f"nothing is called `{name}`{did_you_mean(name, known)}")


def _users_own(address: str) -> Topic:
    """A class of the user's own, which is explained as ours are; `PlanError` for what no plan could name."""
    bases = {kind.chosen_by.group: kind for kind in _places(Plan)}
    try:
        found = class_at(address, BaseModel, "kind")
        if issubclass(found, Task):
            return Topic(task_class(address))
        base = next((base for base in bases.values() if issubclass(found, base)), None)
        if base is not None:
            return Topic(base.find(address))
    except ValueError as error:
        raise PlanError(str(error)) from None
    names = ", ".join(f"`{base.__name__}`" for base in bases.values())
    raise PlanError(
        f"`{address}` is nothing that a plan can name: it should subclass `Task`, or one of {names}"
    )


def _places(kind: type[BaseModel], seen: set[type] | None = None) -> Iterator[type[Kind]]:
    """The bases of what can be chosen by a word, wherever in a plan."""
    seen = set() if seen is None else seen
    for value in kind.model_fields.values():
        for found in _types_in(value.annotation):
            if found not in seen:
                seen.add(found)
                if issubclass(found, Kind) and found.is_choice():
                    yield found
                for inner in _configs_in(found):
                    yield from _places(inner, seen)


def _types_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _types_in(argument)


def topics() -> dict[str, dict[str, Topic]]:
    """Everything that a plan can name, by groups; last the parts without a name, under the keys where they stand."""
    groups: dict[str, dict[str, Topic]] = {"stages": {}, "methods": {}}
    models = {name: _of_architecture(architecture) for name, architecture in MODELS.items()}
    tasks = {name: Topic(load_object(address)) for name, address in TASKS.items()}
    unnamed: dict[str, type[BaseModel]] = {
        "plan": Plan,
        "model": ModelConfig,
        "input": InputConfig,
        "task": Task,
    }
    parts = {key: Topic(kind) for key, kind in unnamed.items()}
    _collect(Plan, groups, parts)
    stages, methods = groups.pop("stages"), groups.pop("methods")
    return {
        "stages": stages,
        "methods": methods,
        "models": models,
        "tasks": tasks,
        **groups,
        "parts": parts,
    }


def keys(groups: Mapping[str, Mapping[str, Topic]]) -> dict[str, list[tuple[str, Topic]]]:
    """Every key that is written somewhere, with the names of what it can be written in."""
    found: dict[str, list[tuple[str, Topic]]] = {}
    for group in groups.values():
        for name, topic in group.items():
            for key in topic.fields:
                found.setdefault(key, []).append((name, topic))
    return found


def description(kind: type[BaseModel], key: str) -> str:
    """What a key means: its `Field(description=...)`, or the docstring below it, its own or one that it inherits."""
    for owner in kind.__mro__:
        if not issubclass(owner, BaseModel) or key not in inspect.get_annotations(owner):
            continue
        if text := _written_below(owner).get(key) or owner.model_fields[key].description:
            return text
    return ""


def _collect(kind: type[BaseModel], groups: dict[str, dict[str, Topic]], parts: dict[str, Topic]) -> None:
    for key, value in kind.model_fields.items():
        for member in _configs_in(_annotation(value)):
            word = member.word if issubclass(member, Kind) else key
            known = groups.setdefault(member.chosen_by.group, {}) if issubclass(member, Kind) else parts
            if word not in known and not issubclass(member, Task | ModelConfig):
                known[word] = Topic(member)
                _collect(member, groups, parts)


def _annotation(value: FieldInfo) -> Any:
    """As it was written."""
    return Annotated[value.annotation, *value.metadata] if value.metadata else value.annotation


def _configs_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The configs that may stand where the schema has `annotation`."""
    for found in _types_in(annotation):
        if issubclass(found, Kind) and found.is_choice():
            yield from found.choices().values()
        else:
            yield found


def _overview(groups: Mapping[str, Mapping[str, Topic]]) -> str:
    width = max(len(group) for group in groups)
    lines = [f"{group:<{width}}  {', '.join(names)}" for group, names in groups.items()]
    return "\n".join(
        [*lines, "", "distill explain NAME prints what NAME can be told; NAME may be any key too."]
    )


def _about(topic: Topic) -> str:
    lines = [inspect.getdoc(topic.kind) or ""]
    if issubclass(topic.kind, Kind):
        lines += _declared(topic.kind)
    if topic.preset:
        decided = ", ".join(f"{key} {value}" for key, value in topic.preset.items())
        lines += ["", f"Decided by the name: {decided}"]
    if topic.fields:
        lines.append("")
    for key, value in topic.fields.items():
        lines += _lines_of(key, topic.kind, value)
    return "\n".join(lines)


def _declared(kind: type[Kind]) -> list[str]:
    """What the class of a method says of itself, beside its text."""
    told = {"Needs": needs(kind), "With it": "; ".join(capabilities(kind))}
    lines = [textwrap.fill(f"{label}: {text}.", WIDTH) for label, text in told.items() if text]
    return ["", *lines] if lines else []


def _about_key(key: str, groups: Mapping[str, Mapping[str, Topic]]) -> Iterator[str]:
    """What a key means in each place where it means something of its own."""
    owners: dict[str, list[str]] = {}
    for name, topic in keys(groups).get(key, ()):
        text = "\n".join(_lines_of(key, topic.kind, topic.fields[key]))
        owners.setdefault(text, []).append(name)
    for number, (text, names) in enumerate(owners.items()):
        title = f"{key}\n\n" if number == 0 else ""
        yield "\n".join([f"{title}{textwrap.fill('In ' + ', '.join(names), WIDTH)}", "", text])


def _option(key: str, kind: type[BaseModel], value: FieldInfo) -> Option:
    usual = value.get_default(
        call_default_factory=True, validated_data={}
    )  # of what follows other options too
    default = None if value.is_required() else _shown(usual)
    bounds = ", ".join(bound for item in value.metadata if (bound := _bound(item)))
    written = "; ".join(part for part in (_type(_annotation(value)), bounds) if part)
    return Option(key, written, default, " ".join(description(kind, key).split()))


def _lines_of(key: str, kind: type[BaseModel], value: FieldInfo) -> list[str]:
    option = _option(key, kind, value)
    default = "required" if option.default is None else f"default {option.default}"
    told = textwrap.fill(option.meaning, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    facts = f"{key}: {option.type}; {default}"
    return [textwrap.fill(facts, WIDTH, initial_indent="  ", subsequent_indent=" " * 6), told]


def _type(annotation: Any) -> str:
    """What may be written there, in words."""
    arguments = get_args(annotation)
    origin = get_origin(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        written = [argument for argument in arguments if argument is not type(None)]
        return " or ".join(dict.fromkeys(_type(argument) for argument in written))
    if origin is tuple:
        return (
            f"a list, each {_type(arguments[0])}" if arguments[-1] is ... else f"a list of {len(arguments)}"
        )
    if origin is dict or annotation is dict:
        return "a mapping"
    if isinstance(annotation, type) and issubclass(annotation, StageRef):
        return "the name of " + (inspect.getdoc(annotation) or "a stage").partition(".")[0].replace(
            "A ", "a ", 1
        )
    if isinstance(annotation, type) and issubclass(annotation, Kind) and annotation.is_choice():
        return f"one of {', '.join(annotation.choices())}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "a model" if annotation is ModelConfig else "a task" if annotation is Task else "a mapping"
    return WORDS.get(annotation, "a path" if getattr(annotation, "__name__", "") == "Path" else "any value")


def _bound(item: Any) -> str:
    for name, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤")):
        if getattr(item, name, None) is not None:
            return f"{sign} {getattr(item, name)}"
    return ""


def _shown(value: Any) -> str:
    if isinstance(value, BaseModel):
        values = {
            key: _shown(item) for key, item in value.model_dump(mode="json").items() if item is not None
        }
        return "{" + ", ".join(f"{key}: {item}" for key, item in values.items()) + "}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(_shown(item) for item in value)}]"
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _of_architecture(architecture: Architecture) -> Topic:
    return Topic(architecture.options, architecture.preset)


@cache
def _written_below(kind: type[BaseModel]) -> dict[str, str]:
    """The docstrings below the fields of a class. Read here, and not when a plan is loaded: it takes 1 ms a class."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for statement, below in zip(tree.body, tree.body[1:], strict=False):
        match statement, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = text
    return found
