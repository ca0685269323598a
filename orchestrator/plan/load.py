"""From a YAML file to a `Plan`, or to one error that names the line."""

import copy
import json
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from raydistill.errors import PlanError, did_you_mean
from raydistill.plan.config_errors import Path, mistakes, one_line
from raydistill.plan.model import models_in
from raydistill.plan.places import placed_values
from raydistill.plan.schema import Plan
from raydistill.plan.shipped import find_plan
from raydistill.plan.short_forms import written_out
from raydistill.plan.sources import modules_of_task
from raydistill.plan.written import Source, parse, parse_source, read_plan_text

Overrides = Sequence[str] | Mapping[str, Any]
"""Other values of a plan: `["stages.student.epochs=10"]` as on the command line, or `{"stages.student.epochs": 10}`."""


def load_plan(file: FilePath | str, overrides: Overrides = ()) -> Plan:
    """Read, override and check a plan: a file, or the name of a shipped plan that no file has.

    Every mistake is a `PlanError` of one line.
    """
    return check_plan(read_source(FilePath(file), overrides))


def check_text(text: str, name: str) -> Plan:
    """Check a plan that is not written to a file yet; errors call it `name`."""
    return check_plan(_overridden(parse_source(text, name), ()))


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
    file = find_plan(file)
    return _overridden(parse_source(read_plan_text(file), str(file)), overrides)


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


def _override_by_text(source: Source, override: str) -> None:
    """Apply `path=value`, the value in YAML."""
    path_text, equals, value_text = override.partition("=")
    override = one_line(override)
    if not equals:
        raise PlanError(f"--set {override}: write it as `--set stages.student.epochs=10`")
    given = Source(f"--set {override}", has_lines=False)
    parse(value_text, given)
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
