"""Values at paths of a plan: which paths there are, and the plan with other values."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from raydistill.errors import PlanError, did_you_mean
from raydistill.plan.config import Config
from raydistill.plan.config_errors import Path, shown
from raydistill.plan.model import ModelConfig
from raydistill.plan.schema import Plan
from raydistill.plan.search import Domain
from raydistill.plan.short_forms import written_out
from raydistill.plan.written import Source


def check_path(plan: Plan, source: Source, written: str, domain: Domain) -> Path:
    """The path of an option below `stages`; `PlanError` for one that the plan does not have, or that is no number where
    the domain is one of numbers."""
    value: Any = plan.stages
    path: Path = ()
    for key in written.split("."):
        part = int(key) if isinstance(value, (tuple, list)) and key.isdecimal() else key
        known = _parts(value)
        if known is not None and part not in known:
            raise _no_such_path(source, written, path, value, key, known)
        path, value = (*path, part), _at(value, part)
    if len(path) == 1:
        raise source.error(
            ("search", "space", written),
            f"`{written}` is a whole stage; name an option of it: `{written}.seed`",
        )
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if domain.choice is None and not is_number and value is not None:
        raise source.error(
            ("search", "space", written),
            f"`{written}` is no number in the plan, but {_shown(value)}; search it by `choice: [...]`",
        )
    return path


def _shown(value: Any) -> str:
    return "a section" if isinstance(value, Config) else shown(value)


def _parts(value: Any) -> Sequence[str | int] | None:
    """The keys below a value of a plan; None when any will do."""
    if isinstance(value, ModelConfig):
        return None if ":" in value.name else ["name", "num_classes", "input", *value.options]
    if isinstance(value, Config):
        return list(type(value).model_fields)
    if isinstance(value, Mapping):
        return list(value)
    return list(range(len(value))) if isinstance(value, (tuple, list)) else []


def _at(value: Any, part: str | int) -> Any:
    if isinstance(value, ModelConfig):
        return value.options.get(str(part), getattr(value, str(part), None))
    if isinstance(value, Config):
        return getattr(value, str(part))
    return value[part]


def _no_such_path(
    source: Source, written: str, path: Path, value: Any, key: str, known: Sequence[str | int]
) -> PlanError:
    above = ".".join(str(part) for part in path)
    if value is None:
        reason = f"`{above}` is not set; write it in the plan with any value, or search `{above}` itself"
    elif not known:
        reason = f"`{above}` is a plain value, without a `{key}` below it; leave `.{key}` out"
    elif isinstance(known[0], int):
        reason = f"`{above}` has the places 0 to {len(known) - 1}, not `{key}`"
    else:
        what = f"`{above}` has no" if path else "the plan has no stage"
        reason = f"{what} `{key}`{did_you_mean(key, [str(word) for word in known])}"
    return source.error(("search", "space", written), reason)


def source_with(source: Source, defaults: Mapping[str, Any], values: Mapping[Path, Any]) -> Source:
    """The plan as written, without its search and with `values` at their paths below `stages`.

    A section that the user left out is written with its `defaults` first. What is wrong with a value is wrong at the
    line of its domain.
    """
    written = copy.deepcopy({key: value for key, value in source.values.items() if key != "search"})
    changed = replace(
        source, values=written, lines=dict(source.lines), overrides=dict(source.overrides), entries={}
    )
    for path, value in values.items():
        _put(written["stages"], defaults["stages"], path, copy.deepcopy(value))
        _move_place(changed, path)
    changed.values = written_out(written, Plan)
    return changed


def _put(target: Any, defaults: Any, path: Path, value: Any) -> None:
    for part in path[:-1]:
        defaults = _default_at(defaults, part)
        if isinstance(target, dict) and target.get(part) is None:
            target[part] = copy.deepcopy(defaults)
        target = target[part]
    target[path[-1]] = value


def _default_at(defaults: Any, part: str | int) -> Any:
    try:
        return defaults[part]
    except (KeyError, IndexError, TypeError):
        return {}


def _move_place(source: Source, path: Path) -> None:
    domain: Path = ("search", "space", ".".join(str(part) for part in path))
    places: Any
    for places in (source.lines, source.overrides):
        for below in [below for below in places if below[: len(path) + 1] == ("stages", *path)]:
            del places[below]
        for end in range(len(domain), 0, -1):
            if domain[:end] in places:
                places["stages", *path] = places[domain[:end]]
                break
